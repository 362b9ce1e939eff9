"""Everything that a training leaves in its experiment folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from utils.base.errors import NOT_SAVED, UserError
from utils.base.processes import is_main_process
from utils.config.schema import Config
from utils.data.latent_dataset import LatentDataset
from utils.evaluation.checkpoints import Evaluation, configs_to_evaluate
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.plots import plot_curves
from utils.evaluation.results import Results
from utils.training.checkpoint import checkpoint_path, discard_leftovers
from utils.training.checkpoint_writer import CheckpointWriter
from utils.training.data_faults import data_faults
from utils.training.distributed import Processes
from utils.training.ema import describe_average
from utils.training.experiment import write_config, write_image_list
from utils.training.observation import Observer, observation_line
from utils.training.rate_faults import average_fault
from utils.training.run_log import Pace, RunLog
from utils.training.sample_grid import SampleGrid
from utils.training.sharding import host_copy
from utils.training.state import TrainingState
from utils.training.step_window import memory_gb
from utils.training.train_step import Rates


class Outputs:
    """Log, checkpoints, sample grids and evaluations. All processes call all methods."""

    def __init__(
        self, folder: Path, config: Config, processes: Processes, *, enable_eval: bool
    ) -> None:
        """Load everything that grids and evaluations need; write nothing yet.

        Raises UserError if something that the config names is missing.
        """
        self.folder, self.config, self.processes = folder, config, processes
        self.checkpoints = folder / "checkpoints"
        device = processes.device
        self.samples = SampleGrid.from_config(config, device) if is_main_process() else None
        self.evaluator = Evaluator(config, device) if enable_eval else None
        self.eval_configs = configs_to_evaluate(config) if enable_eval else {}
        self.results = Results(folder / "evaluation")

    def open(
        self,
        state: TrainingState,
        is_new: bool,
        notes: list[str],
        use_wandb: bool,
        data: LatentDataset,
    ) -> None:
        """Write the config and the list of images, open the log, and log the notes.

        A run that goes on from a step loses later log lines and sets damaged checkpoints aside.
        """
        every, step = self.config.log, state.step
        if is_main_process():
            write_config(self.folder, self.config)
            write_image_list(self.folder, data)
            discard_leftovers(self.checkpoints, -1 if is_new else step)
        wandb_config = self.config.to_dict() if use_wandb else None
        self.log = RunLog(
            self.folder, step, tensorboard=every.use_tensorboard, wandb_config=wandb_config
        )
        if is_main_process() and self.samples is None:
            reason = "eval.feat_path is not set, or log.sample_every is 0"
            notes = [*notes, f"no sample grids: {reason}"]
        self.observer = Observer(self.config, data, state)
        for note in [*notes, *self.observer.notes()]:
            self.log.info(note)
        if is_new and self.observer.every and is_main_process():
            decoder = None if self.samples is None else self.samples.autoencoder
            faults = data_faults(self.config, data, decoder)
            self._warn([*faults, average_fault(self.config, state)])
        self.writer = CheckpointWriter(
            self.checkpoints, self.log, every.keep_last, every.keep_every
        )

    def name_faults(self) -> None:
        """Warn of a fault that shows in the step just done; call it after each step."""
        self._warn([self.observer.rate_fault()])

    def _warn(self, faults: Iterable[str | None]) -> None:
        for fault in faults:
            if fault is not None:
                self.log.info(f"WARNING: {fault} (docs/normal.md)")

    def log_step(self, state: TrainingState, rates: Rates, means: dict[str, float]) -> None:
        """Log the steps since the last line, whose `means` the window gave, and start anew."""
        window = state.window
        seconds_left = (state.max_steps - state.step) * window.seconds / window.steps
        observed = self.observer.metrics() if self.observer.is_due(state.step) else {}
        self.log.metrics(
            state.step,
            {
                "kimg": state.images_seen / 1000,
                **means,
                "lr": rates.lr,
                "mask_ratio": rates.mask_ratio,
                "images_per_s": window.steps * self.config.train.batchsize / window.seconds,
                "memory_gb": memory_gb(self.processes.device),
                "data_wait": window.waiting / window.seconds,
                "cpu_s": window.processor_seconds,
                **observed,
            },
            Pace(state.max_steps, seconds_left),
        )
        if observed:
            self.log.info(observation_line(state.step, observed))
        window.reset()

    def save(self, state: TrainingState, *, keep_older: bool = False) -> Path:
        """Hand a copy of the state to the checkpoint writer; return where it will lie.

        keep_older: also those that `log.keep_last` would remove.
        """
        copied = host_copy(state.to_dict(), keep=is_main_process())
        if is_main_process():
            self.writer.write(state.step, copied, keep_older=keep_older)
        return checkpoint_path(self.checkpoints, state.step)

    def save_grid(self, state: TrainingState) -> None:
        """Save the sample grid with the averaged weights, and log which weights these are."""
        network = state.averaged()
        if self.samples is not None:
            path = self.folder / "samples" / f"{state.step:07d}.png"
            is_new = state.first_step == 0 and state.teacher is None
            weights = describe_average(state.initial_fraction(), is_new=is_new)
            try:
                self.samples.save(network, path, weights)
                what = f"samples/{path.name}: generated with the {weights}"
            except UserError as fault:  # the training itself can go on
                what = f"WARNING: no samples/{path.name}: {fault}"
            self.log.info(f"step {state.step:>8d}  {what}")

    def evaluate(self, state: TrainingState, checkpoint: Path) -> None:
        """Evaluate the averaged weights, which the file `checkpoint` holds too."""
        assert self.evaluator is not None
        if self.processes.highest(not self.writer.wait(patience=120)):
            self.log.info(f"{checkpoint} is not evaluated, as it could not be written yet")
            return
        network = state.averaged()
        for name, config in self.eval_configs.items():
            evaluation = Evaluation(self.results, checkpoint, config, self.evaluator, state.step)
            record = evaluation.recorded() or evaluation.run(network)
            self.log.evaluation(state.step, name, record)
        if is_main_process():
            plot_curves(self.results.records, self.results.folder / "curve.png")

    def close(self, code: int, message: str, patience: float = 15) -> int:
        """Wait `patience` seconds for the checkpoint, log the message, return the exit code."""
        unsaved = self.processes.highest(not self.writer.close(patience))
        lost = "NOT SAVED, the steps after the last checkpoint are lost: " if unsaved else ""
        self.log.info(lost + message)
        self.log.close()
        self.processes.accelerator.end_training()
        return NOT_SAVED if unsaved else code
