"""Measure the angle by which a perturbation changes the condition.

    python research/gap/angle.py gaussian:1.2 fixed:0.8               # the config's embeddings
    python research/gap/angle.py gaussian:1.2 --experiment_dir results/own
    python research/gap/angle.py gaussian:1.2 --embeddings data/ffhq/lmdb/clip_img
    python research/gap/angle.py gaussian:1.2 --dim 512               # random unit vectors
    python research/gap/angle.py truncated:1.2:-0.8:0.8               # scale, bounds, then mean

Prints a line for each setting: the angle between an embedding and its perturbed version (mean,
standard deviation, 5, 50 and 95 % points, range), and the mean angle between two perturbed versions
of one embedding ("two samples"). Angles are in degrees.
Writes angles.png, angles.json and angles.csv into --out.
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
from matplotlib.figure import Figure

from research.gap.embeddings import open_embeddings, random_directions, read_some
from research.gap.perturbations import (
    PUBLISHED,
    distribution,
    parse_perturbation,
    perturbation_angles,
)
from research.gap.plots import plot_histograms
from utils.base.files import write_csv, write_json
from utils.base.text import aligned
from utils.config.command_line import ArgumentParser, add_config_option
from utils.config.parsing import parse_seed
from utils.data.embeddings import some_samples
from utils.evaluation.plots import save_plot, style_axis
from utils.pretrained.effective_config import load_effective_config

HEADER = ("perturbation", "mean", "std", "5 %", "50 %", "95 %", "min", "max", "two samples")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "settings",
        nargs="*",
        default=PUBLISHED,
        metavar="kind:scale",
        help="perturbations to measure",
    )
    add_config_option(parser, "YAML file, whose data.feat_path is measured")
    add("--embeddings", type=Path, help="database of embeddings; None = the config's")
    add("--dim", type=int, help="measure random unit vectors of this dimension; None = a database")
    add("--num", type=int, default=10_000, help="largest number of embeddings")
    add("--seed", type=parse_seed, default=0, help="seed of embeddings and perturbations")
    add("--out", type=Path, default=Path("results/angle"), help="folder to write into")
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple[torch.Tensor, str]:
    """Return the embeddings to perturb, (N, D) float32, and a text that names them."""
    generator = torch.Generator().manual_seed(args.seed)
    if args.dim is not None:
        return random_directions(args.num, args.dim, generator), f"random, {args.dim} dimensions"
    path = args.embeddings or load_effective_config(args).data.feat_path
    reader = open_embeddings(path, "--embeddings", "data.feat_path")
    y = read_some(reader, some_samples(reader, args.num, generator), generator)
    return y, f"{path}, {y.shape[1]} dimensions"


@one_line_errors
def main() -> None:
    """Measure, print and plot the angles of all settings."""
    args = parse_args()
    if args.num < 1 or (args.dim is not None and args.dim < 2):
        raise UserError("--num must be at least 1, and --dim at least 2")
    settings = [parse_perturbation(text) for text in args.settings]
    y, source = load(args)

    angles, records = {}, []
    for setting in settings:
        angles[str(setting)], between = perturbation_angles(y, setting, args.seed)
        values = distribution(angles[str(setting)])
        records.append(
            {"perturbation": str(setting), **values, "two_samples": float(between.mean())}
        )

    print(f"angle to the perturbed embedding, degrees; {len(y)} embeddings ({source})\n")
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in r.values()] for r in records]
    print(aligned([HEADER, *cells], left=1))

    figure = Figure(figsize=(8, 1.2 + 0.75 * len(angles)), layout="constrained")
    axis = figure.subplots()
    plot_histograms(axis, angles, digits=1)
    style_axis(axis, "Angle to the perturbed embedding", source)
    axis.set_xlabel("degrees; a dot is the median, a line spans 5 to 95 %")
    axis.set_xlim(left=0)
    save_plot(figure, args.out / "angles.png")
    write_json(args.out / "angles.json", {"embeddings": source, "n": len(y), "angles": records})
    write_csv(args.out / "angles.csv", records)
    print(f"\n{args.out}/: angles.png, angles.json, angles.csv")


if __name__ == "__main__":
    main()
