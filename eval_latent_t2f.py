"""Judge the checkpoints of an experiment by images from captions: Fréchet distance, CLIP score, …

The demo:           python eval_latent_t2f.py
Another experiment: python eval_latent_t2f.py --config X.yaml --experiment_dir results/X
Some checkpoints:   python eval_latent_t2f.py --ckpt_id_start 5000 --ckpt_id_end 20000
                    python eval_latent_t2f.py --ckpt_ids 5000,20000-30000
A sweep:            python eval_latent_t2f.py --cfg_scale 2.0,None --num_steps 10,40 \\
                        --solver heun,dpmpp_2m
Several processes:  python eval_latent_t2f.py --num_process_per_node 4
Images from a folder:  python eval_latent_t2f.py --images DIR --ref X.npz

Writes report.html (open it in a browser), results.jsonl, results.csv and curve.png into
<experiment_dir>/evaluation/. A checkpoint with a record in results.jsonl for these settings is not
judged again, and a killed sweep goes on with the batch that was in hand.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from accelerate import PartialState

from models.edm import EDMPrecond
from utils.base.errors import UserError, one_line_errors
from utils.base.launch import add_launch_arguments, relaunch
from utils.base.processes import is_main_process
from utils.config.command_line import DEFAULT_CONFIG, HelpFormatter, add_config_arguments
from utils.config.load import load_config
from utils.config.parsing import path_or_none, step_or_none
from utils.config.published_flags import (
    EVALUATION_VOID,
    SAMPLING,
    Flag,
    add_published_flags,
    flag_settings,
    note_void_flags,
)
from utils.config.schema import Config
from utils.data.derived_sizes import with_derived_sizes
from utils.evaluation.checkpoints import Evaluation, ways_of_sampling
from utils.evaluation.folder import add_folder_arguments, judge_folder
from utils.evaluation.html_report import write_report
from utils.evaluation.judge import Judge
from utils.evaluation.metric_names import metrics_text
from utils.evaluation.plots import plot_curves
from utils.evaluation.results import Record, Results, best_of, table, way_names
from utils.pretrained.checkpoint_files import read_weights
from utils.pretrained.denoisers import load_denoiser
from utils.sampling.compile import compile_for_sampling
from utils.training.checkpoint import list_checkpoints
from utils.training.experiment import experiment_name


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--experiment_dir",
        type=path_or_none,
        help="folder of the training; None = in --results_dir, under the name that the training "
        "makes from the config (demo for the demo's config)",
    )
    parser.add_argument(
        "--results_dir", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--ckpt_id_start", type=step_or_none, help="first step to evaluate; None = the first"
    )
    parser.add_argument(
        "--ckpt_id_end", type=step_or_none, help="last step to evaluate; None = the last"
    )
    parser.add_argument(
        "--ckpt_ids",
        help="steps to evaluate, e.g. 300,600-900; a range means all checkpoints in it; None = all",
    )
    parser.add_argument(
        "--save_images",
        choices=("png", "npz"),
        help="keep all judged images, see eval.save_images of the config; None = keep the first "
        "few",
    )
    own = {
        "preset": Flag("fast, or paper (40 Heun steps in float32)", "sampling.preset"),
        "amp": Flag("precision of the diffusion model: no (float32), bf16, fp16", "sampling.amp"),
    }
    published = ("train_global_batch", "local_rank", *SAMPLING)
    add_published_flags(parser, published, **own, **EVALUATION_VOID)
    add_folder_arguments(parser)
    add_launch_arguments(parser)
    return parser.parse_intermixed_args()


def folder_of(args: argparse.Namespace, config: Config) -> Path:
    """Return the folder of the experiment to evaluate."""
    if args.experiment_dir:
        return Path(args.experiment_dir)
    is_demo = args.config == DEFAULT_CONFIG
    return Path(args.results_dir, "demo" if is_demo else experiment_name(config))


def checkpoints_to_judge(
    folder: Path, first: int | None, last: int | None, listed: str | None = None
) -> dict[int, Path]:
    """Return step -> file of the checkpoints from `first` to `last` that `listed` names.

    None = no limit. Raises UserError if there are none, or if a single step in the list is missing.
    """
    found = list_checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: holds no checkpoints; train first, or set --experiment_dir")
    first = min(found) if first is None else first
    last = max(found) if last is None else last
    chosen = {step: path for step, path in found.items() if first <= step <= last}
    what = f"from step {first} to {last}"
    if listed not in (None, "None"):
        ranges = parse_steps(listed)
        single = [low for low, high in ranges if low == high and low not in found]
        chosen = {
            step: path
            for step, path in chosen.items()
            if any(low <= step <= high for low, high in ranges)
        }
        what = f"of step {single[0]}" if single else f"of steps {listed}, {what}"
        chosen = {} if single else chosen
    if not chosen:
        raise UserError(
            f"{folder}: no checkpoint {what}; there are "
            f"{len(found)}, from {min(found)} to {max(found)}"
        )
    return chosen


def parse_steps(text: str) -> list[tuple[int, int]]:
    """Return the ranges (first, last) of a list like '300,600-900'; raise UserError for others."""
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high:
            raise UserError(f"--ckpt_ids {text!r}: should look like 300,600-900")
        ranges.append((low, high))
    return ranges


def check_trained_with(path: Path, trained: Config, config: Config) -> None:
    """Raise UserError if the checkpoint's conditions or latents are not those of the config."""
    for key in ("model.num_classes", "model.in_channels", "model.in_size", "data.norm_feature"):
        section, name = key.split(".")
        there, here = (getattr(getattr(c, section), name) for c in (trained, config))
        if there != here:
            raise UserError(
                f"{path}: was trained with {key}={there}, but the config says {here}; "
                "give --config the one it was trained with"
            )


def denoiser_of(path: Path, config: Config, device: torch.device) -> EDMPrecond:
    """Load a checkpoint's network, built by the config in the checkpoint if there is one.

    `config` decides if it is compiled. Raises UserError if the two configs do not fit.
    """
    trained_with = read_weights(path)[1] or config
    check_trained_with(path, trained_with, config)
    denoiser, _ = load_denoiser(path, device, config=trained_with)
    compile_for_sampling(denoiser, config, device)
    return denoiser


@one_line_errors
def main() -> None:
    """Evaluate checkpoints, or a folder of images with `--images`."""
    args = parse_args()
    flags = flag_settings(args)
    if args.save_images:
        flags["--save_images"] = {"eval.save_images": args.save_images}
    required = () if args.images else ("eval.ref_path",)
    config = load_config(args.config, args.overrides, required, flags)
    config = with_derived_sizes(config, "none", "none")
    if args.images:
        relaunch(args)
        return judge_folder(args, config)
    ways = ways_of_sampling(config)
    folder = folder_of(args, config)
    checkpoints = checkpoints_to_judge(
        folder / "checkpoints", args.ckpt_id_start, args.ckpt_id_end, args.ckpt_ids
    )
    relaunch(args)
    note_void_flags(args)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    judge = Judge(config, processes.device)
    results = Results(folder / "evaluation")
    processes.print(f"judged by {judge.network.name} against {judge.reference.n} images")

    records: list[Record] = []
    for step, path in checkpoints.items():
        denoiser = None  # loaded if there is something to do
        for name, way in ways.items():
            evaluation, remark = Evaluation(results, path, way, judge), " (there already)"
            record = evaluation.recorded()
            if record is None:
                denoiser = denoiser or denoiser_of(path, config, processes.device)
                record, remark = evaluation.run(denoiser), ""
            processes.print(f"step {step}, {name}: {metrics_text(record)}{remark}")
            records.append(record)

    best = best_of(records)
    processes.print(f"\n{table(records)}\n")
    (name,) = way_names([best])
    processes.print(f"best: {checkpoints[best['step']]}, {name}")
    if is_main_process():
        plot_curves(results.records, results.folder / "curve.png")
        write_report(results, config, judge.clip)
    processes.print(f"{results.folder}/: report.html, results.jsonl, results.csv, curve.png")


if __name__ == "__main__":
    main()
