"""The training of a prior on image embeddings; it goes on bit for bit after an interruption."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.batch_random import BatchRandom
from models.embedding_prior import EmbeddingPrior, prior_loss
from utils.base.errors import UserError, refusing
from utils.base.files import write_whole
from utils.base.finite import require_finite
from utils.base.locks import FileLock
from utils.base.progress import progress
from utils.config.sections import Prior
from utils.data.embeddings import made_from, read_directions
from utils.data.lmdb_reader import LMDBReader
from utils.pretrained.priors import (
    CLIP,
    DIVERGED_PRIOR,
    MADE_FROM,
    OPTIONS,
    TRAINED_ON,
    prior_about,
    read_prior,
    save_prior,
)

MOST = 1_000_000  # embeddings that are kept in memory
SAVE_EVERY = 500  # steps
WARM_UP = 100  # steps
FEW = 100_000  # up to so many embeddings, each step permutes all of them in a millisecond


def make_training(reader: LMDBReader, options: Prior, device: torch.device) -> Training:
    """Return a new training on the embeddings of a database, but for `prior.held_out` of them.

    Raises UserError if they are not finite, or all alike.
    """
    try:
        y, held_out = split(read_directions(reader, MOST), options.held_out)
        return Training(y.to(device), options, held_out)
    except ValueError as fault:
        raise UserError(f"{reader.path}: {fault}; make it from different images") from fault


def split(y: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split embeddings (N, D) by a fixed seed: those of the training, and a held-out fraction."""
    if not fraction:
        return y, y[:0]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    held_out, kept = order.tensor_split([int(fraction * len(y))])
    return y[kept.sort().values], y[held_out]


class Training:
    """A prior, its optimizer and its random numbers: all that a step changes."""

    def __init__(self, y: Tensor, options: Prior, held_out: Tensor | None = None) -> None:
        """y: image embeddings (N, D) of unit length, on the device of the training.

        held_out: (M, D), embeddings that the training does not read; None = there are none.
        """
        torch.manual_seed(options.seed)
        self.held_out = y[:0] if held_out is None else held_out
        self.y, self.options, self.step = y, options, 0
        self.prior = EmbeddingPrior(y.shape[1], options.width, options.depth)
        self.prior.measure(y.cpu())
        self.prior.to(y.device)
        self.optimizer = torch.optim.AdamW(self.prior.parameters(), betas=(0.9, 0.99))
        self.generator = torch.Generator(y.device).manual_seed(options.seed)
        self.order = torch.empty(0, dtype=torch.long, device=y.device)  # rows not taken yet

    def take_step(self) -> Tensor:
        """Take one step; return the loss of its batch, ()."""
        options = self.options
        x = self.step / options.max_num_steps
        lr = options.lr * min((self.step + 1) / WARM_UP, (1 + math.cos(math.pi * x)) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch, bank = self._rows().tensor_split([options.batchsize])
        loss = self.losses(batch, bank, BatchRandom(self.generator)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _rows(self) -> Tensor:
        """Take random rows for a batch and its bank, all different ones."""
        count, device = self.options.batchsize + self.options.bank, self.y.device
        if len(self.order) < count or len(self.y) <= FEW:
            self.order = torch.randperm(len(self.y), generator=self.generator, device=device)
        rows, self.order = self.order[:count], self.order[count:]
        return rows

    def losses(self, batch: Tensor, bank: Tensor, rng: BatchRandom) -> Tensor:
        """Return the losses (B,) of the embeddings at `batch` (B,); those at `bank` are others."""
        return prior_loss(self.prior, self.y[batch], self.y[bank], self.options.noise_range, rng)

    def state(self) -> dict[str, Any]:
        """Return all that a later process needs to go on, bit for bit."""
        return {
            "prior": self.prior.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "order": self.order.clone(),  # a slice would be saved with all that was taken
            "step": self.step,
            "options": self.options.model_dump(mode="json"),
            "embeddings": self.made_from,
        }

    @cached_property
    def made_from(self) -> str:
        """Return a hash of the embeddings."""
        return hashlib.sha256(self.y.cpu().numpy().tobytes()).hexdigest()

    def about(self) -> dict[str, str]:
        """Return the metadata by which `is_finished` knows a prior of this training."""
        return {TRAINED_ON: self.made_from, OPTIONS: self.options.model_dump_json()}

    def is_finished(self, file: Path) -> bool:
        """Return True if a file holds the prior that this training ends with.

        Earlier versions recorded neither options nor embeddings. Their prior counts if the mean and
        the spread in it are those of these embeddings, and all options are the default.
        """
        with suppress(UserError):
            prior, _ = read_prior(file)
            about, given = prior_about(file), self.options
            if OPTIONS in about:
                made_by = Prior.model_validate_json(about[OPTIONS])
                return made_by == given and about.get(TRAINED_ON) == self.made_from
            sizes = {"width": prior.embed_x.out_features, "depth": len(prior.blocks)}
            measured = [(prior.mean, self.prior.mean), (prior.std, self.prior.std)]
            return given == Prior(**sizes) and all(
                torch.allclose(there, here.cpu(), rtol=1e-2, atol=1e-4) for there, here in measured
            )
        return False

    def restore(self, path: Path) -> None:
        """Go on from a file of `state`.

        Raises UserError if it is damaged, or of other options or embeddings.
        """
        again = f"remove it to start anew: rm {path}"
        with refusing(f"{path} cannot be read; {again}"):
            state = torch.load(path, weights_only=True)
            if Prior(**state["options"]) != self.options:
                raise UserError(f"{path} is of a training with other `prior` options; {again}")
            if state.get("embeddings", self.made_from) != self.made_from:
                raise UserError(
                    f"{path} is of a training on other embeddings, which were made anew; {again}"
                )
            self.prior.load_state_dict(state["prior"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            self.order = state.get("order", self.order).to(self.y.device)
            self.step = state["step"]


def _is_made_from(file: Path, meta: Mapping[str, Any]) -> bool:
    """Return True if a prior's file names the CLIP and the embeddings of a database."""
    about = prior_about(file)
    same_clip = about.get(CLIP) == meta.get("encoder", "unknown")
    return same_clip and about.get(MADE_FROM, "") in ("", made_from(meta))


def train(training: Training, out: Path, meta: Mapping[str, Any]) -> None:
    """Train to the end, from where an earlier run stopped, and write the prior to `out`.

    A finished prior of these embeddings and options stays as it is.

    meta: of the database of embeddings, which names their CLIP and images.
    """
    partial = out.with_name(f"{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f"{out.name}.lock"), f"{out}: this prior is being trained"):
        if partial.exists():
            training.restore(partial)
            print(f"continuing from step {training.step}")
        elif training.is_finished(out) and _is_made_from(out, meta):
            print(f"{out}: is finished already, of equal embeddings and options; it is kept")
            return
        steps, losses = training.options.max_num_steps, []
        with progress(None, "prior", steps, "step", training.step) as bar:
            while training.step < steps:
                losses.append(training.take_step())
                bar.update()
                if training.step % SAVE_EVERY == 0:
                    require_finite(training.prior.state_dict(), out, DIVERGED_PRIOR)
                    write_whole(partial, lambda path: torch.save(training.state(), path))
        clip = meta.get("encoder", "unknown")
        save_prior(training.prior, out, clip, made_from(meta), training.about())
        partial.unlink(missing_ok=True)
    if losses:
        last = float(torch.stack(losses[-SAVE_EVERY:]).mean())
        print(f"{len(training.y)} image embeddings, {steps} steps, loss {last:.3f}")
