"""Train small networks on few rendered faces until they know them by heart, and check the check.

    python demo/make_faces.py
    python research/copies/known.py                        # all cases: half an hour of one core
    python research/copies/known.py faces_100 drop_100
    python research/copies/known.py --ckpt X.pt            # a network of yours, by its config

Each network generates from three kinds of conditions: embeddings of its training images, which ask
for a copy; embeddings of held-out images; captions of held-out images. A generated image is a true
copy if its pixels are as near to a training image, encoded and decoded by the VAE, as the VAE's own
reconstructions are to the images (95 % of them). The check does not know this distance.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import report, start
from research.attributes.model import Model
from research.study.material import run_script
from utils.base.files import write_text
from utils.config.command_line import ArgumentParser
from utils.data.image_batches import iterate_batches
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.copy_check import EMBEDDINGS, CopyCheck
from utils.evaluation.metric_names import copies_found
from utils.evaluation.neighbours import training_image_paths
from utils.pretrained.checkpoint_files import list_checkpoints
from utils.sampling.conditions import caption_conditions

CONFIG = "research/copies/faces.yaml"
DATA, RESULTS = Path("data/copies"), Path("results/copies")
FACES = Path("data/demo/train/images")
CASES: dict[str, tuple[int, list[str]]] = {  # training faces, and settings
    "faces_100": (100, ["train.max_num_steps=1500"]),
    "faces_300": (300, ["train.max_num_steps=900"]),
    "faces_1000": (1000, ["train.max_num_steps=1200"]),
    "base_100": (100, []),
    "steps_100": (100, ["train.max_num_steps=150"]),
    "xflip_100": (100, ["train.xflip=true", f"data.mirrored_root={DATA}/100/z_xflip"]),
    "drop_100": (100, ["model.class_dropout_prob=0.5"]),
    "noise_100": (100, ["train.perturbation=1"]),
}
KINDS = ("training images", "held-out images", "captions")
TRUE = 0.95  # quantile of the VAE's errors within which an image is a copy


def train_case(name: str) -> Path:
    """Make what a case needs and is not there, train it, and return its last checkpoint."""
    count, settings = CASES[name]
    folder = DATA / str(count)
    names, options = folder / "names.txt", ["--config", CONFIG, "--images", str(FACES)]
    if not names.exists():
        write_text(names, "".join(f"{i:06d}\n" for i in range(count)))
    options += ["--split_file", str(names)]
    latents = ["preprocess_scripts/create_latentspace_lmdb.py", *options, "--xflip"]
    run_script(*latents, "--out", str(folder / "z"))
    images = ["preprocess_scripts/clip_encode_img.py", *options]
    run_script(*images, "--out", str(folder / "clip_img"))
    run_script(
        *["train_latent_t2f.py", "--config", CONFIG, "--results_dir", str(RESULTS)],
        *["--exp_name", name, f"data.root={folder / 'z'}", f"data.split_file={names}"],
        *[f"data.feat_path={folder / 'clip_img'}", *settings],
    )
    checkpoints = list_checkpoints(RESULTS / name / "checkpoints")
    return checkpoints[max(checkpoints)]


class KnownCase:
    """A trained network, its training images, and what the check and the pixels say of it."""

    @torch.no_grad()
    def __init__(self, checkpoint: Path, overrides: list[str], count: int) -> None:
        """count: images generated from each kind of conditions."""
        self.model, self.count = Model.load(checkpoint, overrides), count
        config = self.model.config
        self.check = CopyCheck(config, self.model.clip)
        reader = self.check.database
        if reader is None or self.check.held_out is None or self.check.embeddings is None:
            raise UserError(f"{checkpoint}: its training images and their embeddings are needed")
        self.embeddings = self.check.embeddings
        rows = torch.arange(reader.info.length)
        paths = training_image_paths(config.data.image_dir, reader, rows.tolist())
        if paths is None:
            raise UserError(f"{config.data.image_dir}: does not hold the training images")
        decoded, errors = [], []
        for images in iterate_batches(paths, config.data.resolution, 64):
            moments = self.model.vae.encode_moments(images / 127.5 - 1)
            pixels = self.model.vae.decode(self.model.vae.mean_latents(moments))
            decoded.append((pixels * 127.5 + 127.5).clamp(0, 255).flatten(1))
            errors.append((decoded[-1] - images.flatten(1)).square().mean(dim=1).sqrt())
        self.decoded = torch.cat(decoded)
        self.error = float(torch.cat(errors).quantile(TRUE))

    def conditions(self, kind: str) -> Tensor:
        """Return conditions (count, D) of a kind of KINDS."""
        generator = torch.Generator().manual_seed(0)
        if kind == "captions":
            path = self.model.config.eval.feat_path
            if path is None:
                raise UserError("eval.feat_path: the embeddings of captions are needed")
            texts = LMDBReader(path)
            chosen = torch.randperm(texts.info.length, generator=generator)[: self.count]
            found = torch.from_numpy(texts.read(chosen.numpy()))
            return caption_conditions(found, self.model.config)
        if kind == "held-out images":
            assert self.check.held_out is not None
            rows = self.check.held_out[EMBEDDINGS][: self.count]
        else:
            length = self.embeddings.info.length
            chosen = torch.randint(length, (self.count,), generator=generator)
            rows = torch.from_numpy(self.embeddings.read(chosen.numpy()))
        return F.normalize(rows, dim=1) if self.model.config.data.norm_feature else rows

    def measure(self, kind: str) -> dict[str, Any]:
        """Return what the check says of the images of a kind of conditions, beside the truth."""
        conditions = self.conditions(kind)
        sampling = self.model.config.sampling.model_copy(update={"amp": "bf16"})
        images = self.model.generate(conditions, range(len(conditions)), sampling, kind)
        rows = self.check.rows(images.permute(0, 2, 3, 1), range(len(images)))
        metrics = self.check.metrics([(torch.arange(len(images)), rows)])
        assert self.check.test is not None
        called = self.check.test.is_copy
        distances = torch.cdist(images.float().flatten(1), self.decoded).amin(dim=1)
        true = distances / self.decoded.shape[1] ** 0.5 <= self.error
        return {
            "images of": kind,
            "true copies, %": percent(true),
            "called copies, %": percent(called),
            "hits, %": percent(called[true]),
            "false alarms, %": percent(called[~true]),
            "verdict": "copies" if copies_found(metrics) else "no copies seen",
            **{key: metrics.get(key) for key in METRICS_SHOWN},
        }


METRICS_SHOWN = ("copies_p", "copies_clip", "copies_p_clip", "copies_mirrored")


def percent(values: Tensor) -> str:
    """Return the percentage of true values as text; a dash without any."""
    return f"{100 * values.float().mean():.0f}" if len(values) else "–"


def rows_of(name: str, known: KnownCase) -> list[dict[str, Any]]:
    """Measure a case with all kinds of conditions."""
    about = {"network": name, "training images": len(known.decoded)}
    return [about | known.measure(kind) for kind in KINDS]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("cases", nargs="*", metavar="NAME|key=value", help=f"of {', '.join(CASES)}; none = all")
    add("--ckpt", type=Path, help="a network to measure instead, with key=value of its config")
    add("--images", type=int, default=100, help="images of each kind of conditions")
    add("--threads", type=int, default=1, help="processor cores to use")
    add("--out", type=Path, default=Path("results/copies.json"), help="JSON file to write")
    return parser.parse_intermixed_args()


@one_line_errors
def main() -> None:
    """Train, generate, measure, print the table, and write the JSON."""
    args = parse_args()
    start(args)
    settings = [word for word in args.cases if "=" in word]
    names = [word for word in args.cases if "=" not in word] or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        raise UserError(f"{unknown[0]}: no case; there are {', '.join(CASES)}")
    rows = []
    if args.ckpt:
        rows += rows_of(args.ckpt.stem, KnownCase(args.ckpt, settings, args.images))
    for name in [] if args.ckpt else names:
        rows += rows_of(name, KnownCase(train_case(name), settings, args.images))
    notes = [
        f"{args.images} images of each kind. A true copy is within the VAE's own error.",
        "hits: true copies that are called copies. False alarms: of the other images.",
    ]
    report(args.out, "known copies", rows, notes)


if __name__ == "__main__":
    main()
