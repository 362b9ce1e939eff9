"""Evaluate the checkpoints of an experiment on test captions: Fréchet distance, CLIP score, …

The demo:           python eval_latent_t2f.py
Another experiment: python eval_latent_t2f.py --experiment_dir results/X
One file, without experiment: python eval_latent_t2f.py --ckpt dit.safetensors
Some checkpoints:   python eval_latent_t2f.py --ckpt_id_start 5000 --ckpt_id_end 20000
                    python eval_latent_t2f.py --ckpt_ids 5000,20000-30000
A sweep:            python eval_latent_t2f.py --cfg_scale 2.0,None --num_steps 10,40 \\
                        --solver heun,dpmpp_2m
Several processes:  python eval_latent_t2f.py --num_process_per_node 4
Images from a folder:  python eval_latent_t2f.py --images DIR --ref X.npz

The settings are those of the experiment (its config.yaml) or of the file. --config replaces them;
key=value and flags change them. Writes report.html (open it in a browser), results.jsonl,
results.csv and curve.png into <experiment_dir>/evaluation/, or into --out. A checkpoint with a
record in results.jsonl for these settings is not evaluated again, and a killed sweep goes on with
the batch that was in hand.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, note
from utils.base.script import one_line_errors_of_each

# isort: split
import torch
from accelerate import PartialState

from models.edm import EDMPrecond
from utils.base.launch import add_launch_arguments, join_processes, relaunch
from utils.base.processes import is_main_process, leave_processes
from utils.config.command_line import DEFAULT_CONFIG, ArgumentParser, add_config_arguments
from utils.config.parsing import path_or_none, step_or_none
from utils.config.published import (
    EVALUATION_VOID,
    SAMPLING,
    Flag,
    add_published_flags,
    flag_settings,
    note_void_flags,
)
from utils.config.schema import Config
from utils.data.derived_sizes import with_derived_sizes
from utils.evaluation.checkpoints import Evaluation, configs_to_evaluate, file_hash
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.folder import add_folder_arguments, report_folder
from utils.evaluation.html_report import write_report
from utils.evaluation.metric_names import metrics_text
from utils.evaluation.plots import plot_curves
from utils.evaluation.results import (
    Record,
    Results,
    best_of,
    evaluation_of,
    is_of_experiment,
    setting_names,
    table,
)
from utils.pretrained.checkpoint_files import (
    foreign_files,
    list_checkpoints,
    read_weights,
    step_of,
)
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import config_file, experiment_config, read_config
from utils.sampling.compile import compile_for_sampling
from utils.training.experiment import experiment_name


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add_config_arguments(
        parser, instead=f"that of the experiment or of --ckpt, or else {DEFAULT_CONFIG}"
    )
    add(
        "--experiment_dir",
        type=path_or_none,
        help="folder of the training; None = in --results_dir, under the name that the training "
        "makes from --config (demo without --config)",
    )
    add(
        "--ckpt",
        type=path_or_none,
        help="one checkpoint (.pt) or released model (.safetensors) to evaluate, instead of those "
        "of an experiment; None = those of the experiment",
    )
    add(
        "--out",
        type=path_or_none,
        help="folder to write into; None = evaluation/ of the experiment, and for a --ckpt that is "
        "in none, <results_dir>/<name of the file>/evaluation/",
    )
    add("--results_dir", type=Path, default=Path("results"), help="folder of all experiments")
    add("--ckpt_id_start", type=step_or_none, help="first step to evaluate; None = the first")
    add("--ckpt_id_end", type=step_or_none, help="last step to evaluate; None = the last")
    add(
        "--ckpt_ids",
        help="steps to evaluate, e.g. 300,600-900; a range means all checkpoints in it; None = all",
    )
    own = {
        "preset": Flag(
            "paper (158 evaluations of the network an image), fast (18), fast8 (8), or instant for "
            "students",
            "sampling.preset",
        ),
        "save_images": Flag("keep all images, as png or npz", "eval.save_images"),
        "amp": Flag("precision of the diffusion model: no (float32), bf16, fp16", "sampling.amp"),
    }
    published = ("train_global_batch", "local_rank", *SAMPLING)
    add_published_flags(parser, published, **own, **EVALUATION_VOID)
    add_folder_arguments(parser)
    add_launch_arguments(parser)
    return parser.parse_intermixed_args()


def check_choice(args: argparse.Namespace) -> None:
    """Raise UserError if the command line names more than one thing to evaluate."""
    if args.ckpt and (args.experiment_dir or args.images):
        raise UserError("--ckpt, --experiment_dir and --images exclude each other; give one")
    limits = (args.ckpt_id_start, args.ckpt_id_end, args.ckpt_ids)
    if args.ckpt and any(limit not in (None, "None") for limit in limits):
        raise UserError("--ckpt names one file; leave --ckpt_ids, _id_start and _id_end out")


def load_settings(args: argparse.Namespace) -> Config:
    """Return the config of `--config`, `--ckpt`, the experiment or the demo, and note its file.

    The command line changes it. Raises UserError if the folder of `--experiment_dir` holds none.
    """
    folder = args.experiment_dir
    if args.config is None and not (folder or args.ckpt or args.images):
        demo = args.results_dir / "demo"
        folder = demo if experiment_config(demo) else None
    args.config = config_file(args.config, folder, args.ckpt)
    required = () if args.images else ("eval.ref_path",)
    config = read_config(args.config, args.overrides, required, flag_settings(args))
    return with_derived_sizes(config, "none", "none")


def checkpoints_to_evaluate(
    folder: Path, first: int | None, last: int | None, listed: str | None
) -> dict[int, Path]:
    """Return step -> file of the checkpoints from `first` to `last` that `listed` names.

    None = no limit. Raises UserError if there are none, or if a single step in the list is missing.
    """
    found, foreign = list_checkpoints(folder), foreign_files(folder)
    if foreign is not None:
        note(foreign)
    if not found:
        raise UserError(f"{folder}: holds no checkpoints; train first, or set --experiment_dir")
    first = min(found) if first is None else first
    last = max(found) if last is None else last
    ranges, missing, what = [(first, last)], [], f"from step {first} to {last}"
    if listed not in (None, "None"):
        ranges = parse_steps(listed)
        missing = [low for low, high in ranges if low == high and low not in found]
        what = f"of step {missing[0]}" if missing else f"of steps {listed}, {what}"
    steps = {
        step: path
        for step, path in found.items()
        if first <= step <= last and any(low <= step <= high for low, high in ranges)
    }
    if missing or not steps:
        raise UserError(
            f"{folder}: no checkpoint {what}; there are "
            f"{len(found)}, from {min(found)} to {max(found)}"
        )
    return steps


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


def denoiser_of(path: Path, config: Config, device: torch.device) -> EDMPrecond:
    """Load a checkpoint's network, built by the config in the checkpoint if there is one.

    `config` decides if it is compiled. Raises UserError if the conditions or latents of the two
    configs differ.
    """
    trained_with = read_weights(path)[1] or config
    for key in ("model.num_classes", "model.in_channels", "model.in_size", "data.norm_feature"):
        section, name = key.split(".")
        there, here = (getattr(getattr(c, section), name) for c in (trained_with, config))
        if there != here:
            raise UserError(
                f"{path}: was trained with {key}={there}, but the config says {here}; "
                "leave --config out, or give the one it was trained with"
            )
    denoiser, _ = load_denoiser(path, device, config=trained_with)
    compile_for_sampling(denoiser, config.sampling, device)
    return denoiser


@one_line_errors_of_each
def main() -> None:
    """Evaluate checkpoints, or a folder of images with `--images`."""
    args = parse_args()
    check_choice(args)
    is_given, is_demo = args.config is not None, args.config in (None, DEFAULT_CONFIG)
    config = load_settings(args)
    if args.images:
        relaunch(args)
        report_folder(args, config)
        return leave_processes()
    configs = configs_to_evaluate(config)
    if args.ckpt:
        checkpoints = {step_of(args.ckpt): args.ckpt}
        folder = args.out or evaluation_of(args.ckpt, args.results_dir)
    else:
        name = "demo" if is_demo else experiment_name(config)
        experiment = args.experiment_dir or args.results_dir / name
        limits = args.ckpt_id_start, args.ckpt_id_end, args.ckpt_ids
        checkpoints = checkpoints_to_evaluate(experiment / "checkpoints", *limits)
        folder = args.out or experiment / "evaluation"
    relaunch(args)
    if not is_given:
        note(f"the settings are those of {args.config}, as --config is not given")
    note_void_flags(args)
    join_processes()
    processes = PartialState(cpu=not torch.accelerator.is_available())
    evaluator = Evaluator(config, processes.device)
    results = Results(folder)
    if args.ckpt and not is_of_experiment(args.ckpt):
        digest = file_hash(args.ckpt)
        if any(record.get("checkpoint_sha256") != digest for record in results.records):
            note(f"{results.folder} holds results of other files too; --out keeps them apart")
    network, reference = evaluator.network.name, evaluator.reference
    processes.print(f"features of {network}, compared with {reference.n} images")

    records: list[Record] = []
    for step, path in checkpoints.items():
        denoiser = None  # loaded if there is something to do
        for name, one in configs.items():
            evaluation = Evaluation(results, path, one, evaluator, step)
            record, remark = evaluation.recorded(), " (there already)"
            if record is None:
                denoiser = denoiser or denoiser_of(path, config, processes.device)
                record, remark = evaluation.run(denoiser), ""
            processes.print(f"step {step}, {name}: {metrics_text(record)}{remark}")
            records.append(record)

    best = best_of(records)
    processes.print(f"\n{table(records)}\n")
    processes.print(f"best: {checkpoints[best['step']]}, {setting_names([best])[0]}")
    if is_main_process():
        results.refresh()  # another evaluation may have ended meanwhile
        plot_curves(results.records, results.folder / "curve.png")
        write_report(results, config, evaluator.clip)
    processes.print(f"{results.folder}/: report.html, results.jsonl, results.csv, curve.png")
    leave_processes()


if __name__ == "__main__":
    main()
