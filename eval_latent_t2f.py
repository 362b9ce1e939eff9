"""Judge the checkpoints of an experiment: Fréchet distance and CLIP score of images from captions.

The demo:           python eval_latent_t2f.py
Another experiment: python eval_latent_t2f.py --config X.yaml --experiment_dir results/X
Some checkpoints:   python eval_latent_t2f.py --ckpt_id_start 5000 --ckpt_id_end 20000
With and without guidance:  python eval_latent_t2f.py --cfg_scale 2.0,None
Several processes:  python eval_latent_t2f.py --num_process_per_node 4

Writes results.jsonl, results.csv and curve.png into <experiment_dir>/evaluation/. What is in
results.jsonl already, for the same checkpoint and settings, is not computed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import PartialState

from utils.checkpoint import list_checkpoints, load_denoiser, read_weights
from utils.config import (
    DEFAULT_CONFIG,
    Config,
    HelpFormatter,
    add_config_arguments,
    load_config,
)
from utils.distributed import add_launch_arguments, relaunch
from utils.errors import UserError, one_line_errors
from utils.evaluation import Judge, evaluate_into
from utils.experiment import experiment_name
from utils.published_flags import (
    EVALUATION_VOID,
    SAMPLING,
    add_published_flags,
    flag_settings,
    note_void_flags,
    path_or_none,
    step_or_none,
)
from utils.results import Record, Results, best_of, guidance_name, table
from utils.tracking import figures_text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--experiment_dir",
        type=path_or_none,
        help="folder of the training; None = in --results_dir, with the name that the training "
        "makes from the config, for the demo's config: demo",
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
        "--amp",
        choices=("no", "bf16", "fp16"),
        default="no",
        help="precision of the diffusion model; no = float32",
    )
    add_published_flags(parser, ("train_global_batch", "local_rank", *SAMPLING), **EVALUATION_VOID)
    add_launch_arguments(parser)
    return parser.parse_intermixed_args()


def folder_of(args: argparse.Namespace, config: Config) -> Path:
    """The experiment to evaluate."""
    is_demo = args.config == DEFAULT_CONFIG
    name = "demo" if is_demo else experiment_name(config)
    return args.experiment_dir or args.results_dir / name


def checkpoints_in_range(folder: Path, first: int | None, last: int | None) -> dict[int, Path]:
    """Step -> file, None = no limit; raises UserError if there is none in the range."""
    found = list_checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: holds no checkpoints; train first, or set --experiment_dir")
    first = min(found) if first is None else first
    last = max(found) if last is None else last
    chosen = {step: path for step, path in found.items() if first <= step <= last}
    if not chosen:
        raise UserError(
            f"{folder}: no checkpoint from step {first} to {last}; there are "
            f"{len(found)}, from {min(found)} to {max(found)}"
        )
    return chosen


def with_guidance(config: Config, scale: float | None) -> Config:
    sampling = config.sampling.model_copy(update={"cfg_scale": scale})
    return config.model_copy(update={"sampling": sampling})


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


@one_line_errors
def main() -> None:
    args = parse_args()
    config = load_config(
        args.config, args.overrides, require=("eval.ref_path",), flags=flag_settings(args)
    )
    scales = config.eval.cfg_scales or [config.sampling.cfg_scale]
    folder = folder_of(args, config)
    checkpoints = checkpoints_in_range(folder / "checkpoints", args.ckpt_id_start, args.ckpt_id_end)
    relaunch(args)
    note_void_flags(args)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    judge = Judge(config, processes.device)
    results = Results(folder / "evaluation")
    processes.print(f"judged by {judge.network.name} against {judge.reference.n} images")

    records: list[Record] = []
    for step, path in checkpoints.items():
        # How the network is built is the training's business, all else the given config's.
        trained_with = read_weights(path)[1] or config
        check_trained_with(path, trained_with, config)
        denoiser, _ = load_denoiser(path, processes.device, config=trained_with)
        for scale in scales:
            known = len(results.records)
            record = evaluate_into(
                results, path, denoiser, with_guidance(config, scale), judge, amp=args.amp
            )
            is_new = len(results.records) > known
            processes.print(
                f"step {step}, {guidance_name(scale)}: {figures_text(record)}"
                f"{'' if is_new else ' (there already)'}"
            )
            records.append(record)

    if processes.is_main_process:
        results.plot()
    best = best_of(records)
    processes.print(f"\n{table(records)}\n")
    processes.print(f"best: {checkpoints[best['step']]}, {guidance_name(best['cfg_scale'])}")
    processes.print(f"{results.folder}/: results.jsonl, results.csv, curve.png")


if __name__ == "__main__":
    main()
