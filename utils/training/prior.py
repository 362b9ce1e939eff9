"""The training of a prior on image embeddings; it goes on bit for bit after an interruption."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
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
from utils.pretrained.priors import DIVERGED_PRIOR, save_prior

MOST = 1_000_000  # embeddings that are kept in memory
SAVE_EVERY = 500  # steps
WARM_UP = 100  # steps
FEW = 100_000  # up to so many embeddings, each step permutes all of them in a millisecond


def make_training(reader: LMDBReader, options: Prior, device: torch.device) -> Training:
    """Return a new training on the embeddings of a database.

    Raises UserError if they are not finite, or all alike.
    """
    try:
        return Training(read_directions(reader, MOST).to(device), options)
    except ValueError as fault:
        raise UserError(f"{reader.path}: {fault}; make it from different images") from fault


class Training:
    """A prior, its optimizer and its random numbers: all that a step changes."""

    def __init__(self, y: Tensor, options: Prior) -> None:
        """y: image embeddings (N, D) of unit length, on the device of the training."""
        torch.manual_seed(options.seed)
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

    def restore(self, path: Path) -> None:
        """Go on from a file of `state`.

        Raises UserError if it is damaged, or of other options or embeddings.
        """
        again = f"remove it to start anew: rm {path}"
        with refusing(f"{path} cannot be read; {again}"):
            state = torch.load(path, weights_only=True)
            if state["options"] != self.options.model_dump(mode="json"):
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


def train(training: Training, out: Path, meta: Mapping[str, Any]) -> None:
    """Train to the end, from where an earlier run stopped, and write the prior to `out`.

    meta: of the database of embeddings, which names their CLIP and images.
    """
    partial = out.with_name(f"{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f"{out.name}.lock"), f"{out}: this prior is being trained"):
        if partial.exists():
            training.restore(partial)
            print(f"continuing from step {training.step}")
        steps, losses = training.options.max_num_steps, []
        with progress(None, "prior", steps, "step", training.step) as bar:
            while training.step < steps:
                losses.append(training.take_step())
                bar.update()
                if training.step % SAVE_EVERY == 0:
                    require_finite(training.prior.state_dict(), out, DIVERGED_PRIOR)
                    write_whole(partial, lambda path: torch.save(training.state(), path))
        save_prior(training.prior, out, meta.get("encoder", "unknown"), made_from(meta))
        partial.unlink(missing_ok=True)
    if losses:
        last = float(torch.stack(losses[-SAVE_EVERY:]).mean())
        print(f"{len(training.y)} image embeddings, {steps} steps, loss {last:.3f}")
