"""The state of a training: everything that its steps change, and how a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from models.alignment import AlignedDenoiser, AlignmentHead
from models.edm import EDMPrecond
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.data.latent_dataset import data_differences
from utils.pretrained.checkpoint_files import load_weights
from utils.pretrained.denoisers import adapted_denoiser
from utils.training.batches import DataOrder, derived_seed
from utils.training.comparison import differences
from utils.training.distributed import Processes
from utils.training.ema import EMA, PowerAverages, initial_fraction
from utils.training.finetune import start_from
from utils.training.optimizers import build_optimizer
from utils.training.schedules import (
    alignment_depth,
    base_rates,
    check_mask_ratio,
    jumps_of_longer,
    number_of_steps,
    steps_aligned,
)
from utils.training.sharding import shard_training, whole
from utils.training.shards import put_together
from utils.training.speed import speed_up
from utils.training.step_guard import StepGuard
from utils.training.step_window import Window
from utils.training.teacher import Teacher


class TrainingState:
    """Everything that training steps change. `PARTS` lists how a checkpoint holds it.

    `denoiser` is the plain network; `model` is what steps run, with a head for the alignment if
    there is one, and wrapped for several processes.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes,
        images: int,
        data_identity: str = "",
        patch_features: int = 0,
    ) -> None:
        """Make the state of a new training on `images` images; fresh weights follow the seed.

        data_identity: of the images, as in LatentDataset.
        patch_features: width of the features of a patch; 0 = tokens are not aligned to any.
        Raises UserError if settings do not go together.
        """
        options, device = config.train, processes.device
        torch.manual_seed(options.seed)
        self.config, self.processes, self.data_identity = config, processes, data_identity
        self.denoiser = adapted_denoiser(config).to(device)
        check_mask_ratio(config, self.denoiser.model.num_patches)
        self.model: nn.Module = self.denoiser
        self.head: AlignmentHead | None = None
        if patch_features:
            depth = alignment_depth(config, self.denoiser.model.architecture.depth)
            self.model = aligned = AlignedDenoiser(self.denoiser, patch_features, depth).to(device)
            self.head = aligned.head
        # One copy of the frozen weights serves all, unless each is sharded by itself.
        shares_fixed = options.adapt != "all" and not processes.sharded
        self.ema = EMA(self.denoiser, shares_fixed)
        self.power_ema = PowerAverages(self.denoiser, options.power_ema or (), shares_fixed)
        self.teacher = Teacher(config, device) if config.is_distilled else None
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        lr, muon_lr = base_rates(config)
        rates = {"lr": lr, "muon_lr": muon_lr}
        self.optimizer: Any = build_optimizer(self.model, options.model_copy(update=rates))
        self.order = DataOrder(images, options.seed)
        self.window, self.guard = Window(device), StepGuard(device)
        self.step = self.first_step = self.images_seen = 0
        self.source: Path | None = None  # the checkpoint that the weights come from
        self.base: dict[str, str] | None = None  # beside which an adapter is trained
        self.generator = torch.Generator(device)
        self._seed_generator()

    def _seed_generator(self) -> None:
        seed = derived_seed(self.config.train.seed, "noise", 0, self.images_seen)
        self.generator.manual_seed(seed)

    @property
    def size(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.trained)

    @property
    def max_steps(self) -> int:
        """Number of finished steps at which the training ends; see number_of_steps."""
        return number_of_steps(self.config, self.order.length, self.first_step)

    @property
    def aligned_until(self) -> int:
        """Number of images seen from which on tokens are no longer aligned."""
        left = steps_aligned(self.max_steps, self.config, self.first_step) - self.step
        return self.images_seen + left * self.config.train.batchsize

    def start_from(self, path: Path, strict: bool) -> list[str]:
        """Begin with another run's checkpoint; see finetune.start_from. Returns notes."""
        start = start_from(
            path,
            self.denoiser,
            self.ema.module,
            self.optimizer,
            self.config.train.batchsize,
            strict,
            self.head,
            self.config.train.adapt,
        )
        self.base = start.base
        self.step = self.first_step = start.step
        self.images_seen, self.source = start.images_seen, path
        self._seed_generator()
        return start.notes

    def start_as_student(self) -> list[str]:
        """Begin with the weights of the teacher, at step 0. Returns notes."""
        assert self.teacher is not None
        weights = self.teacher.network.state_dict()
        self.denoiser.load_state_dict(weights)
        self.ema.module.load_state_dict(weights)
        notes = [
            f"a student that starts from the averaged weights of {self.config.distill.teacher}"
        ]
        if self.config.train.align_coef > 0:
            notes.append("train.align_coef: not used, as a student learns from its teacher alone")
        return notes

    def make_ready(self) -> list[str]:
        """Compile, shard or wrap the network as configured; returns notes.

        Call it once, when the weights are there.
        """
        notes = speed_up(self.denoiser.model, self.config, self.processes.device)
        if self.teacher is not None:
            speed_up(self.teacher.network.model, self.config, self.processes.device)
        prepare = self.processes.accelerator.prepare
        if self.processes.sharded:
            self.trained, optimizer = shard_training(
                self.model,
                [self.ema, *self.power_ema.averages],
                self.optimizer,
                self.config.train,
            )
            self.optimizer = prepare(optimizer)
        else:
            self.model, self.optimizer = prepare(self.model, self.optimizer)
        return notes

    def initial_fraction(self) -> float:
        """Return the fraction, 0 to 1, that the weights of the first step have in the average."""
        options = self.config.train
        return initial_fraction(
            self.step - self.first_step,
            self.images_seen,
            options.batchsize,
            options.ema_decay,
            options.ema_rampup,
        )

    def is_finite(self) -> bool:
        """Return True if weights and averages are; waits for the device; all processes call this.

        Steps without a finite gradient change nothing, but one with a huge rate can overflow.
        """
        weights = [*self.trained, *self.ema.module.parameters()]
        # The largest weight would do, but a shard that holds no row of a weight has none.
        total = torch.nn.utils.get_total_norm(weights, norm_type=1)
        return bool(put_together(total).isfinite())

    def averaged(self) -> EDMPrecond:
        """Return the network with the averaged weights; all processes call this."""
        if not self.processes.sharded:
            return self.ema.module
        return whole(self.ema.module, adapted_denoiser(self.config))

    def to_dict(self) -> dict[str, Any]:
        """Return everything that PARTS lists; tensors are not copied."""
        return {name: part.read(self) for name, part in PARTS.items()}

    def restore(self, saved: Mapping[str, Any], source: Path) -> list[str]:
        """Take over a checkpoint of this run, the file `source`. Returns notes.

        Raises UserError if weights do not fit the network.
        """
        self.source = source
        for name, part in PARTS.items():
            if part.restore is not None and (name in saved or not part.may_lack):
                part.restore(self, saved[name])
        before = config_from_dict(saved["config"], source="the checkpoint's config")
        return jumps_of_longer(before, self.config, self.order.length, self.step, self.first_step)


class Run(NamedTuple):
    """A run that is to continue: its configuration and its images."""

    config: Config
    images: int
    has_same_data: bool  # as the checkpoint, wherever the databases lie now


class Part(NamedTuple):
    """One entry of a checkpoint.

    read: gives its value. restore: takes a value over; None = it is only compared.
    compare: names what in a saved value does not fit a run. `conflicts` itself compares
        data_identity, on which other comparisons depend.
    may_lack: older checkpoints do not have it.
    """

    read: Callable[[TrainingState], Any]
    restore: Callable[[TrainingState, Any], None] | None = None
    compare: Callable[[Any, Run], list[str]] | None = None
    may_lack: bool = False


def _number(name: str, may_lack: bool = False) -> Part:
    """Return the part of a counter of the state."""

    def restore(state: TrainingState, value: int) -> None:
        setattr(state, name, value)

    return Part(attrgetter(name), restore, may_lack=may_lack)


def _scaler(state: TrainingState) -> dict[str, Any] | None:
    """Return the state of the loss scaler, which float16 alone has."""
    scaler = state.processes.accelerator.scaler
    return None if scaler is None else dict(scaler.state_dict())


def _restore_scaler(state: TrainingState, saved: dict[str, Any] | None) -> None:
    scaler = state.processes.accelerator.scaler
    if scaler is not None and saved:
        scaler.load_state_dict(saved)


def _restore_weights(network: nn.Module, weights: Any, state: TrainingState) -> None:
    assert state.source is not None
    load_weights(network, weights, state.source)


def _restore_head(state: TrainingState, weights: Any) -> None:
    if state.head is not None:
        _restore_weights(state.head, weights, state)


def _restore_generator(state: TrainingState, saved: list[torch.Tensor]) -> None:
    state.generator.set_state(saved[0])


def _other_images(saved: dict[str, int], run: Run) -> list[str]:
    if saved["length"] == run.images:
        return []
    there, root = saved["length"], run.config.data.root
    return [f"it was trained on {there} images, and {root} now has {run.images}"]


def _other_config(saved: dict[str, Any], run: Run) -> list[str]:
    before = config_from_dict(saved, source="the checkpoint's config")
    return differences(before, run.config, run.has_same_data)


# Everything that a checkpoint holds beside its version: the one list for saving, restoring and
# comparing.
PARTS: dict[str, Part] = {
    "model": Part(
        lambda s: s.denoiser.state_dict(), lambda s, v: _restore_weights(s.denoiser, v, s)
    ),
    "ema": Part(
        lambda s: s.ema.module.state_dict(), lambda s, v: _restore_weights(s.ema.module, v, s)
    ),
    "power_ema": Part(
        lambda s: s.power_ema.state(), lambda s, v: s.power_ema.load(v), may_lack=True
    ),
    "head": Part(
        lambda s: None if s.head is None else s.head.state_dict(), _restore_head, may_lack=True
    ),
    "opt": Part(lambda s: s.optimizer.state_dict(), lambda s, v: s.optimizer.load_state_dict(v)),
    "scaler": Part(_scaler, _restore_scaler),
    "step": _number("step"),
    "base": Part(attrgetter("base"), lambda s, v: setattr(s, "base", v), may_lack=True),
    "first_step": _number("first_step", may_lack=True),
    "images_seen": _number("images_seen"),
    "data_position": Part(lambda s: s.order.describe(s.images_seen), compare=_other_images),
    "data_identity": Part(lambda s: s.data_identity, may_lack=True),
    "rng": Part(lambda s: [s.generator.get_state()], _restore_generator),
    "window": Part(lambda s: s.window.state(), lambda s, v: s.window.load(v), may_lack=True),
    "guard": Part(lambda s: s.guard.state(), lambda s, v: s.guard.load(v), may_lack=True),
    "config": Part(lambda s: s.config.to_dict(), compare=_other_config),
}


def conflicts(
    saved: Mapping[str, Any], config: Config, images: int, data_identity: str = ""
) -> list[str]:
    """Name everything in a checkpoint that belongs to another run than `config` on `images`.

    data_identity: of the images, as in LatentDataset. If it is the checkpoint's, the databases may
    lie elsewhere; if it is another, the databases were made anew.
    """
    before = saved.get("data_identity", "")
    remade = data_differences(before, data_identity)
    has_same_data = before != "" and data_identity != "" and not remade
    run, found = Run(config, images, has_same_data), []
    for name, part in PARTS.items():
        if part.compare is not None:
            found += part.compare(saved[name], run)
    return found + remade
