"""The loss of a fixed set of images by noise level, and how far the condition lowers it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.batch_random import BatchRandom
from models.edm import EDMPrecond
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.data.latent_dataset import LatentDataset, open_data
from utils.data.lmdb_reader import read_meta
from utils.training.batches import derived_seed, make_condition
from utils.training.sharding import reshard
from utils.training.state import TrainingState

IMAGES, LEVELS, PASSES = 16, 4, 4  # PASSES: right, no and shuffled condition, and the average
ROWS = IMAGES * LEVELS


class Rows(NamedTuple):
    """This process's rows of the set: each image at each noise level."""

    clean: Tensor  # (R, C, H, W)
    noised: Tensor  # (R, C, H, W)
    sigma: Tensor  # (R,)
    level: Tensor  # (R,) int64, 0 = the lowest noise
    counts: Tensor  # (R,) 1, or 0 for a row that another process has
    right: Tensor | None  # (R, D); None = the network takes no condition
    shuffled: Tensor | None  # (R, D), those of other images
    none: Tensor | None  # (R, D)


class HeldOut:
    """A fixed set of images with fixed noise, none of which comes from the training's generators.

    `prefix` begins the names of its metrics: `val` for test images, which no step sees, and `seen`
    for training images, where the config names no latents and embeddings of test images.
    """

    def __init__(self, config: Config, data: LatentDataset, state: TrainingState) -> None:
        """Read the set. `data`: of the training."""
        self.prefix: Literal["val", "seen"] = "seen"
        self.origin = f"{data.path} (training images, as eval.root is not there)"
        if (held_out := open_held_out(config)) is not None:
            data, self.prefix, self.origin = held_out, "val", str(held_out.path)
        train = config.train
        steps = (torch.arange(LEVELS) + 0.5) / LEVELS
        normal = torch.distributions.Normal(0.0, 1.0).icdf(steps)
        self.sigmas = (train.P_mean + train.P_std * normal).exp()
        self._rows = self._read(config, data, state)
        self._images_at_once = state.processes.rank_slice.count

    def _read(self, config: Config, data: LatentDataset, state: TrainingState) -> Rows:
        generator = torch.Generator().manual_seed(derived_seed(config.train.seed, "held out"))
        rng, device = BatchRandom(generator), state.processes.device
        indices = torch.linspace(0, data.length - 1, IMAGES).long()
        clean, y = data.batch(indices, rng)
        always = config.model.model_copy(update={"class_dropout_prob": 0.0})
        right = make_condition(y, config.model_copy(update={"model": always}), rng)
        noise = torch.randn((ROWS, *clean.shape[1:]), generator=generator)
        images, level = torch.arange(ROWS) % IMAGES, torch.arange(ROWS) // IMAGES
        processes = state.processes
        rank = processes.rank_slice.rank_offset // processes.rank_slice.count
        # All processes have equally many rows, as all take part in each pass of a sharded network.
        own = torch.arange(rank, -(-ROWS // processes.count) * processes.count, processes.count)
        counts, own = (own < ROWS).float(), own % ROWS
        images, level, noise = images[own], level[own], noise[own]
        sigma = self.sigmas[level]
        noised = clean[images] + sigma[:, None, None, None] * noise
        conditions: list[Tensor | None] = [None] * 3
        if right is not None:
            none = right.clone()
            none[:, : config.model.num_classes] = 0
            conditions = [right[images], right.roll(1, 0)[images], none[images]]
        parts = (clean[images], noised, sigma, level, counts, *conditions)
        return Rows._make(None if part is None else part.to(device) for part in parts)

    @torch.no_grad()
    def measure(self, state: TrainingState) -> dict[str, float]:
        """Return the metrics of the weights as they are now; all processes call this.

        `…_loss` is the loss without mask, averaged over the noise levels; `…_loss_1` to
        `…_loss_4` are those of the levels, the lowest noise first. `…_loss_ema` is that of the
        averaged weights. `cond_gain` and `cond_gain_shuffled` are the fractions by which the right
        condition lowers the loss of no and of a wrong one. `guidance` is the root mean square
        change of the network's output, whose target has about unit variance, by the condition.
        """
        # Compiled for the shapes of the training's batches alone.
        with torch.compiler.set_stance("force_eager"), state.processes.accelerator.autocast():
            sums = torch.zeros(PASSES + 1, LEVELS, device=state.processes.device)
            for rows in torch.arange(len(self._rows.sigma)).split(self._images_at_once):
                part = Rows._make(None if x is None else x[rows] for x in self._rows)
                for place, errors in enumerate(self._errors(part, state)):
                    sums[place].index_add_(0, part.level, errors * part.counts)
        if state.processes.sharded:
            reshard(state.denoiser)  # a backward pass would do so
        sums = state.processes.accelerator.reduce(sums, "sum") / IMAGES
        right, ema, *others = sums.mean(dim=1).tolist()
        found = {f"{self.prefix}_loss": right}
        for number, value in enumerate(sums[0].tolist(), 1):
            found[f"{self.prefix}_loss_{number}"] = value
        found[f"{self.prefix}_loss_ema"] = ema
        if self._rows.right is not None:
            none, shuffled, change = others
            found["cond_gain"] = 1 - right / none
            found["cond_gain_shuffled"] = 1 - right / shuffled
            found["guidance"] = change**0.5
        return found

    def _errors(self, rows: Rows, state: TrainingState) -> list[Tensor]:
        """Return the weighted errors (R,) of all passes, and the weighted change by the condition.

        The weights are lambda(sigma) of the training's loss (Karras 2022, table 1).
        """
        scale = state.denoiser.sigma_data
        weight = (rows.sigma**2 + scale**2) / (rows.sigma * scale) ** 2

        def denoised(network: EDMPrecond, cond: Tensor | None) -> Tensor:
            output = network(rows.noised, rows.sigma, cond)
            assert isinstance(output, Tensor)
            return output

        def error(a: Tensor, b: Tensor) -> Tensor:
            return weight * (a - b).square().flatten(1).mean(dim=1)

        right = denoised(state.denoiser, rows.right)
        errors = [error(right, rows.clean)]
        errors.append(error(denoised(state.ema.module, rows.right), rows.clean))
        if rows.right is not None:
            none = denoised(state.denoiser, rows.none)
            errors.append(error(none, rows.clean))
            errors.append(error(denoised(state.denoiser, rows.shuffled), rows.clean))
            errors.append(error(right, none))
        return errors


def open_held_out(config: Config) -> LatentDataset | None:
    """Open latents and conditions of the test images; None if the config names none that fit."""
    paths = config.eval
    has_captions = config.data.feat_path is not None and (
        read_meta(config.data.feat_path).get("y_holds") == "captions"
    )
    feat_path = paths.feat_path if has_captions else paths.image_feat_path
    needed = (paths.root, feat_path if config.data.feat_path is not None else paths.root)
    if any(path is None or not path.exists() for path in needed):
        return None
    places = {"root": paths.root, "feat_path": feat_path}
    places |= {"num_features_per_sample": None, "patch_feat_path": None, "mirrored_root": None}
    data = config.data.model_copy(update=places)
    train = config.train.model_copy(update={"xflip": False, "align_coef": 0.0})
    try:
        return open_data(config.model_copy(update={"data": data, "train": train}))
    except UserError:  # of another kind than the training's
        return None
