"""Measure how often a network of rendered faces shows each value of each attribute.

    python research/audit/shown.py results/own/checkpoints/0000390.pt --out shown.json
    python research/audit/shown.py A.pt B.pt C.pt sampling.freedom=1 --words words.txt

Each sentence states one value ("a person with red hair"). Writes the percentage of its images in
which the attribute classifier finds it, as a mean over the networks; --words keeps the sentences.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import torch
from torch import nn

from demo.make_faces import ATTRIBUTES
from research.attributes.classifier import add_classifier_arguments, classify, load_classifier
from research.attributes.model import Model
from research.audit.faces import sentences
from utils.base.files import write_json, write_text
from utils.config.command_line import ArgumentParser


def parse_args() -> argparse.Namespace:
    """Read the command line; raise UserError if there is no image to generate."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("given", nargs="+", metavar="FILE", help="networks, and key=value for their configs")
    add("--seeds", type=int, default=16, help="images of each sentence and network")
    add("--words", type=Path, help="text file of the sentences to write, for tools/audit.py")
    add("--out", type=Path, default=Path("results/audit/shown.json"), help="JSON file to write")
    add_classifier_arguments(parser)
    args = parser.parse_intermixed_args()
    if args.seeds < 1:
        raise UserError("--seeds must be at least 1")
    return args


def shown_by(model: Model, classifier: nn.Module, seeds: int) -> dict[str, float]:
    """Return the percentage of `seeds` images of each sentence that show what it states."""
    stated, names = sentences(), list(ATTRIBUTES)
    conditions = model.conditions(list(stated)).repeat_interleave(seeds, dim=0)
    images = model.generate(conditions, [*range(seeds)] * len(stated), label="sentences")
    codes = classify(classifier, images).unflatten(0, (-1, seeds))  # (P, S, A)
    found = {}
    for (text, (name, value)), seen in zip(stated.items(), codes, strict=True):
        hits = seen[:, names.index(name)] == ATTRIBUTES[name].index(value)
        found[text] = 100 * float(hits.float().mean())
    return found


@one_line_errors
def main() -> None:
    """Generate, classify, and write the rates."""
    args = parse_args()
    overrides = [word for word in args.given if "=" in word]
    networks = [Path(word) for word in args.given if "=" not in word]
    if not networks:
        raise UserError("name a network, e.g. results/own/checkpoints/0000390.pt")
    classifier = load_classifier(args.classifier, args.data / "train")
    rates = [shown_by(Model.load(file, overrides), classifier, args.seeds) for file in networks]
    mean = {
        text: float(torch.tensor([rate[text] for rate in rates]).mean()) for text in sentences()
    }
    write_json(args.out, mean)
    if args.words:
        write_text(args.words, "".join(f"{text}\n" for text in mean))
    print(f"{args.out}: {len(mean)} sentences, mean {sum(mean.values()) / len(mean):.1f} %")


if __name__ == "__main__":
    main()
