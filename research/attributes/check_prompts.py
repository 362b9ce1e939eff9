"""Measure how often an image shows what its sentence asks for, and where attributes are lost.

    python research/attributes/check_prompts.py                                # the shipped model
    python research/attributes/check_prompts.py --ckpt X.pt --cfg_scale None,1.5,2

Held-out faces go down a chain, and after each link a classifier names their attributes. The metric
is the percentage of the attributes stated in the caption that the classifier finds:

    renders → their VAE reconstructions → a probe on CLIP image embeddings → this probe on caption
    embeddings → images from the image's own embedding → images from the caption

Prints a table with a row for each attribute, and plots it (chain.png). The classifier is trained on
first use and kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo.make_faces import ATTRIBUTES
from research.attributes.classifier import (
    classify,
    codes_of,
    load_classifier,
    load_faces,
    predict,
    train_probe,
)
from research.attributes.model import Model
from utils.base.progress import progress
from utils.config.command_line import ArgumentParser
from utils.config.parsing import parse_scale
from utils.config.sampling_sections import Sampling
from utils.config.schema import Config
from utils.sampling.conditions import caption_conditions

COARSE = ("hair_style", "hair_color", "headwear", "skin", "background", "clothes_color")
PROBE_SCALE = 1.0  # perturbation of the probe, for a network that was trained without
CHUNK = 200  # images encoded at a time

Chain = dict[str, dict[str, float]]  # label of a link → agreement of each attribute, percent


def agreement(predicted: Tensor, codes: Tensor, stated: Tensor) -> dict[str, float]:
    """Return the percentage of the stated attributes that are predicted, for each attribute.

    The row also has the mean over all attributes, and over the coarse ones.

    predicted, codes: (N, A) int64.
    stated: (N, A) bool.
    """
    right = ((predicted == codes) & stated).sum(0) / stated.sum(0).clamp(min=1)
    row = {name: 100 * right[a].item() for a, name in enumerate(ATTRIBUTES)}
    row["mean"] = sum(row[name] for name in ATTRIBUTES) / len(ATTRIBUTES)
    row["coarse mean"] = sum(row[name] for name in COARSE) / len(COARSE)
    return row


def choose_captions(records: list[dict]) -> tuple[list[str], Tensor]:
    """Choose one caption for each face: texts, and (N, A) bool, True if it states an attribute.

    The first face takes its first caption, the second face its second one, and so on.
    """
    captions = [r["captions"][i % len(r["captions"])] for i, r in enumerate(records)]
    stated = [[name in caption["states"] for name in ATTRIBUTES] for caption in captions]
    return [caption["text"] for caption in captions], torch.tensor(stated)


def plot_chain(chain: Chain, path: Path, title: str) -> None:
    """Plot the table: a row for each attribute, a column for each link."""
    names = [*ATTRIBUTES, "mean", "coarse mean"]
    values = [[row[name] for row in chain.values()] for name in names]
    figure, axes = plt.subplots(figsize=(1.5 * len(chain) + 2.2, 6.2), layout="constrained")
    axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=130, aspect="auto")
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            weight = "bold" if names[r] in ("mean", "coarse mean") else "normal"
            axes.text(c, r, f"{value:.0f}", ha="center", va="center", weight=weight)
    axes.set_xticks(range(len(chain)), list(chain), fontsize=9)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.xaxis.tick_top()
    axes.axhline(len(ATTRIBUTES) - 0.5, color="white", linewidth=3)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(title, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def print_chain(chain: Chain) -> None:
    """Print the table: a row for each attribute, a column for each link."""
    columns = [label.replace("\n", " ") for label in chain]
    for number, column in enumerate(columns, start=1):
        print(f"  ({number}) {column}")
    print(
        f"\n{'stated attribute':<18}" + "".join(f"{f'({n})':>8}" for n in range(1, len(chain) + 1))
    )
    for name in [*ATTRIBUTES, "mean", "coarse mean"]:
        print(f"{name:<18}" + "".join(f"{row[name]:8.1f}" for row in chain.values()))


@torch.inference_mode()
def encoder_chain(
    model: Model,
    classifier: nn.Module,
    images: Tensor,
    records: list[dict],
    train: tuple[Tensor, list[dict]],
) -> tuple[Chain, Tensor, Tensor]:
    """Measure the links before the diffusion model.

    Returns them with the image and caption embeddings, (N, D) each.

    images, records: held-out faces, (N, 3, 128, 128) uint8.
    train: faces that the probe is trained on.
    """
    codes = codes_of(records)
    texts, stated = choose_captions(records)
    vae, clip = model.vae, model.clip

    def reconstruct(part: Tensor) -> Tensor:
        decoded = vae.decode(vae.mean_latents(vae.encode_moments(part.float() / 127.5 - 1)))
        return (decoded * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)

    def embed(images: Tensor, name: str) -> Tensor:
        parts = images.split(CHUNK)
        bar = progress(parts, desc=f"CLIP, {name} faces", total=len(parts), unit="batch")
        return torch.cat([clip.encode_images(part) for part in bar])

    rebuilt = torch.cat([reconstruct(part) for part in images.split(50)])
    train_images, train_records = train
    image_embeddings = embed(images, "held-out")
    text_embeddings = clip.encode_texts(texts)
    with torch.inference_mode(False):
        train_embeddings = embed(train_images, "training").clone()
        scale = model.config.train.perturbation or PROBE_SCALE
        probe = train_probe(train_embeddings, codes_of(train_records), scale, steps=3000)

    def ask(embeddings: Tensor) -> Tensor:
        return predict(probe(F.normalize(embeddings, dim=1)))

    chain = {
        "renders": agreement(classify(classifier, images), codes, stated),
        "VAE\nreconstructions": agreement(classify(classifier, rebuilt), codes, stated),
        "CLIP image\nembeddings": agreement(ask(image_embeddings), codes, stated),
        "CLIP caption\nembeddings": agreement(ask(text_embeddings), codes, stated),
    }
    return chain, image_embeddings, text_embeddings


def model_chain(
    model: Model,
    classifier: nn.Module,
    records: list[dict],
    embeddings: Mapping[str, Tensor],
    sampling: Sequence[Sampling],
) -> Chain:
    """Measure the images of the diffusion model, for each sampler setting and condition.

    embeddings: 'image' and 'caption' embeddings of the faces, (N, D).
    """
    codes, (_, stated) = codes_of(records), choose_captions(records)
    conditions_of = {
        "image": F.normalize(embeddings["image"], dim=1),
        "caption": caption_conditions(embeddings["caption"], model.config),
    }
    chain: Chain = {}
    for settings in sampling:
        for source, conditions in conditions_of.items():
            label = f"images from\n{source}, w={settings.cfg_scale}"
            seeds, bar = range(len(records)), label.replace("\n", " ")
            images = model.generate(conditions, seeds, settings, bar)
            chain[label] = agreement(classify(classifier, images), codes, stated)
    return chain


def parse_args() -> argparse.Namespace:
    """Parse the command line; raises UserError if --num is below one."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"),
                        help="model to check; its config names the encoders")  # fmt: skip
    parser.add_argument(
        "--cfg_scale", help="guidance scales, e.g. None,1.5,2 (default: the config's)"
    )
    parser.add_argument("--num_steps", type=int, help="sampler steps (default: the config's)")
    parser.add_argument("--num", type=int, default=500, help="held-out captions")
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="folder that make_faces.py wrote"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/check_prompts"), help="folder to write into"
    )
    args = parser.parse_args()
    if args.num < 1:
        raise UserError(f"--num must be at least 1, not {args.num}")
    return args


def sampler_settings(args: argparse.Namespace, config: Config) -> list[Sampling]:
    """Return the config's sampler settings for each scale of `--cfg_scale`, in bf16."""
    changes: dict[str, Any] = {"amp": "bf16"}
    if args.num_steps:
        changes["num_steps"] = args.num_steps
    scales = [config.sampling.cfg_scale]
    if args.cfg_scale:
        scales = [parse_scale(text) for text in args.cfg_scale.split(",")]
    return [config.sampling.model_copy(update={**changes, "cfg_scale": s}) for s in scales]


def report(chain: Chain, count: int, network: str, out: Path) -> None:
    """Print the table of `count` faces, and write chain.json and chain.png into `out`."""
    what = f"stated attributes shown, % of {count} held-out faces"
    print(f"\n{what}")
    print_chain(chain)
    out.mkdir(parents=True, exist_ok=True)
    (out / "chain.json").write_text(json.dumps(chain, indent=2) + "\n")
    plot_chain(chain, out / "chain.png", f"{what}, {network}")
    print(f"plot: {out / 'chain.png'}")


@one_line_errors
def main() -> None:
    """Measure every link of the chain, and print, write and plot the table."""
    args = parse_args()
    model = Model.load(args.ckpt)
    train = load_faces(args.data / "train")
    images, records = load_faces(args.data / "test", args.num)
    classifier = load_classifier(args.out / "classifier.safetensors", args.data / "train")
    chain, of_images, of_captions = encoder_chain(model, classifier, images, records, train)
    embeddings = {"image": of_images, "caption": of_captions}
    sampling = sampler_settings(args, model.config)
    chain |= model_chain(model, classifier, records, embeddings, sampling)
    report(chain, len(records), str(args.ckpt), args.out)


if __name__ == "__main__":
    main()
