"""Measure the faces of short sentences: their variety, and if they show what a sentence states.

    python research/variety/check.py                                  # the shipped model
    python research/variety/check.py sampling.freedom=0.5 --method prior --strength 0.5
    python research/variety/check.py --ckpt results/demo/checkpoints/0000900.pt --captions 0

Draws each sentence of research/variety/short_prompts.jsonl with many seeds, and each caption of
some held-out
faces once. A judge names the attributes of the pictures. research/variety/measures.py has the
measures. Needs
the demo's faces and their embeddings (`make demo`). Adds the figures to a JSON list, in the place
of those of the same model, method and strength.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch
from torch import Tensor

from research.attributes.check_handwritten import read_captions
from research.attributes.check_prompts import agreement, choose_captions
from research.attributes.classifier import classify, codes_of, load_classifier, load_records
from research.variety.measures import (
    AT_ONCE,
    PROMPTS,
    Draw,
    Evaluator,
    classify_generated,
    closeness,
    data_codes,
    faces_that_show,
    figures,
    wanted_codes,
)
from utils.base.files import write_json
from utils.base.progress import progress
from utils.base.text import aligned
from utils.config.command_line import HelpFormatter
from utils.config.parsing import seeds_from
from utils.config.schema import Config
from utils.data.lmdb_reader import LMDBReader
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import read_config
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.pretrained.priors import load_config_prior
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import generate


def parse_args() -> argparse.Namespace:
    """Parse the command line; raise UserError for a number that is too small or a missing file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. sampling.seed=7"
    )
    parser.add_argument(
        "--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="model to check"
    )
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="sentences, JSON lines")
    parser.add_argument("--seeds", type=int, default=48, help="pictures of each sentence")
    parser.add_argument(
        "--captions", type=int, default=300, help="captions of held-out faces; 0 leaves them out"
    )
    parser.add_argument("--method", default="today", help="name of the method, for the plot")
    parser.add_argument("--strength", type=float, default=0.0, help="its strength, for the plot")
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="the demo's faces")
    parser.add_argument(
        "--classifier",
        type=Path,
        default=Path("results/check_prompts/classifier.safetensors"),
        help="judge of attributes, trained on first use; research/attributes/check_prompts.py "
        "uses it too",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/variety/points.json"), help="file to add them to"
    )
    args = parser.parse_intermixed_args()
    if args.seeds < 2:
        raise UserError(f"--seeds must be at least 2, not {args.seeds}")
    if args.captions and args.captions < 10:
        raise UserError(f"--captions must be 0 or at least 10, not {args.captions}")
    if not args.prompts.is_file():
        raise UserError(f"--prompts: {args.prompts} is not a file")
    return args


def generation(ckpt: Path, overrides: list[str]) -> tuple[Draw, Config]:
    """Return the method that a model and its settings are: sentences and seeds → (B, 3, S, S)."""
    denoiser, config = load_denoiser(ckpt, config=read_config(ckpt, overrides))
    vae, clip = load_config_autoencoder(config), load_config_clip(config)
    prior = load_config_prior(config, clip.identity)

    def draw(texts: list[str], seeds: list[int]) -> Tensor:
        conditions = caption_conditions(clip.encode_texts(texts), config)
        batches = generate(
            denoiser, vae, conditions, seeds, config.sampling, prior=prior, batch_size=len(seeds)
        )
        return torch.cat([images for _, images in batches]).permute(0, 3, 1, 2)

    return draw, config


def held_out_embeddings(config: Config) -> Tensor:
    """Return the CLIP embeddings of all held-out faces, (M, D); raise UserError without them."""
    if config.eval.image_feat_path is None:
        raise UserError("eval.image_feat_path: not set in the config; set it, or use --captions 0")
    held_out = LMDBReader(config.eval.image_feat_path)
    return torch.from_numpy(held_out.read(np.arange(held_out.info.length)))


def check_captions(
    draw: Draw,
    name: Evaluator,
    records: list[dict],
    reference: Tensor,
    config: Config,
) -> dict[str, Any]:
    """Draw one caption of each held-out face, and compare the pictures with all held-out faces.

    reference: (M, D) of `held_out_embeddings`. Returns `attributes`, the percentage of stated
    attributes shown (mean over attributes), and `closeness` of CLIP embeddings.
    """
    texts, stated = choose_captions(records)
    clip, every = load_config_clip(config), seeds_from(config.sampling.seed, len(texts))
    shown, features = [], []
    for rows in progress(torch.arange(len(texts)).split(AT_ONCE), "captions", unit="batch"):
        numbers = rows.tolist()
        seeds = [every[i] for i in numbers]
        pictures = draw([texts[i] for i in numbers], seeds)
        shown.append(name(pictures))
        features.append(clip.encode_images(pictures))
    row = agreement(torch.cat(shown), codes_of(records), stated)
    return {"attributes": row["mean"], **closeness(torch.cat(features), reference)}


def print_point(point: dict[str, Any], texts: list[str]) -> None:
    """Print the figures of each sentence and of all."""

    def cells(label: str, row: dict[str, Any]) -> tuple[str, ...]:
        stated = "–" if row["stated"] is None else f"{row['stated']:.1f} %"
        return label, stated, *(f"{row[key]:.2f}" for key in ("variety", "ratio", "overlap"))

    header = ("sentence", "stated", "variety", "of the data's", "overlap")
    rows = [cells(text, row) for text, row in zip(texts, point["prompts"], strict=True)]
    print(aligned([header, *rows, cells("all", point)], left=1))
    if found := point["captions"]:
        print(
            f"\n{found['n']} captions of held-out faces: {found['attributes']:.1f} % of what they "
            f"state is shown, Fréchet distance {found['frechet_distance']:.1f}, precision "
            f"{found['precision']:.2f}, recall {found['recall']:.2f}"
        )


def add_point(point: dict[str, Any], path: Path) -> None:
    """Add the figures to a JSON list, in the place of those of the same model and settings."""
    same = ("model", "method", "strength", "settings")
    points = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    others = [old for old in points if any(old[key] != point[key] for key in same)]
    write_json(path, [*others, point])


@one_line_errors
def main() -> None:
    """Draw, judge, print the figures, and add them to the file of points."""
    args = parse_args()
    started = time.process_time()
    texts, stated = read_captions(args.prompts)
    for states in wanted_codes(stated):
        faces_that_show(states, data_codes())  # raises now rather than after the drawing
    draw, config = generation(args.ckpt, args.overrides)
    records, reference = [], torch.empty(0)
    if args.captions:
        records = load_records(args.data / "test", args.captions)
        reference = held_out_embeddings(config)
    name = partial(classify, load_classifier(args.classifier, args.data / "train"))
    point = {
        "method": args.method,
        "strength": args.strength,
        "model": str(args.ckpt),
        "settings": args.overrides,
        **figures(classify_generated(draw, name, texts, args.seeds, config.sampling.seed), stated),
        "captions": None,
    }
    if args.captions:
        point["captions"] = check_captions(draw, name, records, reference, config)
    point["cpu_seconds"] = round(time.process_time() - started)
    print_point(point, texts)
    add_point(point, args.out)
    print(f"\nfigures: {args.out}")


if __name__ == "__main__":
    main()
