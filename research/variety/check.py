"""Measure the faces of short sentences: their variety, and if they show what a sentence states.

    python research/variety/check.py                                  # the shipped model
    python research/variety/check.py sampling.freedom=0.5
    python research/variety/check.py --ckpt results/demo/checkpoints/0000900.pt --captions 0

Generates each sentence of research/variety/short_prompts.jsonl with many seeds, and one caption of
each of some held-out faces. A classifier names the attributes of the images; measures.py has the
measures. Needs the demo's faces and their embeddings (`make demo`). Adds the figures to a JSON
list, in the place of those of the same model and settings.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch
from torch import Tensor, nn

from research.attributes.check_handwritten import read_captions
from research.attributes.check_prompts import agreement, choose_captions
from research.attributes.classifier import (
    add_classifier_arguments,
    classify,
    codes_of,
    load_classifier,
    load_records,
)
from research.attributes.model import Model
from research.variety.measures import (
    PROMPTS,
    closeness,
    data_codes,
    faces_that_show,
    figures,
    wanted_codes,
)
from utils.base.files import write_json
from utils.base.text import aligned
from utils.config.command_line import ArgumentParser
from utils.config.parsing import seeds_from
from utils.config.sampling_sections import Sampling
from utils.config.schema import Config
from utils.data.lmdb_reader import LMDBReader


def parse_args() -> argparse.Namespace:
    """Parse the command line; raise UserError for a number that is too small or a missing file."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. sampling.seed=7"
    )
    add("--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="model to check")
    add("--prompts", type=Path, default=PROMPTS, help="sentences, JSON lines")
    add("--seeds", type=int, default=48, help="images of each sentence")
    add("--captions", type=int, default=300, help="captions of held-out faces; 0 leaves them out")
    add_classifier_arguments(parser)
    out = Path("results/variety/points.json")
    add("--out", type=Path, default=out, help="file to add the figures to")
    args = parser.parse_intermixed_args()
    if args.seeds < 2:
        raise UserError(f"--seeds must be at least 2, not {args.seeds}")
    if args.captions and args.captions < 10:
        raise UserError(f"--captions must be 0 or at least 10, not {args.captions}")
    if not args.prompts.is_file():
        raise UserError(f"--prompts: {args.prompts} is not a file")
    return args


def held_out_embeddings(config: Config) -> Tensor:
    """Return the CLIP embeddings of all held-out faces, (M, D); raise UserError without them."""
    if config.eval.image_feat_path is None:
        raise UserError("eval.image_feat_path: not set in the config; set it, or use --captions 0")
    held_out = LMDBReader(config.eval.image_feat_path)
    return torch.from_numpy(held_out.read(np.arange(held_out.info.length)))


def check_sentences(
    model: Model,
    classifier: nn.Module,
    texts: list[str],
    stated: list[dict[str, str]],
    seeds: int,
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """Generate each sentence `seeds` times; return the `figures` of the images."""
    conditions = model.conditions(texts).repeat_interleave(seeds, dim=0)
    first = model.config.sampling.seed
    seeds_of_all = range(first, first + len(conditions))
    images = model.generate(conditions, seeds_of_all, sampling, "sentences")
    return figures(classify(classifier, images).unflatten(0, (len(texts), seeds)), stated)


def check_captions(
    model: Model, classifier: nn.Module, records: list[dict], reference: Tensor
) -> dict[str, Any]:
    """Generate one caption of each held-out face, and compare with all held-out faces.

    reference: (M, D) of `held_out_embeddings`. Returns `attributes`, the percentage of stated
    attributes shown (mean over attributes), and `closeness` of CLIP embeddings.
    """
    texts, stated = choose_captions(records)
    seeds = seeds_from(model.config.sampling.seed, len(texts))
    images = model.generate(model.conditions(texts), seeds, label="captions")
    row = agreement(classify(classifier, images), codes_of(records), stated)
    features = torch.cat([model.clip.encode_images(part) for part in images.split(50)])
    return {"attributes": row["mean"], **closeness(features, reference)}


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


@one_line_errors
def main() -> None:
    """Generate, classify, print the figures, and add them to the file of points."""
    args = parse_args()
    started = time.process_time()
    texts, stated = read_captions(args.prompts)
    for states in wanted_codes(stated):
        faces_that_show(states, data_codes())  # raises now rather than after the sampling
    model = Model.load(args.ckpt, args.overrides)
    records, reference = [], torch.empty(0)
    if args.captions:
        records = load_records(args.data / "test", args.captions)
        reference = held_out_embeddings(model.config)
    classifier = load_classifier(args.classifier, args.data / "train")
    point = {
        "model": str(args.ckpt),
        "settings": args.overrides,
        **check_sentences(model, classifier, texts, stated, args.seeds),
        "captions": None,
    }
    if args.captions:
        point["captions"] = check_captions(model, classifier, records, reference)
    point["cpu_seconds"] = round(time.process_time() - started)
    print_point(point, texts)
    points = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else []
    others = [old for old in points if any(old[k] != point[k] for k in ("model", "settings"))]
    write_json(args.out, [*others, point])
    print(f"\nfigures: {args.out}")


if __name__ == "__main__":
    main()
