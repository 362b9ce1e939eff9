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
from utils.config import Config, HelpFormatter, add_config_arguments, load_config
from utils.distributed import add_launch_arguments, relaunch
from utils.errors import UserError, one_line_errors
from utils.evaluation import Judge, evaluate_into
from utils.generate import parse_scale
from utils.results import Record, Results, best_of, guidance_name, table

FROM_CONFIG = "eval.cfg_scales, or sampling.cfg_scale if that is empty"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--experiment_dir", type=Path, default=Path("results/demo"), help="folder of the training"
    )
    parser.add_argument("--ckpt_id_start", type=int, default=0, help="first step to evaluate")
    parser.add_argument("--ckpt_id_end", type=int, help="last step to evaluate; None = the last")
    parser.add_argument(
        "--cfg_scale",
        default=FROM_CONFIG,
        help="guidance scales, e.g. 2.0,None where None is the condition alone",
    )
    parser.add_argument("--num_steps", type=int, help="sampler's levels, for sampling.num_steps")
    parser.add_argument("--solver", help="heun, euler or dpmpp_2m, for sampling.solver")
    parser.add_argument("--num_expected", type=int, help="images, for eval.fid_sample_size")
    parser.add_argument("--fid_batch_size", type=int, help="images at once, for eval.batchsize")
    parser.add_argument(
        "--amp",
        choices=("no", "bf16", "fp16"),
        default="no",
        help="precision of the diffusion model; no = float32",
    )
    add_launch_arguments(parser)
    return parser.parse_intermixed_args()


def configured(args: argparse.Namespace) -> Config:
    """The config with what the flags set, validated as if it stood in the file."""
    flags = {
        "sampling.num_steps": args.num_steps,
        "sampling.solver": args.solver,
        "eval.fid_sample_size": args.num_expected,
        "eval.batchsize": args.fid_batch_size,
    }
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    return load_config(
        args.config, [*args.overrides, *overrides], require=("eval.feat_path", "eval.ref_path")
    )


def guidance_scales(args: argparse.Namespace, config: Config) -> list[float | None]:
    """The guidance scales to evaluate each checkpoint at."""
    if args.cfg_scale != FROM_CONFIG:
        return [parse_scale(part) for part in args.cfg_scale.split(",")]
    return config.eval.cfg_scales or [config.sampling.cfg_scale]


def checkpoints_in_range(args: argparse.Namespace) -> dict[int, Path]:
    """Step -> file; raises UserError if there is none in the range."""
    folder = args.experiment_dir / "checkpoints"
    found = list_checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: holds no checkpoints; train first, or set --experiment_dir")
    last = max(found) if args.ckpt_id_end is None else args.ckpt_id_end
    chosen = {step: path for step, path in found.items() if args.ckpt_id_start <= step <= last}
    if not chosen:
        raise UserError(
            f"{folder}: no checkpoint from step {args.ckpt_id_start} to {last}; there are "
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
    config = configured(args)
    scales, checkpoints = guidance_scales(args, config), checkpoints_in_range(args)
    relaunch(args)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    judge = Judge(config, processes.device)
    results = Results(args.experiment_dir / "evaluation")
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
                f"step {step}, {guidance_name(scale)}: "
                f"Fréchet distance {record['frechet_distance']:.4g}, "
                f"CLIP score {record['clip_score']:.2f}"
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
