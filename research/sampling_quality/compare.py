"""Compare samplers: quality of the images against the network evaluations that they cost.

    python research/sampling_quality/compare.py --num 500            # all settings; resumes
    python research/sampling_quality/compare.py --num 1000 --only 'fast;heun 20'
    python research/sampling_quality/compare.py --student student.safetensors --only 'fast;students'

Every setting generates the same captions of the demo's test split from equal seeds with the shipped
network; a student (configs/demo/distill.yaml) with its own. The table has the Fréchet distance in
CLIP features to the test images, recall (Kynkäänniemi 2019), CLIP score, the percentage of stated
attributes that the attribute classifier finds (all, and the coarse ones), and the distance of an
image to that of the reference from the same seed (root mean square over pixels and colours, of
255). Intervals are 95 % of a bootstrap over images. For a difference to the reference both settings
are resampled alike, so that its interval is narrower.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch

from benchmarks import timing
from demo.make_faces import ATTRIBUTES
from research.attributes.check_prompts import COARSE, choose_captions
from research.attributes.classifier import (
    add_classifier_arguments,
    classify,
    codes_of,
    load_classifier,
    load_faces,
)
from research.attributes.model import Model
from research.sampling_quality.plot import plot
from research.sampling_quality.settings import Setting, settings_to_compare, student_settings
from utils.config.command_line import ArgumentParser
from utils.evaluation.feature_statistics import FeatureStats
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.metrics import clip_similarities, manifold_metrics
from utils.pretrained.denoisers import load_denoiser
from utils.sampling.image_files import labelled_grid, save_png

CHUNK = 50  # images encoded at once
RESAMPLED = 200  # times, for the bootstrap
GRID_COLUMNS = 8  # images of each setting in --grid


class Properties(NamedTuple):
    """Properties of N images."""

    features: torch.Tensor  # (N, D) CLIP image embeddings
    right: torch.Tensor  # (N, A) bool, True where an attribute is that of the face
    apart: torch.Tensor  # (N,) distance to the image of the reference from the same seed


class Comparison:
    """Generates images of the test captions, keeps them in a folder, and measures them."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the networks and the test faces; raises UserError if something is missing."""
        self.folder, self.num, self.freedom = args.out_dir, args.num, args.freedom
        self.model = Model.load(args.ckpt, [f"sampling.freedom={self.freedom}"])
        images, records = load_faces(args.data / "test")
        records = records[: self.num]
        texts, self.stated = choose_captions(records)
        self.coarse = [list(ATTRIBUTES).index(name) for name in COARSE]
        self.codes = codes_of(records)
        self.texts = self.model.clip.encode_texts(texts)
        self.conditions = self.model.conditions(texts)
        self.real_features = self._embed(images)
        self.real = FeatureStats()
        self.real.update(self.real_features)
        self.classifier = load_classifier(args.classifier, args.data / "train")

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.model.clip.encode_images(part) for part in images.split(CHUNK)])

    def generate(self, name: str, setting: Setting) -> torch.Tensor:
        """Return a setting's images (N, 3, H, W) uint8; generate those that are not kept yet."""
        label = f"{name} freedom {self.freedom:g}"
        file = self.folder / f"{label.replace(' ', '_').replace(',', '')}.pt"
        images = torch.load(file, weights_only=True) if file.exists() else torch.zeros(0)
        done = len(images)
        if done < self.num:
            changes: dict[str, Any] = {"freedom": self.freedom}
            model = self.model
            if setting.student is None:
                changes["cfg_scale"] = model.config.sampling.cfg_scale
            else:
                denoiser, _ = load_denoiser(setting.student)
                model = Model(denoiser, model.config, model.vae, model.clip, model.prior)
            sampling = setting.sampling.model_copy(update=changes)
            seeds = range(done, self.num)
            new = model.generate(self.conditions[done:], seeds, sampling, label)
            images = torch.cat([images, new]) if done else new
            torch.save(images, file)
        return images[: self.num]

    def properties(self, images: torch.Tensor, reference: torch.Tensor) -> Properties:
        """Run CLIP and the classifier on images (N, 3, H, W) uint8, and compare with others."""
        apart = (images.float() - reference.float()).square().flatten(1).mean(dim=1).sqrt()
        return Properties(
            self._embed(images), classify(self.classifier, images) == self.codes, apart
        )

    def metrics(self, found: Properties, rows: np.ndarray) -> np.ndarray:
        """Measure the images `rows`.

        Returns Fréchet distance, CLIP score, % of stated attributes, of coarse ones, distance to
        the reference.
        """
        features = found.features[rows]
        ours = FeatureStats()
        ours.update(features)
        distance = frechet_distance(ours.mu, ours.sigma, self.real.mu, self.real.sigma)
        score = clip_similarities(features, self.texts[rows]).mean()
        stated = self.stated[rows]
        right = found.right[rows] & stated
        shown = 100 * right.sum() / stated.sum()
        coarse = 100 * right[:, self.coarse].sum() / stated[:, self.coarse].sum()
        apart = found.apart[rows].mean()
        return np.array([distance, *(float(x) for x in (score, shown, coarse, apart))])

    def rows(self, found: Mapping[str, Properties]) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Return a row for each setting, the reference first, and its bootstrapped distances."""
        rng, everything = np.random.default_rng(0), np.arange(self.num)
        samples = [rng.integers(self.num, size=self.num) for _ in range(RESAMPLED)]
        resampled = {
            name: np.stack([self.metrics(one, sample) for sample in samples])
            for name, one in found.items()
        }
        reference, rows = next(iter(resampled.values())), []
        for name, one in found.items():
            values = self.metrics(one, everything)
            low, high = np.percentile(resampled[name] - reference, [2.5, 97.5], axis=0)
            real = self.real_features.double()
            rows.append(
                {
                    "setting": name,
                    "Fréchet distance": values[0],
                    "difference of distance, 95 %": f"{low[0]:+.1f} … {high[0]:+.1f}",
                    "recall": manifold_metrics(one.features.double(), real)["recall"],
                    "CLIP score": values[1],
                    "difference of score, 95 %": f"{low[1]:+.2f} … {high[1]:+.2f}",
                    "attributes shown, %": values[2],
                    "difference of attributes, 95 %": f"{low[2]:+.1f} … {high[2]:+.1f}",
                    "coarse ones, %": values[3],
                    "difference of coarse ones, 95 %": f"{low[3]:+.1f} … {high[3]:+.1f}",
                    "distance to the image of the reference": values[4],
                }
            )
        return rows, reference[:, 0]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--num", type=int, default=500, help="images of each setting")
    add("--only", help="names of settings, separated by semicolons; None = all")
    add("--student", type=Path, action="append", default=[], metavar="FILE",
        help="a distilled network to compare too; may be repeated")  # fmt: skip
    add("--reference", default="paper", help="setting with which all others are compared")
    add("--freedom", type=float, default=0.0, help="of all settings, see docs/freedom.md")
    add("--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="network to use")
    add_classifier_arguments(parser)
    kept = Path("results/sampling_quality")
    add("--out_dir", type=Path, default=kept, help="folder that keeps the images")
    add("--plot", type=Path, help="PNG to write; None = none")
    add("--out", type=Path, help="JSON of the table to write; None = none")
    add("--grid", type=Path, help="PNG of the first images of each setting; None = none")
    return parser.parse_args()


def selected_settings(args: argparse.Namespace) -> dict[str, Setting]:
    """Return the settings of `--only`; `--reference` comes first, the others are compared with it.

    Raises UserError for an unknown name.
    """
    students = student_settings(args.student)
    settings = settings_to_compare() | students
    names = list(settings)
    if args.only:
        names = args.only.replace("students", ";".join(students)).split(";")
    names = [args.reference, *names]
    for name in names:
        if name not in settings:
            raise UserError(f"there is no setting '{name}', only: {'; '.join(settings)}")
    return {name: settings[name] for name in names}


@one_line_errors
def main() -> None:
    """Generate the images of all settings, measure them, and write the table and the plot."""
    args = parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    settings = selected_settings(args)
    comparison = Comparison(args)
    images = {name: comparison.generate(name, setting) for name, setting in settings.items()}
    reference = images[args.reference]
    found = {name: comparison.properties(one, reference) for name, one in images.items()}
    if args.grid:
        first = torch.cat([one[:GRID_COLUMNS] for one in images.values()])
        labels = [name for name in images for _ in range(GRID_COLUMNS)]
        grid = labelled_grid(first.permute(0, 2, 3, 1).numpy(), labels, GRID_COLUMNS)
        save_png(grid, args.grid)
    rows, resampled = comparison.rows(found)
    rows = [{"cost": settings[row["setting"]].cost, **row} for row in rows]
    # A bootstrap repeats images, which shifts the distance; only its spread is used.
    low, median, high = np.percentile(resampled, [2.5, 50, 97.5])
    distance = rows[0]["Fréchet distance"]
    band = (distance + low - median, distance + high - median)
    scale = comparison.model.config.sampling.cfg_scale
    guidance = "no guidance" if scale is None else f"guidance {scale:g}"
    title = f"{args.num} images of test captions, {guidance}, freedom {args.freedom:g}"
    notes = [f"Distance of {args.reference}, 95 %: {band[0]:.1f} … {band[1]:.1f} (bootstrap)."]
    timing.report(args.out, f"Quality of sampling: {title}", rows, notes)
    if args.plot:
        curves = [{**row, "curve": settings[row["setting"]].curve} for row in rows]
        plot(curves, band, args.plot, title)


if __name__ == "__main__":
    main()
