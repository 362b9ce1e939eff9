"""Measure the angle between a text and its image, and how often perturbations exceed it.

    python research/gap/modality_gap.py                               # the config's test split
    python research/gap/modality_gap.py --experiment_dir results/own
    python research/gap/modality_gap.py --config X.yaml --split train
    python research/gap/modality_gap.py --images lmdb/clip_img --texts lmdb/clip_txt
    python research/gap/modality_gap.py gaussian:2 fixed:1.5          # other perturbations

Prints the cosines between images and their own texts, images and other texts, two images, and two
texts, and the distance between the means of images and texts. Then prints, for each perturbation,
the fraction of training angles above the median angle between image and text. Suggests a fixed and
a gaussian perturbation of this angle. Writes gap.png, gap.json and gap.csv into --out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, note
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch
from matplotlib.figure import Figure

from models.geometry import Gap, gaussian_for_angle, modality_gap, scale_for_angle
from models.perturbation import Perturbation
from research.gap.embeddings import open_embeddings, read_pairs
from research.gap.perturbations import (
    PUBLISHED,
    distribution,
    parse_perturbation,
    perturbation_angles,
)
from research.gap.plots import plot_fractions_above, plot_histograms
from utils.base.files import write_csv, write_json
from utils.base.text import aligned
from utils.config.command_line import ArgumentParser, add_config_option
from utils.config.parsing import parse_seed
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.plots import save_plot, style_axis
from utils.pretrained.effective_config import load_effective_config

KEYS = {  # split → config keys of its image embeddings and its text embeddings
    "train": ("data.feat_path", "data.text_feat_path"),
    "test": ("eval.image_feat_path", "eval.feat_path"),
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "settings",
        nargs="*",
        default=PUBLISHED,
        metavar="kind:scale",
        help="perturbations to compare with the gap",
    )
    add_config_option(parser, "YAML file that names the databases")
    add("--split", choices=tuple(KEYS), default="test", help="split of the config to measure")
    add("--images", type=Path, help="database of image embeddings; None = the config's")
    add("--texts", type=Path, help="database of text embeddings; None = the config's")
    add("--num", type=int, default=5000, help="largest number of samples, with one text each")
    add(
        "--fraction",
        type=float,
        default=0.05,
        help="fraction of the suggested gaussian's angles that are above the median gap",
    )
    add(
        "--seed",
        type=parse_seed,
        default=0,
        help="seed of samples, texts, pairs and perturbations",
    )
    add("--out", type=Path, default=Path("results/modality_gap"), help="folder to write into")
    return parser.parse_args()


def open_databases(args: argparse.Namespace) -> list[LMDBReader]:
    """Return the databases of image and text embeddings; raise UserError if one is not named."""
    paths = [args.images, args.texts]
    if None in paths:
        config = load_effective_config(args)
        for i, key in enumerate(KEYS[args.split]):
            section, name = key.split(".")
            paths[i] = paths[i] or getattr(getattr(config, section), name)
    options = ("--images", "--texts")
    return [
        open_embeddings(path, option, f"{key} in {args.config}")
        for path, option, key in zip(paths, options, KEYS[args.split], strict=True)
    ]


def suggest(angle: float, fraction: float) -> list[Perturbation]:
    """Return a fixed and a gaussian perturbation of `angle` (degrees).

    `fraction` of the gaussian's angles are above it. At 90 degrees and more the list is empty.
    """
    try:
        fixed = Perturbation("fixed", round(scale_for_angle(angle), 3))
        gaussian = Perturbation("gaussian", round(gaussian_for_angle(angle, fraction), 3))
    except ValueError as fault:
        note(f"no suggestion: {fault}")
        return []
    return [fixed, gaussian]


def plot(gap: Gap, angles: dict[str, np.ndarray], path: Path) -> None:
    """Plot the cosines on the left, and on the right the fraction of training angles above x."""
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    by_kind = {label: values.numpy() for label, values in cosines(gap).items()}
    plot_histograms(left, by_kind, digits=2)
    style_axis(left, "Cosine", f"means {gap.distance:.2f} apart")
    left.set_xlabel("cosine; a dot is the median, a line spans 5 to 95 %")

    low, median, high = np.percentile(gap.angle.numpy(), (5, 50, 95))
    plot_fractions_above(right, angles)
    right.axvspan(
        low, high, color="0.5", alpha=0.2, linewidth=0, label="image to its\ntext, 5–95 %"
    )
    right.axvline(median, color="0.3", linestyle="--", linewidth=1)
    style_axis(right, "Training angles above x", "dashed: median, image to its text")
    right.set_xlim(0, 90)
    right.set_xlabel("degrees")
    right.set_ylabel("%")
    right.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    save_plot(figure, path)


def cosines(gap: Gap) -> dict[str, torch.Tensor]:
    """Return the cosines of the four kinds of pairs, by name."""
    return {
        "image, its text": gap.matching,
        "image, other text": gap.other,
        "two images": gap.images,
        "two texts": gap.texts,
    }


@one_line_errors
def main() -> None:
    """Measure, print and plot the gap and the perturbations."""
    args = parse_args()
    if args.num < 2 or not 0 < args.fraction < 1:
        raise UserError("--num must be at least 2, and --fraction between 0 and 1")
    given = [parse_perturbation(text) for text in args.settings]
    images, texts = open_databases(args)
    generator = torch.Generator().manual_seed(args.seed)
    x, y = read_pairs(images, texts, args.num, generator)
    try:
        gap = modality_gap(x, y, generator)
    except ValueError as fault:
        raise UserError(f"{images.path}: {fault}") from fault

    rows = {**cosines(gap), "angle image, its text (degrees)": gap.angle}
    records = [{"what": label, **distribution(v.numpy())} for label, v in rows.items()]
    print(f"{len(x)} samples: {images.path}, {texts.path}\n")
    header = ("cosine", "mean", "std", "5 %", "50 %", "95 %", "min", "max")
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in r.values()] for r in records]
    print(aligned([header, *cells], left=1))
    print(f"\ndistance of the means of image and text embeddings: {gap.distance:.3f}")

    median = float(np.median(gap.angle.numpy()))
    suggested = suggest(median, args.fraction)
    angles = {str(s): perturbation_angles(x, s, args.seed)[0] for s in [*given, *suggested]}
    above = {label: float((values > median).mean()) for label, values in angles.items()}
    suggested_names = sorted(str(setting) for setting in suggested)
    print(f"\ntraining angles above {median:.1f} degrees, the median from an image to its text:")
    cells = [
        [name, f"{100 * fraction:.1f} %", "suggested" if name in suggested_names else ""]
        for name, fraction in above.items()
    ]
    print(aligned([("perturbation", "above", ""), *cells], left=1))

    plot(gap, angles, args.out / "gap.png")
    report = {
        "images": str(images.path),
        "texts": str(texts.path),
        "n": len(x),
        "distance_of_means": gap.distance,
        "pairs": records,
        "fraction_of_training_angles_above_median": above,
        "suggested": suggested_names,
    }
    write_json(args.out / "gap.json", report)
    write_csv(args.out / "gap.csv", records)
    print(f"\n{args.out}/: gap.png, gap.json, gap.csv")


if __name__ == "__main__":
    main()
