"""Train a masked diffusion transformer on latents, conditioned on perturbed image embeddings.

One process:         python train_latent_t2f.py --config configs/demo/demo.yaml --exp_name demo
Four GPUs:           python train_latent_t2f.py --config X.yaml --num_process_per_node 4
  or by a launcher:  torchrun --nproc_per_node 4 train_latent_t2f.py --config X.yaml
                     accelerate launch --num_processes 4 train_latent_t2f.py --config X.yaml
Two nodes, on each:  python train_latent_t2f.py --config X.yaml --num_process_per_node 8 \\
                     --num_proc_node 2 --node_rank 0 (or 1) --master_address HOST
Other settings:      python train_latent_t2f.py --config X.yaml train.lr=5e-5 model.mask_ratio=0.3
Finetune:            python train_latent_t2f.py --config Y.yaml --ckpt_path X/checkpoints/0300000.pt
Release a model:     python train_latent_t2f.py --export dit.safetensors --ckpt_path 0005000.pt \\
                         sampling.cfg_scale=2

The same command started again continues the run in its experiment folder. Ctrl-C, SIGTERM or
SIGUSR1 finishes the step, saves, and ends with code 130, 143 or 138. Other codes: 0 finished, 2 a
mistake in the settings, 3 diverged, 4 the last checkpoint could not be written, 5 another process
was lost (docs/cluster.md).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from models.edm import EDMPrecond, edm_loss
from utils.base.errors import DIVERGED, NOT_SAVED, UserError, one_line_errors
from utils.base.launch import add_launch_arguments, relaunch
from utils.config.command_line import HelpFormatter, add_config_arguments
from utils.config.load import load_config
from utils.config.parsing import path_or_none, true_or_false
from utils.config.published_flags import (
    SAMPLING,
    TRAINING,
    add_published_flags,
    flag_settings,
    note_void_flags,
)
from utils.config.schema import Config
from utils.data.latent_dataset import open_data
from utils.evaluation.checkpoints import evaluate_into, ways_of_sampling
from utils.evaluation.judge import Judge
from utils.evaluation.plots import plot_curves
from utils.evaluation.results import Results
from utils.pretrained.checkpoint_files import load_checkpoint, load_weights
from utils.pretrained.denoisers import denoiser_from_config, export_safetensors
from utils.training import experiment, finetune
from utils.training.batches import DataOrder, derived_seed, make_condition, training_batches
from utils.training.checkpoint import checkpoint_path, discard_leftovers, latest_checkpoint
from utils.training.checkpoint_writer import CheckpointWriter
from utils.training.distributed import (
    StopSignal,
    Team,
    Watchdog,
    allow_tf32,
    clip,
    ending_if_a_process_is_lost,
    images_per_forward,
    start_accelerator,
)
from utils.training.ema import EMA, ema_decay_at
from utils.training.run_log import RunLog, require_wandb
from utils.training.sample_grid import SampleGrid
from utils.training.schedules import always_masked, lr_after, mask_ratio_after, number_of_steps
from utils.training.sharding import host_copy, shard_training, wants_shards, whole
from utils.training.speed import best_amp, speed_up
from utils.training.step_guard import StepGuard, diverged, skip_unless
from utils.training.step_window import Window, memory_gb


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--exp_name", help="name of the experiment folder; None = from the config")
    parser.add_argument(
        "--results_dir", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--ckpt_path",
        type=path_or_none,
        help="checkpoint that a new run starts from: weights, optimizer and step; None = from none",
    )
    parser.add_argument(
        "--use_strict_load",
        type=true_or_false,
        default=True,
        metavar="BOOL",
        help="False: --ckpt_path may lack weights or have others, which are listed; the optimizer "
        "starts anew",
    )
    parser.add_argument(
        "--enable_eval", action="store_true", help="evaluate each checkpoint after saving it"
    )
    parser.add_argument(
        "--use_wandb",
        action="store_true",
        help="log to Weights & Biases too; its WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP hold",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="write --ckpt_path's EMA weights here, with its config and any key=value, and end",
    )
    add_published_flags(parser, TRAINING + SAMPLING)
    add_launch_arguments(parser)
    return parser.parse_intermixed_args()


def train(
    config: Config,
    folder: Path,
    start_from: Path | None,
    enable_eval: bool,
    *,
    strict: bool = True,
    use_wandb: bool = False,
) -> int:
    """Run, or continue, the training of one experiment folder; returns the exit code.

    A new run starts from the checkpoint `start_from`, if given; `strict`: see finetune.start_from.
    """
    options, every = config.train, config.log
    amp = best_amp(options.amp)
    sharded = wants_shards(options.shard, amp)
    accelerator = start_accelerator(amp, options.grad_accum, always_masked(config))
    rank, processes = accelerator.process_index, accelerator.num_processes
    device, is_main = accelerator.device, accelerator.is_main_process
    team = Team()
    share = images_per_forward(options.batchsize, processes, options.grad_accum)
    own_rows = {"first": rank * share, "total": processes * share}  # of what all draw alike
    if device.type == "cuda":
        allow_tf32(options.tf32)
    data = open_data(config)

    # Where the run in this folder stands, if there is one.
    notes: list[str] = []
    checkpoints = folder / "checkpoints"
    latest = latest_checkpoint(checkpoints, notes.append)
    state = load_checkpoint(latest) if latest else None
    experiment.claim(folder, config, state, data.length)
    step, images_seen = (state["step"], state["images_seen"]) if state else (0, 0)

    # The network, the average of its weights, the optimizer.
    torch.manual_seed(options.seed)
    denoiser = denoiser_from_config(config).to(device)
    ema = EMA(denoiser)
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True
    )
    if state is None and start_from is not None:
        step, images_seen, told = finetune.start_from(
            start_from, denoiser, ema.module, optimizer, options.batchsize, strict
        )
        notes += told
    first_step = state.get("first_step", 0) if state else step
    max_steps = number_of_steps(config, data.length, first_step)
    generator = torch.Generator(device)
    generator.manual_seed(derived_seed(options.seed, "noise", 0, images_seen))
    window, guard = Window(device), StepGuard(device)
    if state is not None:
        load_weights(denoiser, state["model"], latest)
        load_weights(ema.module, state["ema"], latest)
        optimizer.load_state_dict(state["opt"])
        if "guard" in state:  # not in older checkpoints
            window.load(state["window"])
            guard.load(state["guard"])
        generator.set_state(state["rng"][0])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        not_read = f"; {start_from} is not read" if start_from else ""
        notes.append(f"continuing {folder} from step {step}{not_read}")
    state = None  # its memory
    notes += speed_up(denoiser.model, config, device)
    if sharded:
        trained, optimizer = shard_training(denoiser, ema, optimizer)
        model, optimizer = denoiser, accelerator.prepare(optimizer)
    else:
        model, optimizer = accelerator.prepare(denoiser, optimizer)
    samples = SampleGrid.from_config(config, device) if is_main else None
    judge = Judge(config, device) if enable_eval else None
    ways = ways_of_sampling(config) if enable_eval else {}
    results = Results(folder / "evaluation")
    size = sum(p.numel() for p in trained) / 1e6
    notes.append(
        f"{size:.1f} M trained parameters; {data.length} images; {max_steps - first_step} steps of "
        f"{options.batchsize} = {processes} process(es) x {options.grad_accum} x {share}; "
        f"{device.type}, amp {amp}{', sharded' if sharded else ''}"
    )
    if samples is None:
        notes.append("no sample grids: eval.feat_path is not set, or log.sample_every is 0")

    # Nothing is written before every process has found all it needs.
    team.wait()
    if is_main:
        experiment.write_config(folder, config)
        discard_leftovers(checkpoints, step if latest else -1)
    log = RunLog(
        folder,
        step,
        tensorboard=every.use_tensorboard,
        wandb_config=config.to_dict() if use_wandb else None,
    )
    for note in notes:
        log.info(note)
    writer = CheckpointWriter(checkpoints, log, every.keep_last, every.keep_every)
    order = DataOrder(data.length, options.seed)

    def save() -> None:
        """Hand this moment's state to the writer; called by all processes."""
        scaler = accelerator.scaler
        state = {
            "model": denoiser.state_dict(),
            "ema": ema.module.state_dict(),
            "opt": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "step": step,
            "first_step": first_step,
            "images_seen": images_seen,
            "data_position": order.describe(images_seen),
            "rng": [generator.get_state()],
            "window": window.state(),
            "guard": guard.state(),
            "config": config.to_dict(),
        }
        copied = host_copy(state, keep=is_main)
        if is_main:
            writer.write(step, copied)

    def end(code: int, message: str, patience: float = 15) -> int:
        """Wait for the checkpoint, say what happened, and return the exit code; called by all."""
        unsaved = team.highest(not writer.close(patience))
        lost = "NOT SAVED, the steps after the last checkpoint are lost: " if unsaved else ""
        log.info(lost + message)
        log.close()
        accelerator.end_training()
        return NOT_SAVED if unsaved else code

    def averaged() -> EDMPrecond:
        """The network with the averaged weights; called by all processes."""
        return whole(ema.module, denoiser_from_config(config)) if sharded else ema.module

    def evaluate(path: Path) -> None:
        """Judge the EMA weights, those of the checkpoint `path`; called by all processes."""
        if team.highest(not writer.wait(patience=120)):
            log.info(f"{path} is not evaluated, as it could not be written yet")
            return
        network = averaged()
        for name, way in ways.items():
            record = evaluate_into(results, path, network, way, judge, step=step)
            log.evaluation(step, name, record)
        if is_main:
            plot_curves(results.records, results.folder / "curve.png")

    # What the new run starts from, as published; or what a kill kept from being judged.
    was_due = step in (first_step, max_steps) or step % every.ckpt_every == 0
    if enable_eval and step > 0 and was_due:
        evaluate(latest or start_from)

    batches = training_batches(
        data,
        order,
        images_seen,
        share,
        rank=rank,
        processes=processes,
        xflip=options.xflip,
        device=device,
        threads=max(1, options.num_workers),
    )
    stop, watchdog = StopSignal(), Watchdog(options.step_timeout)
    while step < max_steps:
        watchdog.step_begins()
        started = time.perf_counter()
        mask_ratio = mask_ratio_after(step, max_steps, config, first_step)
        lr = lr_after(step, max_steps, config, first_step)
        for group in optimizer.param_groups:
            group["lr"] = lr

        step_loss = torch.zeros((), device=device)
        for _ in range(options.grad_accum):
            asked = time.perf_counter()
            latents, y = next(batches)
            window.waiting += time.perf_counter() - asked
            with accelerator.accumulate(model):
                cond = make_condition(y, config, generator, **own_rows)
                with accelerator.autocast():
                    losses = edm_loss(
                        model,
                        latents,
                        cond,
                        mask_ratio=mask_ratio,
                        mae_loss_coef=config.model.mae_loss_coef,
                        P_mean=options.P_mean,
                        P_std=options.P_std,
                        generator=generator,
                        encoder=ema.module,
                        **own_rows,
                    )
                loss = losses.mean()
                accelerator.backward(loss)
                step_loss += loss.detach() / options.grad_accum
                if accelerator.sync_gradients:
                    grad_norm = clip(accelerator, trained, options.grad_clip)
                    step_loss = accelerator.reduce(step_loss, "mean")
                    verdict = guard.judge(step_loss, grad_norm)
                    skip_unless(verdict.good, optimizer.optimizer)
                optimizer.step()
                optimizer.zero_grad()

        step += 1
        images_seen += options.batchsize
        window.add(step_loss, grad_norm, verdict)
        decay = ema_decay_at(images_seen, options.batchsize, options.ema_decay, options.ema_rampup)
        ema.update(decay)

        finished = step == max_steps
        log_now = step % every.log_every == 0 or finished
        means = window.means() if log_now else {}  # the only wait for the device
        window.seconds += time.perf_counter() - started
        signal = team.highest(stop.received)
        watchdog.step_ends()
        if log_now:
            log.metrics(
                step,
                {
                    "kimg": images_seen / 1000,
                    **means,
                    "lr": lr,
                    "mask_ratio": mask_ratio,
                    "images_per_s": window.steps * options.batchsize / window.seconds,
                    "memory_gb": memory_gb(device),
                    "data_wait": window.waiting / window.seconds,
                },
            )
            window.reset()

        checkpoint_due = step % every.ckpt_every == 0 and step >= every.ckpt_after
        draw_now = every.sample_every and (step % every.sample_every == 0 or finished)
        if (log_now or checkpoint_due) and guard.in_a_row() >= options.max_bad_steps:
            return end(DIVERGED, diverged(guard.in_a_row(), step, checkpoints))
        if checkpoint_due or finished or signal:
            save()
        if signal:
            text = f"stopped after step {step}; the same command continues this run"
            return end(128 + signal, text)
        if draw_now:
            network = averaged()
            if samples:
                samples.save(network, folder / "samples" / f"{step:07d}.png")
        if enable_eval and (checkpoint_due or finished):
            evaluate(checkpoint_path(checkpoints, step))
        if checkpoint_due or draw_now:
            team.wait()  # for what one process did alone

    return end(0, f"finished: {folder} holds the weights of step {max_steps}", patience=600)


@one_line_errors
def main() -> None:
    args = parse_args()
    if args.export:
        if not args.ckpt_path:
            raise UserError("--export: name the checkpoint to export with --ckpt_path")
        export_safetensors(args.ckpt_path, args.export, args.overrides)
        print(f"{args.export}: EMA weights of {args.ckpt_path}, float16")
        return
    config = load_config(
        args.config, args.overrides, require=("data.root",), flags=flag_settings(args)
    )
    if args.use_wandb:
        require_wandb()
    relaunch(args)
    note_void_flags(args)
    folder = args.results_dir / (args.exp_name or experiment.experiment_name(config))
    with experiment.locked(folder), ending_if_a_process_is_lost():
        code = train(
            config,
            folder,
            args.ckpt_path,
            args.enable_eval,
            strict=args.use_strict_load,
            use_wandb=args.use_wandb,
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
