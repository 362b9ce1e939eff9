"""Choose guidance, its interval and the width of the average on held-out images, after a training.

A training:       python tools/tune.py results/demo
With captions' agreement kept:  python tools/tune.py results/demo --max_clip_loss 1
Other choices:    python tools/tune.py results/own --cfg_scales None,1.5,2 --widths 0.05,0.1,0.15
Freedom as well:  python tools/tune.py results/own --freedoms 0.7,1,1.2 --max_clip_loss 1
Then publish:     python train_latent_t2f.py --export FOLDER \\
                      --ckpt_path results/demo/tuned/tuned.safetensors

One key after the other: guidance scale, guidance interval, width of the average, freedom. Of each
key's values the one with the lowest Fréchet distance stays, if it is at least 0.5 % lower. The
held-out images are halved if the reference holds their features: one half chooses, the other one
gives the figures to report. Widths need a training with train.power_ema. Writes into
results/X/tuned: tuned.safetensors with the chosen weights and settings, tuned.yaml (settings
alone), tuned.json (all trials; --export puts them into the model card). t2f.py,
eval_latent_t2f.py and --export take tuned.safetensors. A killed command, started again, measures
nothing twice.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, note
from utils.base.script import one_line_errors

# isort: split
import torch
import yaml
from accelerate import PartialState

from models.edm import EDMPrecond
from utils.base.files import json_text, write_json, write_text
from utils.base.text import aligned
from utils.config.command_line import ArgumentParser
from utils.config.parsing import folder_to_write, parse_scale
from utils.config.schema import Config
from utils.data.derived_sizes import with_derived_sizes
from utils.evaluation.checkpoints import Evaluation
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.metric_names import distance_of, metrics_text
from utils.evaluation.results import Record, Results
from utils.pretrained.averages import Kept, error_of, kept_averages, write_average
from utils.pretrained.checkpoint_files import list_checkpoints, load_checkpoint
from utils.pretrained.denoisers import export_safetensors, load_denoiser
from utils.pretrained.effective_config import config_file, read_config
from utils.pretrained.priors import with_proposed_freedom
from utils.release.tuning import (
    HEADER,
    Point,
    read_tuning,
    report_rows,
    sentences,
    table_rows,
)
from utils.sampling.compile import compile_for_sampling
from utils.sampling.generate import sampler_settings

HALF = 100  # images that each half of the held-out ones needs
GAIN = 0.005  # by which a setting must lower the distance; less counts as none
MAX_ERROR = 0.1  # of the weighting of an average that is tried
SCALES = "None,1.25,1.5,2,2.5,3"
INTERVALS = "all,0.3-1000,0.3-5,0.6-3"
WIDTHS = "0.03,0.05,0.07,0.1,0.13,0.16,0.2"


def parse_scales(text: str) -> list[float | None]:
    """Return guidance scales of a list like 'None,1.5,2'."""
    return [parse_scale(part) for part in text.split(",")]


def parse_numbers(text: str) -> list[float]:
    """Return the positive numbers of a list like '0.05,0.1'; 'None' = none."""
    parts = [] if text == "None" else text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = [math.nan]
    if not all(0 < number < math.inf for number in numbers):
        raise UserError(f"{text!r}: should be positive numbers like 0.05,0.1, or None")
    return numbers


def parse_intervals(text: str) -> list[tuple[float, float] | None]:
    """Return the sigma ranges of a list like 'all,0.3-5'; all = no interval."""
    found: list[tuple[float, float] | None] = []
    for part in text.split(","):
        if part == "all":
            found.append(None)
            continue
        try:
            low, high = (float(end) for end in part.split("-"))
        except ValueError:
            low = high = 0.0
        if not 0 <= low < high:
            raise UserError(f"--intervals {text!r}: should look like all,0.3-1000,0.3-5")
        found.append((low, high))
    return found


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("experiment", type=Path, help="folder of a training, results/<name>")
    add("overrides", nargs="*", metavar="key=value", help="config keys, e.g. sampling.num_steps=8")
    add("--step", type=int, help="step of the checkpoint; None = the last one")
    add("--num", type=int, default=256, help="images of each trial")
    add("--cfg_scales", type=parse_scales, default=SCALES, help="guidance scales to try")
    add("--intervals", type=parse_intervals, default=INTERVALS, help="guidance intervals (sigmas)")
    add("--widths", type=parse_numbers, default=WIDTHS, help="relative widths of the average")
    add("--freedoms", type=parse_numbers, default="None", help="values of sampling.freedom to try")
    add(
        "--max_clip_loss",
        type=float,
        help="points that the CLIP score may fall below that of the settings before; None = any, "
        "the Fréchet distance alone chooses",
    )
    add("--out", type=folder_to_write, help="folder to write into; None = tuned/ of the experiment")
    args = parser.parse_intermixed_args()
    if args.num < 2:
        raise UserError(f"--num {args.num}: a Fréchet distance needs at least 2 images")
    if args.max_clip_loss is not None and math.isnan(args.max_clip_loss):
        raise UserError("--max_clip_loss nan: should be a number of points, e.g. 1")
    return args


class Tuning:
    """Measures settings of one checkpoint, and remembers every trial in `results`."""

    def __init__(self, checkpoint: Path, config: Config, evaluator: Evaluator, out: Path) -> None:
        """`evaluator`: of the data that choose."""
        self.checkpoint, self.config, self.evaluator, self.out = checkpoint, config, evaluator, out
        self.step = int(checkpoint.stem)
        self.results, self.kept = Results(out), kept_averages(checkpoint)
        self._loaded: tuple[Path, EDMPrecond] | None = None

    def file(self, width: float | None) -> Path:
        """Return the file of the weights with an average of this width; write it if need be."""
        if width is None:
            return self.checkpoint
        path = self.out / "averages" / f"{width:g}" / f"{self.step:07d}.safetensors"
        if not path.exists():
            write_average(self.checkpoint, self.kept, width, path)
        return path

    def measure(self, point: Point, evaluator: Evaluator | None = None, first: int = 0) -> Record:
        """Return the record of a point; it is not measured again if it is there.

        first: seed of the first image, counted from `sampling.seed`.
        """
        evaluator = evaluator or self.evaluator
        sampling = self.config.sampling.model_copy(update=point.sampling())
        first += sampling.seed
        seeds = f"{first}-{first + self.config.eval.fid_sample_size - 1}"
        config = self.config.model_copy(
            update={
                "sampling": sampling,
                "eval": self.config.eval.model_copy(update={"seeds": seeds}),
            }
        )
        path = self.file(point.width)
        evaluation = Evaluation(self.results, path, config, evaluator, self.step)
        if evaluation.recorded() is None:
            evaluation.run(self._denoiser(path))
        record = evaluation.recorded()  # as the file holds it, at the first start and later ones
        assert record is not None
        return record

    def _denoiser(self, path: Path) -> EDMPrecond:
        if self._loaded is None or self._loaded[0] != path:
            device = self.evaluator.device
            denoiser, _ = load_denoiser(path, device)
            compile_for_sampling(denoiser, self.config.sampling, device)
            self._loaded = path, denoiser
        return self._loaded[1]


def usable_widths(kept: list[Kept], widths: Sequence[float]) -> list[float]:
    """Return those of the widths that the kept averages give well; a note names the others."""
    if not kept:
        note(
            "the training kept no averages (train.power_ema=[0.05,0.1]): the EMA's width stays; "
            "a run that exists may begin to keep them"
        )
        return []
    errors = {width: error_of(kept, width) for width in widths}
    poor = [f"{w:g} ({e:.0%})" for w, e in errors.items() if e > MAX_ERROR]
    if poor:
        note(
            f"too few checkpoints for the widths {', '.join(poor)}: relative error of the "
            f"weighting above {MAX_ERROR:.0%}; save more often (log.ckpt_every)"
        )
    return [width for width, error in errors.items() if error <= MAX_ERROR]


def candidates(
    args: argparse.Namespace, config: Config, widths: Sequence[float]
) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield each key with the values to try; a student has learned its guidance."""
    if config.model.num_classes and not config.is_distilled:
        yield "cfg_scale", args.cfg_scales
        yield "guidance_interval", args.intervals
    yield "width", [None, *widths] if widths else []
    yield "freedom", args.freedoms


def search(
    tuning: Tuning, before: Point, args: argparse.Namespace
) -> tuple[Point, dict[Point, Record]]:
    """Return the best point and all trials, after one pass over the keys."""
    best, trials = before, {before: tuning.measure(before)}
    least = -math.inf
    if args.max_clip_loss is not None and trials[before]["clip_score"] is not None:
        least = trials[before]["clip_score"] - args.max_clip_loss
    widths = usable_widths(tuning.kept, args.widths)
    for key, values in candidates(args, tuning.config, widths):
        if key == "guidance_interval" and best.cfg_scale in (None, 1):
            continue  # there is no guidance to bound
        for value in values:
            point = best._replace(**{key: value})
            if point not in trials:
                trials[point] = tuning.measure(point)
            print(f"{point.text()}: {metrics_text(trials[point])}", flush=True)
        allowed = [p for p, r in trials.items() if (r["clip_score"] or math.inf) >= least]
        lowest = min(allowed, key=lambda point: distance_of(trials[point]))
        if distance_of(trials[lowest]) < (1 - GAIN) * distance_of(trials[best]):
            best = lowest
    return best, trials


def chosen_checkpoint(folder: Path, step: int | None) -> Path:
    """Return the checkpoint of a step, or the last one; raise UserError if it is not there."""
    found = list_checkpoints(folder / "checkpoints")
    if not found:
        raise UserError(f"{folder}: holds no checkpoints; name the folder of a training")
    if step is not None and step not in found:
        raise UserError(
            f"{folder}: no checkpoint of step {step}; there are {min(found)} to {max(found)}"
        )
    return found[max(found) if step is None else step]


def halves(evaluator: Evaluator) -> tuple[Evaluator, Evaluator] | None:
    """Return the evaluations on both halves of the held-out images; None if they are too few."""
    counts = [0 if r.features is None else len(r.features) for r in evaluator.references]
    if evaluator.captions is not None:
        counts.append(evaluator.captions.info.length)
    if min(counts) < 2 * HALF:
        note(
            f"the held-out images are not halved: the reference holds the features of {counts[0]}, "
            f"and {2 * HALF} are needed (fid_ref.py --features); the figures are optimistic"
        )
        return None
    return evaluator.half(0), evaluator.half(1)


def write_files(tuning: Tuning, best: Point, overrides: Sequence[str], about: Any) -> None:
    """Write tuned.safetensors, tuned.yaml and tuned.json; `about` goes into the last one."""
    average, out = None, tuning.out
    if best.width is not None:
        error = error_of(tuning.kept, best.width)
        average = {"width": best.width, "error": error, "snapshots": len(tuning.kept)}
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in best.sampling().items()}
    keys = [f"sampling.{key}={json_text(value)}" for key, value in settings.items()]
    export_safetensors(tuning.file(best.width), out / "tuned.safetensors", [*overrides, *keys])
    first = "# Chosen by tools/tune.py; these keys count over those in tuned.safetensors.\n"
    text = yaml.safe_dump({"sampling": settings}, sort_keys=False)
    write_text(out / "tuned.yaml", first + text)
    write_json(out / "tuned.json", {**about, "average": average})
    shutil.rmtree(out / "averages", ignore_errors=True)
    print(f"\n{out}: tuned.safetensors (weights and settings), tuned.yaml, tuned.json")
    print(f"the same settings for another command: {' '.join(keys)}")


def described(evaluator: Evaluator, half: bool) -> str:
    """Return the held-out images of an evaluation as a phrase."""
    count = f"{evaluator.reference.n} held-out images"
    return f"half of the held-out images ({evaluator.reference.n})" if half else f"all {count}"


@one_line_errors
def main() -> None:
    """Search, report, and write the files."""
    args = parse_args()
    checkpoint = chosen_checkpoint(args.experiment, args.step)
    file = config_file(None, args.experiment)
    config = read_config(file, args.overrides, ("eval.ref_path",))
    config = with_proposed_freedom(with_derived_sizes(config, "none", "none"))
    sampler_settings(config.sampling, config.distill.sigmas)
    smaller = {"fid_sample_size": args.num, "variety_captions": 0, "save_images": None}
    config = config.model_copy(update={"eval": config.eval.model_copy(update=smaller)})
    freest = {"freedom": max(args.freedoms)} if args.freedoms else {}
    sampling = config.sampling.model_copy(update=freest)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    everything = Evaluator(config.model_copy(update={"sampling": sampling}), processes.device)
    parts = halves(everything)
    choosing, reporting = parts or (everything, everything)
    out = args.out or args.experiment / "tuned"
    tuning = Tuning(checkpoint, config, choosing, out)
    sampling = config.sampling
    before = Point(sampling.cfg_scale, sampling.guidance_interval, None, float(sampling.freedom))
    best, trials = search(tuning, before, args)
    report = {
        name: tuning.measure(point, reporting, args.num if parts else 0)
        for name, point in (("before", before), ("chosen", best))
    }
    criterion = f"The Fréchet distance, if it falls by {GAIN:.1%} or more,"
    if args.max_clip_loss is not None:
        criterion += f" at a CLIP score of at most {args.max_clip_loss:g} points below that before,"
    about: dict[str, Any] = {
        "step": tuning.step,
        "images_seen": load_checkpoint(checkpoint).get("images_seen"),
        "criterion": criterion,
        "images": args.num,
        "is_split": parts is not None,
        "chosen_on": described(choosing, parts is not None),
        "reported_on": described(reporting, parts is not None).replace("half", "the other half"),
        "before": before._asdict(),
        "chosen": best._asdict(),
        "trials": [{"settings": p._asdict(), "record": plain(r)} for p, r in trials.items()],
        "report": {name: plain(record) for name, record in report.items()},
    }
    print(f"\nTrials:\n{aligned([HEADER, *table_rows(about)], left=4)}")
    print(f"\nReport:\n{aligned([HEADER, *report_rows(about)], left=4)}\n")
    write_files(tuning, best, args.overrides, about)
    about = read_tuning(out / "tuned.safetensors") or about
    print("\n" + "\n".join(sentences(about)))


def plain(record: Record) -> Record:
    """Return a record without its config, which is that of the experiment."""
    return {key: value for key, value in record.items() if key != "config"}


if __name__ == "__main__":
    main()
