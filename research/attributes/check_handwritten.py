"""Measure how often images show what sentences state that the demo's grammar cannot make.

    python research/attributes/check_handwritten.py           # needs the faces: demo/make_faces.py
    python research/attributes/check_handwritten.py --ckpt results/demo/checkpoints/0000900.pt

The sentences in research/attributes/handwritten_captions.jsonl were written by hand. Each line has
a sentence and the attributes that it states. The network generates several images of each, and the
attribute classifier names what they show.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
from torch import Tensor

from demo.make_faces import ATTRIBUTES
from research.attributes.classifier import classify, load_classifier
from research.attributes.model import Model
from utils.base.files import write_json
from utils.base.text import lines_of
from utils.config.command_line import ArgumentParser
from utils.config.parsing import parse_scale

CAPTIONS = Path(__file__).with_name("handwritten_captions.jsonl")


def read_captions(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read sentences and the attributes that each states: name → value.

    Raise UserError for a line that is not JSON, and for attributes that the demo does not have.
    """
    texts, stated = [], []
    for number, line in enumerate(lines_of(path.read_text(encoding="utf-8")), start=1):
        try:
            row = json.loads(line)
            text, states = str(row["text"]), dict(row["states"])
        except (ValueError, KeyError, TypeError) as fault:
            raise UserError(f'{path}, line {number}: expected {{"text", "states"}}') from fault
        for name, value in states.items():
            if value not in ATTRIBUTES.get(name, ()):
                raise UserError(f"{path}, line {number}: no attribute {name} = {value}")
        texts.append(text)
        stated.append(states)
    if not texts:
        raise UserError(f"{path}: no sentences there")
    return texts, stated


def fraction_shown(shown: Tensor, stated: list[dict[str, str]]) -> dict[str, Any]:
    """Return the percentages of stated attributes that images show.

    shown: (captions, seeds, A) int64, attributes of the images.
    The keys are "all", "captions" (a percentage each), and the attributes.
    """
    hits: dict[str, list[float]] = {}
    captions = []
    for images, states in zip(shown, stated, strict=True):
        of_caption = []
        for name, value in states.items():
            column = images[:, list(ATTRIBUTES).index(name)]
            right = (column == ATTRIBUTES[name].index(value)).double().mean().item()
            hits.setdefault(name, []).append(100 * right)
            of_caption.append(100 * right)
        captions.append(sum(of_caption) / len(of_caption))
    every = [hit for found in hits.values() for hit in found]
    means = {name: sum(hits[name]) / len(hits[name]) for name in ATTRIBUTES if name in hits}
    return {"all": sum(every) / len(every), "captions": captions, **means}


def parse_args() -> argparse.Namespace:
    """Read the command line; raise UserError if --seeds is below one."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="model to check"
    )
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="sentences, JSON lines")
    parser.add_argument("--seeds", type=int, default=4, help="images of each sentence")
    parser.add_argument(
        "--cfg_scale", type=parse_scale, help="guidance scale (default: the config's)"
    )
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="the demo's faces")
    parser.add_argument(
        "--out", type=Path, default=Path("results/check_prompts"), help="folder to write into"
    )
    args = parser.parse_args()
    if args.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {args.seeds}")
    if not args.captions.is_file():
        raise UserError(f"--captions: {args.captions} is not a file")
    return args


@one_line_errors
def main() -> None:
    """Generate images of the sentences, classify them, and print and write the percentages."""
    args = parse_args()
    texts, stated = read_captions(args.captions)
    model = Model.load(args.ckpt)
    sampling = model.config.sampling.model_copy(update={"amp": "bf16"})
    if args.cfg_scale is not None:
        sampling = sampling.model_copy(update={"cfg_scale": args.cfg_scale})
    classifier = load_classifier(args.out / "classifier.safetensors", args.data / "train")
    conditions = model.conditions(texts).repeat_interleave(args.seeds, dim=0)
    images = model.generate(conditions, range(len(conditions)), sampling, "images")
    shown = classify(classifier, images).unflatten(0, (len(texts), args.seeds))
    table = fraction_shown(shown, stated)
    for name, value in table.items():
        if name != "captions":
            print(f"{name:<18}{value:6.1f} %")
    worst = sorted(zip(table["captions"], texts, strict=True))[:5]
    print("\nthe sentences that are followed least:")
    for value, text in worst:
        print(f"{value:6.1f} %  {text}")
    write_json(args.out / "handwritten.json", table)
    print(f"\n{args.out / 'handwritten.json'}: {len(texts)} sentences, {args.seeds} images each")


if __name__ == "__main__":
    main()
