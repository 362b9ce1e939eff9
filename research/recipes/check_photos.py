"""Measure a network for photographs: what its images show, beside real photographs.

    python research/recipes/check_photos.py results/photos/checkpoints/0002400.pt
    python research/recipes/check_photos.py FILE sampling.cfg_scale=3 --seeds 32

Prints how often each sentence of research/photos/sentences.yaml is shown, with Wilson's intervals,
and all metrics of docs/recipes.md#photographs. Needs the link that `make photos` makes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
from benchmarks.timing import report, start
from research.recipes.photos import PhotoEvaluation
from research.recipes.results import COLUMNS, real_images
from utils.config.command_line import ArgumentParser
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import read_config


def parse_args() -> argparse.Namespace:
    """Read the command line; raise UserError for a number that is too small."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("ckpt", type=Path, metavar="FILE", help="checkpoint or release of the network")
    add("overrides", nargs="*", metavar="key=value", help="config keys to set")
    add("--data", type=Path, default=Path("data/photos"), help="folder of the photographs")
    add("--images", type=int, default=247, help="held-out captions to generate")
    add("--seeds", type=int, default=PhotoEvaluation.SEEDS, help="images of each sentence")
    add("--threads", type=int, default=2, help="processor cores to use")
    add("--out", type=Path, default=Path("results/check_photos.json"), help="JSON file to write")
    args = parser.parse_intermixed_args()
    if min(args.images, args.seeds + 1) < 2:
        raise UserError("--images must be at least 2, --seeds at least 1")
    return args


def shown(found: Mapping[str, Any]) -> str:
    """Return a rate with its interval: `75 % (41 … 93)`."""
    if found["rate"] is None:
        return "–"
    return f"{found['rate']:.0f} % ({found['low']:.0f} … {found['high']:.0f})"


def rows_of(evaluation: PhotoEvaluation, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each sentence; those of one trait have the rates of real photographs."""
    real, rows = metrics["real"], []
    single = {trait.sentence: name for name, trait in evaluation.sentences.traits.items()}
    for text, traits in evaluation.sentences.stated.items():
        found, name = metrics["sentences"][text], single.get(text)
        each = " and ".join(f"{found['each'][trait]:.0f}" for trait in traits)
        test, train = (
            f"{shown(real[key][name])}, n = {real[key][name]['n']}" if name else "–"
            for key in ("traits", "traits_of_training")
        )
        rows.append(
            {
                "sentence": text,
                "states": " and ".join(traits),
                "seen": shown(found),
                "each, %": each,
                "in held-out photographs": test,
                "in training photographs": train,
            }
        )
    return rows


@one_line_errors
def main() -> None:
    """Generate, measure, print both tables, and write the JSON."""
    args = parse_args()
    start(args)
    config = read_config(args.ckpt, args.overrides) if args.overrides else None
    denoiser, config = load_denoiser(args.ckpt, config=config)
    evaluation = PhotoEvaluation(config, args.data, args.images, args.seeds)
    metrics = evaluation.evaluate(denoiser.to(evaluation.device), config)
    notes = [
        f"{title}: {metrics[key]:{form}}"
        for key, (title, form) in COLUMNS.items()
        if metrics.get(key) is not None
    ]
    notes.append(real_images(metrics["real"]))
    title = f"{args.ckpt}: {args.seeds} images of each sentence"
    report(args.out, title, rows_of(evaluation, metrics), notes, data={"metrics": metrics})


if __name__ == "__main__":
    main()
