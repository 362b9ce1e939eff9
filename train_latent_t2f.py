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

The same command started again continues the run in its experiment folder. Ctrl-C or SIGTERM
finishes the step, saves, and ends with code 130 or 143.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from models.edm import edm_loss
from models.perturbation import perturb
from utils import experiment, finetune
from utils.checkpoint import (
    checkpoint_path,
    denoiser_from_config,
    export_safetensors,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    remove_all_but,
    save_checkpoint,
)
from utils.config import Config, HelpFormatter, add_config_arguments, load_config
from utils.distributed import (
    StopSignal,
    add_launch_arguments,
    gather_rng,
    images_per_forward,
    relaunch,
    start_accelerator,
)
from utils.ema import EMA, ema_decay_at
from utils.errors import UserError, one_line_errors
from utils.evaluation import Judge, evaluate_into
from utils.published_flags import (
    SAMPLING,
    TRAINING,
    add_published_flags,
    flag_settings,
    note_void_flags,
    path_or_none,
    true_or_false,
)
from utils.results import Results, guidance_name
from utils.sample_grid import SampleGrid
from utils.schedules import always_masked, lr_after, mask_ratio_after, number_of_steps
from utils.tracking import RunLog, Window, memory_gb, require_wandb
from utils.training_data import DataOrder, derived_seed, open_data, training_batches


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


def make_condition(
    y: torch.Tensor | None, config: Config, generator: torch.Generator
) -> torch.Tensor | None:
    """Embeddings (N, D) -> perturbed conditions (N, D), some rows zeroed: "no condition".

    External features, if there are such, are the last columns of both, and are not touched. A
    learnable perturbation follows in the network.
    """
    if y is None:
        return None
    options = config.train
    y, features = y.tensor_split([config.model.num_classes], dim=1)
    if options.perturbation and options.perturbation_type != "learnable":
        y = perturb(
            y,
            options.perturbation_type,
            options.perturbation,
            mean=options.mean,
            trunc_a=options.trunc_a,
            trunc_b=options.trunc_b,
            generator=generator,
        )
    elif config.data.norm_feature or config.learns_perturbation:
        y = F.normalize(y, dim=1)
    draw = torch.rand(len(y), 1, device=y.device, generator=generator)
    return torch.cat([y * (draw >= config.model.class_dropout_prob), features], dim=1)


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
    accelerator = start_accelerator(options.amp, options.grad_accum, always_masked(config))
    rank, processes = accelerator.process_index, accelerator.num_processes
    device = accelerator.device
    share = images_per_forward(options.batchsize, processes, options.grad_accum)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = options.tf32

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
    generator.manual_seed(derived_seed(options.seed, "noise", rank, images_seen))
    window = Window(device)
    if state is not None:
        load_weights(denoiser, state["model"], latest)
        load_weights(ema.module, state["ema"], latest)
        optimizer.load_state_dict(state["opt"])
        window.load(state["window"], rank, processes)
        if len(state["rng"]) == processes:  # otherwise the draws are new ones
            generator.set_state(state["rng"][rank])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        not_read = f"; {start_from} is not read" if start_from else ""
        notes.append(f"continuing {folder} from step {step}{not_read}")
    state = None  # its memory
    if options.compile:
        denoiser.model.compile()
    model, optimizer = accelerator.prepare(denoiser, optimizer)
    samples = SampleGrid.from_config(config, device) if accelerator.is_main_process else None
    judge = Judge(config, device) if enable_eval else None
    results = Results(folder / "evaluation")
    size = sum(p.numel() for p in trained) / 1e6
    notes.append(
        f"{size:.1f} M trained parameters; {data.length} images; {max_steps - first_step} steps of "
        f"{options.batchsize} = {processes} process(es) x {options.grad_accum} x {share}; "
        f"{device.type}, amp {options.amp}"
    )
    if samples is None:
        notes.append("no sample grids: eval.feat_path is not set, or log.sample_every is 0")

    # Nothing is written before every process has found all it needs.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        experiment.write_config(folder, config)
    log = RunLog(
        folder,
        step,
        tensorboard=every.use_tensorboard,
        wandb_config=config.to_dict() if use_wandb else None,
    )
    for note in notes:
        log.info(note)

    def save() -> None:
        """Write the checkpoint of this moment; called by all processes."""
        rng, sums = gather_rng(generator), window.state(accelerator)
        log.flush()
        if accelerator.is_main_process:
            scaler = accelerator.scaler
            save_checkpoint(
                checkpoint_path(checkpoints, step),
                {
                    "model": denoiser.state_dict(),
                    "ema": ema.module.state_dict(),
                    "opt": optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else None,
                    "step": step,
                    "first_step": first_step,
                    "images_seen": images_seen,
                    "data_position": order.describe(images_seen),
                    "rng": rng,
                    "window": sums,
                    "config": config.to_dict(),
                },
            )
            if every.keep_last is not None:
                remove_all_but(checkpoints, every.keep_last)
        accelerator.wait_for_everyone()

    def evaluate(path: Path) -> None:
        """Judge the EMA weights, those of the checkpoint `path`; called by all processes."""
        for scale in config.eval.cfg_scales or [config.sampling.cfg_scale]:
            sampling = config.sampling.model_copy(update={"cfg_scale": scale})
            guided = config.model_copy(update={"sampling": sampling})
            record = evaluate_into(results, path, ema.module, guided, judge, step=step)
            log.evaluation(step, guidance_name(scale), record)
        if accelerator.is_main_process:
            results.plot()

    if enable_eval and first_step == step > 0:  # what the new run starts from, as published
        evaluate(start_from)

    order = DataOrder(data.length, options.seed)
    first = images_seen + rank * share
    batches = training_batches(
        data,
        order,
        first,
        share,
        processes * share,
        xflip=options.xflip,
        device=device,
        threads=max(1, options.num_workers),
    )
    stop = StopSignal()
    while step < max_steps:
        started = time.perf_counter()
        mask_ratio = mask_ratio_after(step, max_steps, config, first_step)
        lr = lr_after(step, max_steps, config, first_step)
        for group in optimizer.param_groups:
            group["lr"] = lr

        for _ in range(options.grad_accum):
            asked = time.perf_counter()
            latents, y = next(batches)
            window.waiting += time.perf_counter() - asked
            with accelerator.accumulate(model):
                cond = make_condition(y, config, generator)
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
                    )
                loss = losses.mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    limit = options.grad_clip or math.inf
                    window.grad_norm += accelerator.clip_grad_norm_(trained, limit)
                optimizer.step()
                optimizer.zero_grad()
            window.loss += loss.detach() / options.grad_accum

        step += 1
        images_seen += options.batchsize
        window.steps += 1
        decay = ema_decay_at(images_seen, options.batchsize, options.ema_decay, options.ema_rampup)
        ema.update(decay)

        finished = step == max_steps
        log_now = step % every.log_every == 0 or finished
        means = window.means(accelerator) if log_now else {}  # the only wait for the device
        window.seconds += time.perf_counter() - started
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

        signal = stop.agreed(accelerator, step)
        checkpoint_due = step % every.ckpt_every == 0 and step >= every.ckpt_after
        if checkpoint_due or finished or signal:
            save()
        if signal:
            log.info(f"stopped after step {step}; the same command continues this run")
            log.close()
            return 128 + signal
        if samples and every.sample_every and (step % every.sample_every == 0 or finished):
            samples.save(ema.module, folder / "samples" / f"{step:07d}.png")
        if enable_eval and (checkpoint_due or finished):
            evaluate(checkpoint_path(checkpoints, step))

    log.info(f"finished: {folder} holds the weights of step {max_steps}")
    log.close()
    return 0


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
    sys.exit(
        train(
            config,
            folder,
            args.ckpt_path,
            args.enable_eval,
            strict=args.use_strict_load,
            use_wandb=args.use_wandb,
        )
    )


if __name__ == "__main__":
    main()
