"""What is trained on when: a function of seed and position alone, so that resuming is exact."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from models.perturbation import perturb
from utils.base.read_ahead import read_ahead
from utils.config.schema import Config
from utils.data.latent_dataset import LatentDataset


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of `parts`; unrelated for parts that differ in anything."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class DataOrder:
    """An endless stream of dataset indices: one permutation of 0…length-1 after the other.

    A position in it is the number of images seen before, whatever the batch size and the number of
    processes were: a run continued with other ones still sees each image once an epoch.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._latest = (-1, torch.empty(0, dtype=torch.long))  # epoch and its permutation

    def _permutation_of(self, epoch: int) -> torch.Tensor:
        latest, permutation = self._latest  # one read and one write: several threads ask
        if epoch != latest:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
            permutation = torch.randperm(self.length, generator=generator)
            self._latest = (epoch, permutation)
        return permutation

    def describe(self, position: int) -> dict[str, int]:
        """The position as epoch and offset in it, for a checkpoint."""
        epoch, offset = divmod(position, self.length)
        return {"epoch": epoch, "offset": offset, "length": self.length}

    def indices(self, position: int, count: int) -> torch.Tensor:
        """Indices (count,) int64 of the images at `position` and after; may cross epochs."""
        parts = []
        while count > 0:
            epoch, offset = divmod(position, self.length)
            part = self._permutation_of(epoch)[offset : offset + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return torch.cat(parts)


def training_batches(
    data: LatentDataset,
    order: DataOrder,
    start: int,
    count: int,
    *,
    rank: int = 0,
    processes: int = 1,
    xflip: bool = False,
    device: torch.device | str = "cpu",
    threads: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Endless batches of `count` latents (N, C, H, W) and embeddings (N, D) or None, on `device`.

    Each is the share of process `rank` in a batch of `processes * count` images, which follow each
    other from position `start` of the data order on. Which of an image's embeddings is taken, and
    with `xflip` which latents are mirrored, is drawn for the whole batch from its position, so that
    any number of processes sees the same. `threads` read ahead.
    """
    first, total = rank * count, processes * count

    def read(position: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        draw = torch.Generator().manual_seed(derived_seed(order.seed, "batch", position))
        latents, y = data.batch(order.indices(position + first, count), draw, first, total)
        if xflip:
            mirrored = torch.rand(total, 1, 1, 1, generator=draw)[first : first + count] < 0.5
            latents = torch.where(mirrored, latents.flip(3), latents)
        return latents.to(device), None if y is None else y.to(device)

    return read_ahead(read, itertools.count(start, total), threads)


def make_condition(
    y: torch.Tensor | None,
    config: Config,
    generator: torch.Generator,
    first: int = 0,
    total: int | None = None,
) -> torch.Tensor | None:
    """Embeddings (N, D) -> perturbed conditions (N, D), some rows zeroed: "no condition".

    External features, if there are such, are the last columns of both, and are not touched. A
    learnable perturbation follows in the network. y are the rows from `first` on of a batch of
    `total`, for all of which is drawn.
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
            first=first,
            total=total,
        )
    elif config.data.norm_feature or config.learns_perturbation:
        y = F.normalize(y, dim=1)
    draw = torch.rand(total or len(y), 1, device=y.device, generator=generator)
    draw = draw[first : first + len(y)]
    y = y * (draw >= config.model.class_dropout_prob)
    return torch.cat([y, features], dim=1) if features.shape[1] else y
