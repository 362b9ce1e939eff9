"""Compare ways to edit faces by words: is the trait there, and are the other attributes kept?

    python research/editing/compare.py words texts:0.7 texts:1 mixed:0.4 caption strength:0.6
    python research/editing/compare.py words --cfg_scale 2 --fresh 0.3 --first 0 --faces 20

Edits held-out rendered faces by each METHOD[:AMOUNT], twelve edits each (faces.py), and asks the
attribute classifier. The renderer makes the true result, of the same face with the trait, so that
a distance to it is known. Settings were chosen on the first 20 faces of each edit (--first 0
--faces 20); reported are the others. Intervals of 95 % are of resampled faces. Results are kept in
--points and only missing ones are made.

Methods: words (`t2f.py --add`), texts (difference of the sentences' embeddings), mixed (embeddings
of image and sentence), caption (a caption of the true result, from the image's own noise), strength
(that caption by SDEdit), target (the true result's embedding), own (inversion alone).
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
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import add_arguments, report, start
from research.attributes.classifier import add_classifier_arguments, classify, load_classifier
from research.editing.faces import ALL_EDITS, EDITS, Faces, faces_of
from research.editing.methods import METHODS, Editor, Setting
from utils.base.files import write_json
from utils.base.progress import progress
from utils.config.command_line import ArgumentParser
from utils.config.parsing import parse_scale

RESAMPLES = 2000
COLUMNS = {  # of each image
    "shown": "trait shown, %",
    "kept": "others kept, %",
    "pixels": "error of pixels",
    "latents": "of latents",
    "cosine": "cosine, %",
}
Figures = dict[str, list[float]]


def parse_setting(text: str) -> tuple[str, float]:
    """Read METHOD or METHOD:AMOUNT."""
    method, _, amount = text.partition(":")
    try:
        value = float(amount or 1)
    except ValueError:
        value = -1.0
    if method not in METHODS or value < 0:
        known = ", ".join(METHODS)
        raise UserError(f"{text}: should be METHOD or METHOD:AMOUNT, methods: {known}")
    return method, value


def parse_args() -> argparse.Namespace:
    """Read the command line; raise UserError for a number that is too small."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("given", nargs="+", metavar="METHOD[:AMOUNT]", help="ways to edit")
    add("--edits", nargs="+", choices=ALL_EDITS, default=list(EDITS), help="edits", metavar="EDIT")
    add("--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="network")
    add("--cfg_scale", type=parse_scale, default=1.5, help="guidance scale")
    add("--fresh", type=float, default=0.0, help="fraction of fresh noise in the start")
    add("--first", type=int, default=20, help="first face of each edit")
    add("--faces", type=int, default=100, help="faces of each edit")
    add("--points", type=Path, default=Path("results/editing/points.json"), help="kept results")
    add_classifier_arguments(parser)
    add_arguments(parser)
    args = parser.parse_args()
    if args.faces < 2 or args.first < 0:
        raise UserError("--faces must be at least 2, and --first at least 0")
    return args


def rms(x: Tensor, y: Tensor) -> Tensor:
    """Return the root mean square difference of each of (N, C, H, W) and its like, (N,)."""
    return (x.float() - y.float()).square().mean(dim=(1, 2, 3)).sqrt()


class EditEvaluator:
    """The attribute classifier, and the true results of an edit."""

    def __init__(self, editor: Editor, classifier: nn.Module, faces: Faces) -> None:
        """Embed and encode the true results."""
        self.editor, self.classifier, self.faces = editor, classifier, faces
        with torch.inference_mode():
            self.embeddings, self.latents = (
                tower(faces.targets) for tower in (editor.embed, editor.encode)
            )

    def figures(self, latents: Tensor, images: Tensor) -> Figures:
        """Return the figures of each edited face; see COLUMNS."""
        codes = classify(self.classifier, images)
        with torch.inference_mode():
            cosines = (self.editor.embed(images) * self.embeddings).sum(dim=1)
        found = {
            "shown": 100 * self.faces.shown(codes).float(),
            "kept": 100 * self.faces.kept(codes),
            "pixels": rms(images, self.faces.targets),
            "latents": rms(latents, self.latents),
            "cosine": 100 * cosines,
        }
        return {key: [round(v, 3) for v in values.tolist()] for key, values in found.items()}


def interval(groups: list[list[float]]) -> tuple[float, float, float]:
    """Return the mean of the groups' means, and its bootstrap interval of 95 %."""
    rng = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for group in groups:
        picked = rng.integers(len(group), size=(RESAMPLES, len(group)))
        means += np.array(group)[picked].mean(axis=1) / len(groups)
    mean = float(np.mean([np.mean(group) for group in groups]))
    low, high = np.quantile(means, (0.025, 0.975))
    return mean, float(low), float(high)


def spelled(groups: list[list[float]], digits: int) -> str:
    """Return the mean with its interval, as the tables have it."""
    mean, low, high = (f"{value:.{digits}f}" for value in interval(groups))
    return f"{mean} ({low} … {high})"


def row(name: str, point: dict[str, Figures]) -> dict[str, Any]:
    """Return a row of the table: the mean over edits with intervals, and the worst edits."""
    digits = {"latents": 3}
    cells: dict[str, Any] = {"method": name, "n": sum(len(f["shown"]) for f in point.values())}
    for key, title in COLUMNS.items():
        cells[title] = spelled([found[key] for found in point.values()], digits.get(key, 1))
    rates = sorted((float(np.mean(found["shown"])), edit) for edit, found in point.items())
    cells["least shown"] = ", ".join(f"{edit} {rate:.0f}" for rate, edit in rates[:3])
    return cells


@one_line_errors
def main() -> None:
    """Edit, measure, print and write the table."""
    args = parse_args()
    settings = [Setting(*parse_setting(text), args.cfg_scale, args.fresh) for text in args.given]
    start(args)
    editor = Editor(args.ckpt)
    classifier = load_classifier(args.classifier, args.data / "train")
    points = json.loads(args.points.read_text(encoding="utf-8")) if args.points.exists() else {}
    keys = {setting: f"{setting.name} faces {args.first}+{args.faces}" for setting in settings}
    for name in progress(args.edits, "edits", len(args.edits), "edit"):
        missing = [s for s in settings if name not in points.get(keys[s], {})]
        if not missing:
            continue
        faces = faces_of(name, args.first, args.faces)
        evaluator = EditEvaluator(editor, classifier, faces)
        for setting in missing:
            found = evaluator.figures(*editor.edit(name, faces, setting))
            points.setdefault(keys[setting], {})[name] = found
            write_json(args.points, points)
    rows = [
        row(setting.name, {name: points[keys[setting]][name] for name in args.edits})
        for setting in settings
    ]
    report(args.out, f"Edits by words: mean of {len(args.edits)} edits", rows)


if __name__ == "__main__":
    main()
