"""Compare how fast the published and our training settings learn, in equal time.

    python benchmarks/time_to_quality.py                 # needs the data of make demo
    python benchmarks/time_to_quality.py --seconds 900 --out docs/benchmarks/time_to_quality.json

Both recipes train the demo's network on the demo's faces. At equal intervals their weights draw
pictures from held-out captions. Two metrics are plotted against the seconds of training: the
Fréchet distance to held-out faces, and the share of stated attributes that the pictures show. The
published recipe is also judged without averaging its weights, since its average is still close to
the random start. This command, started again, goes on with a run that was interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, one_line_errors

# isort: split
import torch
from matplotlib.figure import Figure

from benchmarks.timing import add_arguments, report, start
from demo.check_prompts import agreement, choose_captions
from demo.classifier import classify, codes_of, load_classifier, load_faces
from models.edm import EDMPrecond
from utils.base.files import write_json
from utils.base.progress import progress
from utils.config.command_line import DEFAULT_CONFIG, HelpFormatter
from utils.config.load import load_config
from utils.config.schema import Config
from utils.evaluation.feature_statistics import FeatureStats
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.plots import save_plot, style_axis
from utils.evaluation.references import load_stats
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import generate
from utils.training.checkpoint import list_checkpoints

# The published text-to-face settings where the demo's config differs; batch and network are equal.
PUBLISHED = [
    "model.cond_init_std=0.02",
    "model.unmasked_tail=0",
    "train.lr=1e-4",
    "train.lr_rampup_kimg=0",
    "train.lr_schedule=constant",
    "train.betas=[0.9,0.999]",
    "train.grad_clip=null",
    "train.ema_decay=0.9999",
    "train.ema_rampup=null",
    "train.perturbation=1.2",
    "train.P_mean=-1.2",
    "train.P_std=1.2",
    "encoders.image_mean=null",
]
RECIPES = {"published": PUBLISHED, "ours": []}
CURVES = {
    "published": ("published", "ema"),
    "published, not averaged": ("published", "model"),
    "ours": ("ours", "ema"),
}
JUDGE = Path("results/check_prompts/classifier.safetensors")  # shared with demo/check_prompts.py
PROBE_STEPS = 60  # of the short trainings that measure the rate
Curve = list[dict[str, Any]]  # a record for each checkpoint


def run_training(folder: Path, name: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Train, or go on, in `folder`/`name`, and return the records of its metrics.jsonl.

    Raise UserError if the training fails.
    """
    script = ["train_latent_t2f.py", "--results_dir", str(folder), "--exp_name", name]
    if subprocess.run([sys.executable, *script, *overrides], cwd=ROOT).returncode:
        raise UserError(f"the training in {folder / name} stopped; the same command goes on")
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps_in(seconds: float, folder: Path, name: str, config: Config) -> int:
    """Return the number of a recipe's steps in so many seconds, by the rate of short trainings."""
    every = ["log.sample_every=0", f"log.log_every={PROBE_STEPS // 3}"]
    rates: dict[float, float] = {}  # mask ratio → images per second
    for mask_ratio in {config.model.mask_ratio, 0.0} if config.model.unmasked_tail else {0.5}:
        options = [f"train.max_num_steps={PROBE_STEPS}", f"model.mask_ratio={mask_ratio}"]
        options += ["model.unmasked_tail=0", *every]
        metrics = run_training(folder, f"probe_{name}_{mask_ratio:g}", RECIPES[name] + options)
        rates[mask_ratio] = max(line["images_per_s"] for line in metrics)
    tail = config.model.unmasked_tail
    per_image = (1 - tail) / rates[config.model.mask_ratio] + tail / rates.get(0.0, math.inf)
    return round(seconds / (per_image * config.train.batchsize))


def seconds_at(metrics: list[dict[str, Any]], batchsize: int) -> dict[int, float]:
    """Return step -> seconds of training until then, without evaluation and sample grids."""
    found, seconds, before = {}, 0.0, 0
    for line in metrics:
        seconds += (line["step"] - before) * batchsize / line["images_per_s"]
        before = line["step"]
        found[before] = seconds
    return found


class Jury:
    """Held-out faces with captions, and the networks that judge pictures of the captions."""

    def __init__(self, config: Config, data: Path, count: int) -> None:
        """Load the first `count` test faces of `data` and the networks of `config`.

        Raise UserError if the config names no reference statistics.
        """
        if config.eval.ref_path is None:
            raise UserError("eval.ref_path: required key is missing")
        self.records = load_faces(data / "test", count)[1]
        texts, self.stated = choose_captions(self.records)
        self.codes = codes_of(self.records)
        self.clip, self.vae = load_config_clip(config), load_config_autoencoder(config)
        self.texts = self.clip.encode_texts(texts)
        self.reference = load_stats(config.eval.ref_path)
        self.classifier = load_classifier(JUDGE, data / "train")

    def judge(self, denoiser: EDMPrecond, config: Config) -> dict[str, float]:
        """Return the Fréchet distance in CLIP features, and the percentages of `agreement`."""
        batches = generate(
            denoiser,
            self.vae,
            caption_conditions(self.texts, config),
            range(len(self.records)),
            config.sampling.model_copy(update={"amp": "bf16"}),
            batch_size=64,
        )
        pictures = torch.cat([images for _, images in batches]).permute(0, 3, 1, 2)
        stats = FeatureStats()
        for part in pictures.split(64):
            stats.update(self.clip.encode_images(part))
        ours, reference = (stats.mu, stats.sigma), (self.reference.mu, self.reference.sigma)
        shown = agreement(classify(self.classifier, pictures), self.codes, self.stated)
        return {"frechet_distance": frechet_distance(*ours, *reference), **shown}


def judge_curve(
    folder: Path, which: str, config: Config, jury: Jury, clock: dict[int, float], label: str
) -> Curve:
    """Judge each checkpoint of the training in `folder`; records are kept there.

    which: weights to judge, "ema" or "model". clock: step -> seconds. label: name of the curve.
    """
    kept = folder / f"quality_{which}.json"
    done = {r["step"]: r for r in json.loads(kept.read_text())} if kept.exists() else {}
    checkpoints = list_checkpoints(folder / "checkpoints")
    for step in progress(checkpoints, f"judge {label}", len(checkpoints), "checkpoint"):
        if step not in done:
            denoiser, _ = load_denoiser(checkpoints[step], which=which, config=config)
            metrics = jury.judge(denoiser, config)
            done[step] = {"recipe": label, "step": step, "seconds": clock[step], **metrics}
            write_json(kept, list(done.values()))
    return list(done.values())


def reached(curve: Curve, distance: float) -> float:
    """Return the seconds until a curve falls to a distance, inf if never; points are joined."""
    points = [(float(r["seconds"]), float(r["frechet_distance"])) for r in curve]
    if points and points[0][1] <= distance:
        return points[0][0]
    for (seconds, high), (later, low) in itertools.pairwise(points):
        if low <= distance:
            return seconds + (high - distance) / (high - low) * (later - seconds)
    return math.inf


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Draw both metrics against the seconds of training."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = (
        ("frechet_distance", "Fréchet distance (CLIP features)", "lower is better"),
        ("mean", "stated attributes that are shown, %", "higher is better"),
    )
    for axis, (key, title, hint) in zip(figure.subplots(1, 2), panels, strict=True):
        for label, curve in curves.items():
            seconds, values = zip(*((r["seconds"], r[key]) for r in curve), strict=True)
            axis.plot(seconds, values, marker="o", markersize=4, linewidth=1.8, label=label)
        style_axis(axis, title, hint)
        axis.set_xlabel("seconds of training")
        axis.set_xlim(left=0)
        if key == "frechet_distance":
            axis.set_yscale("log")
            axis.legend(frameon=False)
    save_plot(figure, path)


def rows_of(curves: dict[str, Curve]) -> list[dict[str, Any]]:
    """Return a table row for each curve, with the time until the better published distance."""
    target = min(curves[label][-1]["frechet_distance"] for label in list(CURVES)[:2])
    total = curves["published"][-1]["seconds"]
    rows = []
    for label, curve in curves.items():
        last, when = curve[-1], reached(curve, target)
        rows.append(
            {
                "recipe": label,
                "steps": last["step"],
                "seconds": round(last["seconds"]),
                "Fréchet distance": last["frechet_distance"],
                "attributes shown, %": last["mean"],
                f"seconds to {target:.0f}": "-" if math.isinf(when) else round(when),
                "of published": "-" if math.isinf(when) else f"{when / total:.2f}",
            }
        )
    return rows


def train_recipe(args: argparse.Namespace, name: str, config: Config) -> list[dict[str, Any]]:
    """Train a recipe for --seconds with --points checkpoints; return its metrics records."""
    kept = args.work / name / "steps.json"
    if not kept.exists():
        steps = steps_in(args.seconds, args.work, name, config)
        write_json(kept, max(steps // args.points, 1))
    every = json.loads(kept.read_text())
    lengths = [f"train.max_num_steps={args.points * every}", "log.sample_every=0"]
    lengths += [f"log.ckpt_every={every}", f"log.log_every={every}"]
    return run_training(args.work, name, RECIPES[name] + lengths)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--seconds", type=float, default=480, help="training time of each recipe")
    parser.add_argument("--points", type=int, default=8, help="checkpoints that are judged")
    parser.add_argument("--num", type=int, default=500, help="held-out captions that are drawn")
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="folder of the rendered faces"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("results/time_to_quality"), help="folder of the trainings"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        help="PNG to write; None = time_to_quality.png in --work",
        metavar="FILE",
    )
    add_arguments(parser)
    return parser.parse_args()


@one_line_errors
def main() -> None:
    """Train both recipes, judge their checkpoints, and print and draw the curves."""
    args = parse_args()
    start(args)
    configs = {name: load_config(DEFAULT_CONFIG, RECIPES[name]) for name in RECIPES}
    metrics = {name: train_recipe(args, name, config) for name, config in configs.items()}
    jury, curves = Jury(configs["ours"], args.data, args.num), {}
    for label, (name, which) in CURVES.items():
        clock = seconds_at(metrics[name], configs[name].train.batchsize)
        curves[label] = judge_curve(args.work / name, which, configs[name], jury, clock, label)
    picture = args.plot or args.work / "time_to_quality.png"
    plot(curves, picture)
    notes = [
        f"{args.num} pictures from held-out captions for each point, same seeds.",
        "Seconds are those of training steps; evaluation is not counted.",
        "Published: lr 1e-4, EMA 0.9999, mask ratio 0.5 throughout, perturbation 1.2.",
        "Ours: lr 1e-3 with warm-up and cosine, EMA of a tenth of the images seen, the last fifth "
        "unmasked, wider noise levels, perturbation 2, larger first weights of the condition.",
    ]
    report(
        args.out, "Time to quality on the demo: published recipe and ours", rows_of(curves), notes
    )
    print(f"plot: {picture}")


if __name__ == "__main__":
    main()
