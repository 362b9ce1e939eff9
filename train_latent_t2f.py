"""Train a masked diffusion transformer on latents, conditioned on perturbed image embeddings.

One process:         python train_latent_t2f.py --config configs/demo/demo.yaml --exp_name demo
Four GPUs:           python train_latent_t2f.py --config X.yaml --num_process_per_node 4
  or by a launcher:  torchrun --nproc_per_node 4 train_latent_t2f.py --config X.yaml
                     accelerate launch --num_processes 4 train_latent_t2f.py --config X.yaml
Two nodes, on each:  python train_latent_t2f.py --config X.yaml --num_process_per_node 8 \\
                     --num_proc_node 2 --node_rank 0 (or 1) --master_address HOST
Go on with a run:    python train_latent_t2f.py --exp_name X
Other settings:      python train_latent_t2f.py --config X.yaml train.lr=5e-5 model.mask_ratio=0.3
A student of few steps: python train_latent_t2f.py --config configs/demo/distill.yaml --teacher X.pt
Finetune:            python train_latent_t2f.py --config Y.yaml --ckpt_path X/checkpoints/0300000.pt
Adapt to few images: python train_latent_t2f.py --ckpt_path dit.safetensors train.adapt=lora data.…
  as a small file:   python train_latent_t2f.py --export_adapter my.safetensors --ckpt_path X.pt
Release a model:     python train_latent_t2f.py --export dit.safetensors --ckpt_path 0005000.pt \\
                         sampling.cfg_scale=2
  with all it needs: python train_latent_t2f.py --export FOLDER --ckpt_path 0005000.pt

This command, started again, continues the run in its experiment folder. After Ctrl-C, SIGTERM,
SIGHUP (a lost terminal), SIGUSR1, SIGUSR2 or SIGXCPU it finishes the step, saves, and ends with
code 130, 143, 129, 138, 140 or 152. Other codes: 0 finished, 2 a mistake in the settings, 3
diverged, 4 the last checkpoint could not be written, 5 another process was lost (docs/cluster.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from utils.base.errors import DIVERGED, UserError
from utils.base.processes import leave_processes
from utils.base.script import one_line_errors_of_each
from utils.config.schema import Config
from utils.data.latent_dataset import open_data
from utils.pretrained.denoisers import export_safetensors
from utils.release.adapter import export_adapter
from utils.release.folder import export_folder
from utils.training.arguments import load_training_config, parse_args
from utils.training.batches import MIRRORED_LATENTS, training_batches
from utils.training.distributed import (
    Processes,
    StopSignal,
    Watchdog,
    ending_if_a_process_is_lost,
)
from utils.training.experiment import (
    experiment_name,
    locked,
    saved_state,
    with_stored_defaults,
)
from utils.training.finetune import NEEDS_BASE
from utils.training.outputs import Outputs
from utils.training.state import TrainingState
from utils.training.step_guard import diverged, weights_not_finite
from utils.training.train_step import train_step


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

    1. Join the processes, open the data, find the checkpoint of a run to continue.
    2. Make the network, its average and its optimizer: fresh, restored, or from another run's
       checkpoint `start_from` (`strict`: see finetune.start_from).
    3. Step until the end or a signal. A step takes a batch of latents z and image embeddings y,
       perturbs y on the sphere, hides part of the tokens of the noised z, and learns to denoise
       (train_step). After some steps: log, save, write a grid of samples, evaluate.
    """
    config = with_stored_defaults(folder, config)
    options, every = config.train, config.log
    processes = Processes(config)
    data = open_data(config)
    notes: list[str] = []
    saved = saved_state(folder, config, data.length, notes, data.identity)

    # Continue the run of this folder, start from another run's checkpoint, or start afresh.
    width = data.patch_shape[0] if data.patch_shape else 0
    state = TrainingState(config, processes, data.length, data.identity, width)
    if saved is not None:
        jumps = state.restore(*saved)
        not_read = f"; {start_from} is not read" if start_from else ""
        notes += [f"continuing {folder} from step {state.step}{not_read}", *jumps]
    elif start_from is not None:
        notes += state.start_from(start_from, strict)
    elif config.is_distilled:
        notes += state.start_as_student()
    elif options.adapt != "all":
        raise UserError(NEEDS_BASE.format(options.adapt))
    is_new, saved = saved is None, None  # frees the checkpoint's memory
    max_steps = state.max_steps
    if options.xflip and not data.has_mirrored:
        notes.append(MIRRORED_LATENTS)
    notes += state.make_ready()
    notes.append(
        f"{state.size / 1e6:.1f} M trained parameters; {data.length} images; "
        f"{max_steps - state.first_step} steps of {options.batchsize} = {processes}"
    )

    # Write nothing before every process has found all it needs.
    outputs = Outputs(folder, config, processes, enable_eval=enable_eval)
    processes.wait()
    outputs.open(state, is_new, notes, use_wandb, data)

    # Evaluate the weights that a new run starts from, or those that a kill kept from it.
    was_due = state.step in (state.first_step, max_steps) or state.step % every.ckpt_every == 0
    if enable_eval and state.source is not None and state.step > 0 and was_due:
        outputs.evaluate(state, state.source)

    batches = training_batches(
        data,
        state.order,
        state.images_seen,
        processes.rank_slice,
        xflip=options.xflip,
        device=processes.device,
        threads=max(1, options.num_workers),
        features_until=state.aligned_until,
    )
    batches = state.window.timed(batches)
    stop, watchdog = StopSignal(), Watchdog(options.step_timeout)
    while state.step < max_steps:
        watchdog.step_begins()
        state.window.begin()
        rates = train_step(state, batches)

        finished = state.step == max_steps
        log_due = state.step % every.log_every == 0 or finished
        means = state.window.means() if log_due else {}  # the only wait for the device
        state.window.end()
        signal = processes.highest(stop.received)
        watchdog.step_ends()
        if log_due:
            outputs.log_step(state, rates, means)
        outputs.name_faults()

        checkpoint_due = state.step % every.ckpt_every == 0 and state.step >= every.ckpt_after
        grid_due = every.sample_every and (state.step % every.sample_every == 0 or finished)
        bad = state.guard.in_a_row() if log_due or checkpoint_due else 0
        has_diverged = bad >= options.max_bad_steps
        if checkpoint_due or finished or signal or has_diverged:
            if not state.is_finite():
                message = weights_not_finite(state.step, outputs.checkpoints)
                return outputs.close(DIVERGED, message)
            checkpoint = outputs.save(state, keep_older=has_diverged)
        if has_diverged:
            message = diverged(bad, state.step, checkpoint, data.fault)
            return outputs.close(DIVERGED, message)
        if signal:
            message = f"stopped after step {state.step}; the same command continues this run"
            return outputs.close(128 + signal, message)
        if grid_due:
            outputs.save_grid(state)
        if enable_eval and (checkpoint_due or finished):
            outputs.evaluate(state, checkpoint)
        if checkpoint_due or grid_due:
            processes.wait()  # for work that one process did alone

    message = f"finished: {folder} holds the weights of step {max_steps}"
    return outputs.close(0, message, patience=600)


@one_line_errors_of_each
def main() -> None:
    """Train, or export a checkpoint, as the command line says."""
    args = parse_args(__doc__)
    if (out := args.export or args.export_adapter) and not args.ckpt_path:
        flag = "--export" if args.export else "--export_adapter"
        raise UserError(f"{flag} {out}: name the checkpoint to export with --ckpt_path")
    if args.export_adapter:
        if args.export or args.adapter:
            raise UserError("--export_adapter: takes no --export or --adapter beside it")
        count = export_adapter(args.ckpt_path, args.export_adapter)
        print(f"{args.export_adapter}: {count / 1e6:.3g} M weights; t2f.py --adapter takes them")
        return
    if args.export:
        adapters = args.adapter or ()
        if args.export.suffix != ".safetensors":
            export_folder(args.ckpt_path, args.export, args.overrides, adapters=adapters)
            print(f"{args.export}: a release folder of {args.ckpt_path}; README.md in it says more")
            return
        local = export_safetensors(args.ckpt_path, args.export, args.overrides, adapters)
        print(f"{args.export}: EMA weights of {args.ckpt_path}, float16")
        if local:
            print(f"on another machine it needs copies beside it of {', '.join(local)}")
        return
    config = load_training_config(args)
    folder = args.results_dir / (args.exp_name or experiment_name(config))
    with locked(folder), ending_if_a_process_is_lost():
        code = train(
            config,
            folder,
            args.ckpt_path,
            args.enable_eval,
            strict=args.use_strict_load,
            use_wandb=args.use_wandb,
        )
        leave_processes()
    sys.exit(code)


if __name__ == "__main__":
    main()
