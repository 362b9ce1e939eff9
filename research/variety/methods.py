"""Compare ways to draw many faces of one sentence: how varied they are, and how true to it.

    python research/variety/methods.py                 # embeddings alone: minutes
    python research/variety/methods.py --pictures      # pictures of the shipped network: hours

No way reads a caption in training. Each turns the condition of a sentence into another one for each
seed, and has a strength: the level of noise that it is turned by, the number of nearest training
images that one is chosen from, or the freedom of the prior. Twelve short sentences are drawn with
many seeds, captions of held-out faces once (research/variety/measures.py). A probe names the
attributes of the
embeddings, with --pictures the judge of research/attributes/check_prompts.py those of the pictures.

Writes the figures way by way, and a second start goes on with those that are missing. Plots them,
with a curve for each way. Needs the demo's data (`make demo`). Give --pictures another --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
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

from models.samplers import SeededNoise
from research.attributes.check_handwritten import read_captions
from research.attributes.check_prompts import agreement, choose_captions
from research.attributes.classifier import classify, codes_of, load_classifier, load_records
from research.variety.check import add_point, check_captions, held_out_embeddings
from research.variety.measures import (
    PROMPTS,
    Draw,
    Evaluator,
    classify_generated,
    closeness,
    embedding_classifier,
    figures,
)
from research.variety.plot import plot_trade, read_points
from utils.config.command_line import HelpFormatter
from utils.config.schema import Config
from utils.data.embeddings import read_directions
from utils.data.lmdb_reader import LMDBReader
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import read_config
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.pretrained.priors import read_prior
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import generate

CHECKPOINT = Path("assets/demo/dit.safetensors")
# The draws of a way have seeds of their own: those of the pictures draw the latents.
FIRST_SEED = 1_000_000
STRENGTHS: dict[str, list[float]] = {
    "literal": [0],
    "noise": [0.3, 0.7, 1.0, 1.4, 2.0],
    "a near image": [10, 50, 200, 1000],
    "mixed with a near image": [10, 50, 200, 1000],
    "prior": [0.4, 0.6, 0.7, 0.8, 1.0, 1.3],
}

Way = Callable[[Tensor, SeededNoise], Tensor]  # conditions (B, D), noise of B seeds → (B, D)


def ways(images: Tensor, config: Config) -> dict[str, Callable[[float], Way]]:
    """Return name → function of a strength that returns the way; images: training set, (N, D)."""
    if config.encoders.prior is None:
        raise UserError("encoders.prior: not set in the config; train one: python train_prior.py")
    prior, _ = read_prior(config.encoders.prior)

    def near(y: Tensor, noise: SeededNoise, count: float) -> Tensor:
        nearest = (y @ images.T).topk(int(count), dim=1).indices
        return images[nearest.gather(1, noise.randint(int(count))[:, None])[:, 0]]

    def mixed(y: Tensor, noise: SeededNoise, count: float) -> Tensor:
        return F.normalize(y + near(y, noise, count), dim=1)

    def noisy(y: Tensor, noise: SeededNoise, level: float) -> Tensor:
        return F.normalize(y + level * F.normalize(noise.randn(y.shape[1:]), dim=1), dim=1)

    def generated(y: Tensor, noise: SeededNoise, freedom: float) -> Tensor:
        return prior.sample(y, noise.randn(y.shape[1:]), freedom)

    return {
        "literal": lambda _: lambda y, noise: y,
        "noise": lambda level: partial(noisy, level=level),
        "a near image": lambda count: partial(near, count=count),
        "mixed with a near image": lambda count: partial(mixed, count=count),
        "prior": lambda freedom: partial(generated, freedom=freedom),
    }


class Comparison:
    """All that is needed to measure a way, loaded once."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Raise UserError if data are missing."""
        self.args = args
        self.config = read_config(CHECKPOINT, ["sampling.freedom=0"])
        self.clip = load_config_clip(self.config)
        if self.config.data.feat_path is None:
            raise UserError(f"{CHECKPOINT}: its config does not set data.feat_path")
        train = LMDBReader(self.config.data.feat_path)
        self.ways = ways(read_directions(train, train.info.length), self.config)
        self.texts, self.stated = read_captions(PROMPTS)
        self.records = load_records(args.data / "test", args.captions)
        self.reference = held_out_embeddings(self.config)
        if args.pictures:
            self.denoiser, _ = load_denoiser(CHECKPOINT, config=self.config)
            self.vae = load_config_autoencoder(self.config)
            evaluator = load_classifier(args.judges / "classifier.safetensors", args.data / "train")
            self.name: Evaluator = partial(classify, evaluator)
        else:
            records, probe = load_records(args.data / "train"), args.judges / "probe.safetensors"
            self.name = embedding_classifier(train, records, probe)

    def draw(self, way: Way, texts: list[str], seeds: list[int]) -> Tensor:
        """Return the embeddings (B, D) of a way, or its pictures (B, 3, S, S)."""
        conditions = caption_conditions(self.clip.encode_texts(texts), self.config)
        y = way(conditions, SeededNoise([FIRST_SEED + seed for seed in seeds]))
        if not self.args.pictures:
            return y
        settings, size = self.config.sampling, len(seeds)
        batches = generate(self.denoiser, self.vae, y, seeds, settings, batch_size=size)
        return torch.cat([images for _, images in batches]).permute(0, 3, 1, 2)

    def measure(self, method: str, strength: float) -> dict[str, Any]:
        """Return the figures of a way at one strength, as research/variety/check.py writes them."""
        draw = partial(self.draw, self.ways[method](strength))
        codes = classify_generated(draw, self.name, self.texts, self.args.seeds)
        return {
            "method": method,
            "strength": strength,
            "model": CHECKPOINT.name,
            "settings": ["pictures" if self.args.pictures else "embeddings"],
            **figures(codes, self.stated),
            "captions": self._captions(draw),
        }

    def _captions(self, draw: Draw) -> dict[str, Any]:
        if self.args.pictures:
            return check_captions(draw, self.name, self.records, self.reference, self.config)
        texts, stated = choose_captions(self.records)
        y = draw(texts, list(range(len(texts))))
        shown = agreement(self.name(y), codes_of(self.records), stated)["mean"]
        return {"attributes": shown, **closeness(y, F.normalize(self.reference, dim=1))}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--pictures", action="store_true", help="draw and judge pictures")
    parser.add_argument("--seeds", type=int, default=48, help="draws of each short sentence")
    parser.add_argument("--captions", type=int, default=300, help="captions of held-out faces")
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="the demo's faces")
    parser.add_argument(
        "--judges", type=Path, default=Path("results/check_prompts"), help="folder of the judges"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/benchmarks/variety_methods.json"),
        help="JSON file of figures, gone on with if it is there",
    )
    parser.add_argument(
        "--plot", type=Path, default=Path("docs/variety_methods.png"), help="PNG to write"
    )
    args = parser.parse_args()
    if args.seeds < 2 or args.captions < 10:
        raise UserError("--seeds must be at least 2, and --captions at least 10")
    return args


@one_line_errors
def main() -> None:
    """Measure every way at every strength that the file lacks, and plot all."""
    args = parse_args()
    comparison = Comparison(args)
    done = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else []
    there = {(point["method"], point["strength"]) for point in done}
    for method, strengths in STRENGTHS.items():
        for strength in strengths:
            if (method, strength) not in there:
                point = comparison.measure(method, strength)
                add_point(point, args.out)
                print(f"{method} {strength:g}: variety {point['ratio']:.2f} of the data's, "
                      f"stated {point['stated']:.1f} %")  # fmt: skip
    plot_trade(read_points(args.out), args.plot)
    print(f"figures: {args.out}, plot: {args.plot}")


if __name__ == "__main__":
    main()
