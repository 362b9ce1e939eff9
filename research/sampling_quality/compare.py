"""Compare samplers: quality of the pictures against the network evaluations that they cost.

    python research/sampling_quality/compare.py --num 500            # all settings; resumes
    python research/sampling_quality/compare.py --num 1000 --only 'fast;heun 20'
    python research/sampling_quality/compare.py --num 500 --plot docs/sampling.png
    python research/sampling_quality/compare.py --student student.safetensors --only 'fast;students'

Every setting draws the same captions of the demo's test split from the same seeds with the shipped
network; a student (configs/demo/distill.yaml) draws with its own. --freedom draws all of them with
the prior. Six metrics judge the pictures: the Fréchet distance in CLIP features to the test images,
the recall (share of the test images that lie among the pictures, Kynkäänniemi 2019), the CLIP
score, the share of stated attributes that a classifier finds (research/attributes/classifier.py),
also of the
coarse ones, and the distance of a picture to that of the reference from the same seed (root mean
square over pixels and colours, of 255). Intervals are 95 % of a bootstrap over images. For a
difference to the reference both settings are resampled in the same way, so that its interval is
narrower. The reference is `paper`, or that of --reference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import cached_property
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
from benchmarks.sampling_settings import Setting, settings_to_compare, student_settings
from demo.make_faces import ATTRIBUTES
from research.attributes.check_prompts import COARSE, choose_captions
from research.attributes.classifier import classify, codes_of, load_classifier, load_faces
from research.sampling_quality.plot import plot
from utils.base.progress import progress
from utils.config.command_line import HelpFormatter
from utils.evaluation.feature_statistics import FeatureStats
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.metrics import clip_similarities, manifold_metrics
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.pretrained.priors import load_config_prior
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import generate
from utils.sampling.image_files import labelled_grid, save_png

CHUNK = 50  # images drawn and kept at a time
DRAWS = 200  # of the bootstrap
GRID_COLUMNS = 8  # pictures of each setting in --grid


class Evaluated(NamedTuple):
    """Properties of N pictures."""

    features: torch.Tensor  # (N, D) CLIP image embeddings
    right: torch.Tensor  # (N, A) bool, True where an attribute is that of the face
    apart: torch.Tensor  # (N,) distance to the picture of the reference from the same seed


class Pictures:
    """Draws pictures of the test captions, keeps them in a folder, and judges them."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the networks and the test faces; raises UserError if something is missing."""
        self.folder, self.num, self.freedom = args.out_dir, args.num, args.freedom
        self.evaluator_file = args.evaluator or args.out_dir / "classifier.safetensors"
        self.train_faces = args.data / "train"
        self.denoiser, self.config = load_denoiser(args.ckpt)
        self.vae = load_config_autoencoder(self.config)
        self.clip = load_config_clip(self.config)
        images, records = load_faces(args.data / "test")
        records = records[: self.num]
        texts, self.stated = choose_captions(records)
        self.coarse = [list(ATTRIBUTES).index(name) for name in COARSE]
        self.codes = codes_of(records)
        self.texts = self.clip.encode_texts(texts)
        self.conditions = caption_conditions(self.texts, self.config)
        self.prior = None
        if self.freedom:
            self.prior = load_config_prior(self.config, self.clip.identity)
        self.real_features = torch.cat([self.clip.encode_images(x) for x in images.split(CHUNK)])
        self.real = FeatureStats()
        self.real.update(self.real_features)

    @cached_property
    def classifier(self) -> torch.nn.Module:
        """Classifier of attributes, trained on first use."""
        return load_classifier(self.evaluator_file, self.train_faces)

    def draw(self, name: str, setting: Setting) -> torch.Tensor:
        """Return a setting's pictures (N, H, W, 3) uint8; draw those that are not kept yet."""
        kept = f"{name} freedom {self.freedom:g}" if self.freedom else name
        file = self.folder / f"{kept.replace(' ', '_').replace(',', '')}.pt"
        images = torch.load(file, weights_only=True) if file.exists() else torch.zeros(0)
        done = len(images)
        denoiser = self.denoiser
        sampling = setting.sampling.model_copy(update={"freedom": self.freedom})
        if setting.student is None:
            scale = self.config.sampling.cfg_scale
            sampling = sampling.model_copy(update={"cfg_scale": scale})
        elif done < self.num:
            denoiser, _ = load_denoiser(setting.student)
        batches = generate(
            denoiser,
            self.vae,
            self.conditions[done:],
            range(done, self.num),
            sampling,
            prior=self.prior,
            batch_size=CHUNK,
        )
        for _, new in progress(batches, name, -(-max(self.num - done, 0) // CHUNK), "batch"):
            images = torch.cat([images, new]) if len(images) else new
            torch.save(images, file)
        return images[: self.num]

    def evaluate(self, images: torch.Tensor, reference: torch.Tensor) -> Evaluated:
        """Run CLIP and the classifier on pictures (N, H, W, 3) uint8, and compare with others."""
        apart = (images.float() - reference.float()).square().flatten(1).mean(dim=1).sqrt()
        images = images.permute(0, 3, 1, 2)
        features = torch.cat([self.clip.encode_images(part) for part in images.split(CHUNK)])
        return Evaluated(features, classify(self.classifier, images) == self.codes, apart)

    def metrics(self, evaluated: Evaluated, rows: np.ndarray) -> np.ndarray:
        """Measure the pictures `rows`.

        Returns Fréchet distance, CLIP score, % of stated attributes, of coarse ones, distance to
        the reference.
        """
        features = evaluated.features[rows]
        ours = FeatureStats()
        ours.update(features)
        distance = frechet_distance(ours.mu, ours.sigma, self.real.mu, self.real.sigma)
        score = clip_similarities(features, self.texts[rows]).mean()
        stated = self.stated[rows]
        right = evaluated.right[rows] & stated
        shown = 100 * right.sum() / stated.sum()
        coarse = 100 * right[:, self.coarse].sum() / stated[:, self.coarse].sum()
        apart = evaluated.apart[rows].mean()
        return np.array([distance, *(float(x) for x in (score, shown, coarse, apart))])

    def recall(self, evaluated: Evaluated) -> float:
        """Return the share of the test images that lie among the pictures."""
        ours, real = evaluated.features.double(), self.real_features.double()
        return manifold_metrics(ours, real)["recall"]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--num", type=int, default=500, help="pictures of each setting")
    parser.add_argument("--only", help="names of settings, separated by semicolons; None = all")
    parser.add_argument(
        "--student", type=Path, action="append", default=[], metavar="FILE",
        help="a distilled network to compare too; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--reference", default="paper", help="setting with which all others are compared"
    )
    parser.add_argument(
        "--freedom", type=float, default=0.0, help="of all settings, see docs/freedom.md"
    )
    parser.add_argument("--only_draw", action="store_true", help="draw pictures, judge them later")
    parser.add_argument(
        "--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="network to use"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="folder that make_faces.py wrote"
    )
    parser.add_argument(
        "--judge", type=Path, help="trained classifier; None = in --out_dir, trained on first use"
    )
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path("results/sampling_quality"),
        help="folder that keeps the pictures",
    )
    parser.add_argument("--plot", type=Path, help="PNG to write; None = none")
    parser.add_argument("--out", type=Path, help="JSON of the table to write; None = none")
    parser.add_argument(
        "--grid", type=Path, help="PNG of the first pictures of each setting; None = none"
    )
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
    names = names if args.only_draw else [args.reference, *names]
    for name in names:
        if name not in settings:
            raise UserError(f"there is no setting '{name}', only: {'; '.join(settings)}")
    return {name: settings[name] for name in names}


def bootstrap(pictures: Pictures, evaluated: Mapping[str, Evaluated]) -> dict[str, np.ndarray]:
    """Return the metrics (DRAWS, 5) of each setting, for images drawn again with replacement."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(pictures.num, size=pictures.num) for _ in range(DRAWS)]
    return {
        name: np.stack([pictures.metrics(found, draw) for draw in draws])
        for name, found in evaluated.items()
    }


def table_row(
    name: str, setting: Setting, metrics: np.ndarray, differences: np.ndarray, recall: float
) -> dict[str, Any]:
    """Return a setting's row: metrics (5,), and their differences to the reference (DRAWS, 5)."""
    low, high = np.percentile(differences, [2.5, 97.5], axis=0)
    return {
        "setting": name,
        "cost": setting.cost,
        "Fréchet distance": metrics[0],
        "difference of distance, 95 %": f"{low[0]:+.1f} … {high[0]:+.1f}",
        "recall": recall,
        "CLIP score": metrics[1],
        "difference of score, 95 %": f"{low[1]:+.2f} … {high[1]:+.2f}",
        "attributes shown, %": metrics[2],
        "difference of attributes, 95 %": f"{low[2]:+.1f} … {high[2]:+.1f}",
        "coarse ones, %": metrics[3],
        "difference of coarse ones, 95 %": f"{low[3]:+.1f} … {high[3]:+.1f}",
        "distance to the picture of the reference": metrics[4],
    }


def interval(distance: float, resampled: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a distance from its bootstrap (DRAWS,).

    A bootstrap repeats images, which shifts the distance; only its spread is used.
    """
    low, median, high = np.percentile(resampled, [2.5, 50, 97.5])
    return distance + low - median, distance + high - median


@one_line_errors
def main() -> None:
    """Draw the pictures of all settings, judge them, and write the table and the plot."""
    args = parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    settings = selected_settings(args)
    pictures = Pictures(args)
    generated = {name: pictures.draw(name, setting) for name, setting in settings.items()}
    if args.only_draw:
        return
    evaluated = {
        name: pictures.evaluate(images, generated[args.reference])
        for name, images in generated.items()
    }
    if args.grid:
        shown = torch.cat([images[:GRID_COLUMNS] for images in generated.values()]).numpy()
        captions = [name for name in generated for _ in range(GRID_COLUMNS)]
        save_png(labelled_grid(shown, captions, GRID_COLUMNS), args.grid)

    resampled, everything = bootstrap(pictures, evaluated), np.arange(args.num)
    rows = []
    for name, setting in settings.items():
        metrics = pictures.metrics(evaluated[name], everything)
        differences = resampled[name] - resampled[args.reference]
        recall = pictures.recall(evaluated[name])
        rows.append(table_row(name, setting, metrics, differences, recall))
    band = interval(rows[0]["Fréchet distance"], resampled[args.reference][:, 0])
    scale = pictures.config.sampling.cfg_scale
    guidance = "no guidance" if scale is None else f"guidance {scale:g}"
    generated_with = f"{guidance}, freedom {args.freedom:g}" if args.freedom else guidance
    title = f"{args.num} pictures of test captions, {generated_with}, shipped network"
    notes = [f"Distance of {args.reference}, 95 %: {band[0]:.1f} … {band[1]:.1f} (bootstrap)."]
    timing.report(args.out, f"Quality of sampling: {title}", rows, notes)
    if args.plot:
        with_curves = [{**row, "curve": settings[row["setting"]].curve} for row in rows]
        plot(with_curves, band, args.plot, title)


if __name__ == "__main__":
    main()
