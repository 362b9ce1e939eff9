"""Adapt a network to few images of another kind, by each choice of train.adapt.

    python research/adapt/compare.py heads              # the demo's network, heads that fill images
    python research/adapt/compare.py heads --tune       # the rates of METHODS, on other images
    python research/adapt/compare.py sepia              # faces as in old photographs
    python research/adapt/compare.py old_photographs --base photos.safetensors    # or close_ups

The last ones adapt a network of configs/others/photos.yaml, as train_latent_t2f.py --export writes
it; a training from a checkpoint would count on from its steps.

A training has so many processor seconds, whatever a step costs. The averaged weights generate an
image for the embedding of each of 160 held-out images, and these are compared with the images.
This command, started again, goes on where it was stopped, and adds to the JSON of --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
from benchmarks.timing import report, start
from research.adapt.material import MOST, ROOT, TASKS, TESTED, Material, run
from research.recipes.results import mean_and_range
from utils.base.files import read_json_lines, write_json
from utils.config.command_line import ArgumentParser
from utils.config.parsing import parse_seeds
from utils.pretrained.denoisers import adapted_denoiser, load_denoiser

BASE = ROOT / "assets" / "demo" / "dit.safetensors"
SCRATCH = "from scratch"
# Settings of each method; rates are the better ones of --tune.
METHODS: dict[str, tuple[str, ...]] = {
    "all": ("train.lr=1e-3", "train.muon_lr=5e-3"),
    "lora": ("train.adapt=lora", "train.lr=1e-2"),
    "lora, rank 16": ("train.adapt=lora", "train.lora_rank=16", "train.lr=1e-2"),
    "difffit": ("train.adapt=difffit", "train.lr=3e-2"),
    "condition": ("train.adapt=condition", "train.lr=1e-2"),
    SCRATCH: ("train.lr=1e-3", "train.muon_lr=5e-3"),
}
RATES = {
    "all": (("train.lr=3e-4", "train.muon_lr=1.5e-3"),),
    "lora": (("train.lr=3e-3",), ("train.lr=3e-2",)),
    "difffit": (("train.lr=1e-2",),),
}
EQUAL = (  # for all trainings
    "model.mask_ratio=0.5", "model.unmasked_tail=0", "train.perturbation=0", "train.batchsize=32",
    "train.lr_rampup_kimg=0.5", "encoders.image_mean=null", "log.sample_every=0",
    "log.use_tensorboard=false", "log.observe_every=0", "data.text_feat_path=null",
    "data.caption_dir=null", "data.mirrored_root=null", "train.xflip=false",
)  # fmt: skip
PROBE_STEPS = 8  # of two windows; the second one counts


def slug(method: str) -> str:
    """Return the name of a method as files have it."""
    return method.replace(",", "").replace(" ", "_")


def train(folder: Path, base: Path, method: str, seed: int, steps: int, options: list[str]) -> Path:
    """Train a method for so many steps, logging twice; return the last checkpoint."""
    where = ["--results_dir", str(folder.parent.resolve()), "--exp_name", folder.name]
    begin = ["--config" if method == SCRATCH else "--ckpt_path", str(base)]
    half = max(1, steps // 2)
    numbers = [f"train.max_num_steps={steps}", f"train.seed={seed}", f"log.log_every={half}"]
    numbers += [f"log.ckpt_every={steps}"]
    words = ["train_latent_t2f.py", *where, *begin, *EQUAL, *METHODS[method], *options, *numbers]
    run(words)
    return folder / "checkpoints" / f"{steps:07d}.pt"


def steps_of(args: argparse.Namespace, data: Material) -> dict[str, int]:
    """Return the steps of each method in `args.seconds`, by two short trainings in turn of each."""
    kept = args.work / "cost.json"
    if not kept.exists():
        options, costs = data.databases(args.images[0]), dict.fromkeys(METHODS, float("inf"))
        for turn in range(2):
            for method in METHODS.keys() - {SCRATCH}:
                folder = args.work / f"cost_{slug(method)}_{turn}"
                train(folder, data.base, method, 0, 2 * PROBE_STEPS, options)
                seconds = float(read_json_lines(folder / "metrics.jsonl")[-1]["cpu_s"])
                costs[method] = min(costs[method], seconds / PROBE_STEPS)
        write_json(kept, costs | {SCRATCH: costs["all"]})  # the same work
    costs = json.loads(kept.read_text(encoding="utf-8"))
    return {method: round(args.seconds / cost) for method, cost in costs.items()}


def one_run(
    args: argparse.Namespace, data: Material, method: str, count: int, seed: int, rates: list[str]
) -> dict[str, Any]:
    """Train and measure, unless that was done before; return a row."""
    name = "_".join([slug(method), f"{count}", f"{seed}", *rates]).replace("train.", "")
    kept = args.work / "runs" / f"{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    options = [*data.databases(count), *(rates if args.tune else data.rates.get(method, ()))]
    checkpoint = train(args.work / name, data.base, method, seed, args.steps[method], options)
    lines = read_json_lines(args.work / name / "metrics.jsonl")
    _, config = load_denoiser(checkpoint)
    weights = [(p.numel(), p.requires_grad) for p in adapted_denoiser(config).parameters()]
    row = {
        "method": method,
        "images": count,
        "seed": seed,
        "steps": args.steps[method],
        "seconds": sum(line["cpu_s"] for line in lines),
        "memory_gb": lines[-1]["memory_gb"],
        "part": sum(n for n, is_trained in weights if is_trained) / sum(n for n, _ in weights),
        "loss": data.loss(checkpoint),
        **({} if args.tune else data.measure(data.generate(checkpoint), count)),
    }
    write_json(kept, row)
    return row


def shown(runs: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of the table, of trainings that differ in their seeds; metrics: their form."""
    forms = {"loss": ".3f", "memory_gb": ".2f", **metrics}
    found = {n: mean_and_range([r[n] for r in runs], f) for n, f in forms.items() if n in runs[0]}
    return {
        "images": runs[0]["images"],
        "trained": runs[0]["method"],
        "of all weights": f"{runs[0]['part']:.3g}",
        "seeds": len(runs),
        "steps": runs[0]["steps"],
        "processor s": mean_and_range([r["seconds"] for r in runs], ".0f"),
        **found,
    }


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS, help="images to adapt to")
    parser.add_argument(
        "--images", type=parse_seeds, default="300,100,1000", help="numbers of training images"
    )
    parser.add_argument(
        "--seeds", type=parse_seeds, default="0-2", help="of the first number; others have one"
    )
    parser.add_argument("--seconds", type=float, default=150, help="processor s of a training")
    parser.add_argument(
        "--work", type=Path, default=Path("results/adapt"), help="folder; a task has one in it"
    )
    parser.add_argument("--out", type=Path, help="JSON to write; None = results.json in --work")
    parser.add_argument("--threads", type=int, default=1, help="processor cores to use")
    parser.add_argument("--tune", action="store_true", help="compare rates, on other faces")
    parser.add_argument(
        "--base", type=Path, default=BASE, help="released network; for photographs one of these"
    )
    args = parser.parse_args()
    args.work = args.work / args.task
    args.out = args.out or args.work / ("tuned.json" if args.tune else "results.json")
    return args


@one_line_errors
def main() -> None:
    """Run all trainings that are missing, and write their table."""
    args = parse_args()
    start(args)
    data = TASKS[args.task](args.base, args.work / "data", "tuning" if args.tune else "test")
    args.steps = steps_of(args, data)
    notes = [f"The network as it was: loss {data.loss(data.base):.3f}"]
    if not args.tune:
        others = data.decode(data.encode(data.images("other", TESTED)))
        found = {
            notes[0]: data.generate(data.base),
            "Other real images, encoded and decoded": others,
        }
        measured = {what: data.measure(images, MOST) for what, images in found.items()}
        notes = [
            ", ".join([what, *(f"{name} {row[name]:.3g}" for name in list(data.metrics)[:2])]) + "."
            for what, row in measured.items()
        ]
    first, *others = args.images
    jobs: list[tuple[int, str, int, list[str]]] = [
        (n, m, seed, [])
        for n, seeds in ((first, args.seeds), *((n, args.seeds[:1]) for n in others))
        for seed in seeds
        for m in METHODS
    ]
    if args.tune:
        jobs = [(first, m, 10, list(r)) for m in RATES for r in ((), *RATES[m])]
    runs: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for count, method, seed, rates in jobs:
        row = one_run(args, data, method, count, seed, rates)
        runs.setdefault((count, method, " ".join(rates)), []).append(row)
        rows = [
            shown(some, data.metrics) | ({"rates": key[2]} if args.tune else {})
            for key, some in runs.items()
        ]
        report(args.out, f"Adapting to {args.task.replace('_', '-')}", rows, notes)


if __name__ == "__main__":
    main()
