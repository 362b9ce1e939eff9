"""The batches of a training: functions of seed and position alone, so that resuming is exact."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.batch_random import BatchRandom, RankSlice
from models.perturbation import Perturbation, perturb
from utils.base.read_ahead import read_ahead
from utils.config.schema import Config
from utils.data.latent_dataset import LatentDataset

MIRRORED_LATENTS = (
    "train.xflip mirrors the latents themselves, which most VAEs decode badly; create_latentspace_"
    "lmdb.py --xflip makes latents of the mirrored images, which data.mirrored_root names"
)


class Batch(NamedTuple):
    """One process's slice of a global batch, on its device."""

    latents: torch.Tensor  # (N, C, H, W)
    y: torch.Tensor | None  # (N, D), embeddings
    features: torch.Tensor | None = None  # (N, F, G, G), patch features


def derived_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a function of `parts`; other parts give an unrelated seed."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class DataOrder:
    """Endless stream of dataset indices: one permutation of 0…length-1 after the other.

    A position in it is the number of images seen before. It does not depend on batch size or number
    of processes, so a run that continues with others still sees each image once an epoch.
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
        """Return the position as epoch and offset in it, for a checkpoint."""
        epoch, offset = divmod(position, self.length)
        return {"epoch": epoch, "offset": offset, "length": self.length}

    def indices(self, position: int, count: int) -> torch.Tensor:
        """Return indices (count,) int64 of the images from `position` on; may cross epochs."""
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
    rank_slice: RankSlice,
    *,
    xflip: bool = False,
    device: torch.device | str = "cpu",
    threads: int = 1,
    features_until: int = 0,
) -> Iterator[Batch]:
    """Yield batches without end, on `device`.

    Each batch is this process's slice of a global batch. Global batches follow each other from
    position `start` of the data order on. All random choices of a global batch are functions of its
    position, and the same for any number of processes: its embeddings, where an image has several,
    and with `xflip` the images that are mirrored. These have the latents of the mirrored images, or
    their own, mirrored, where the data have no others. `threads` read ahead. Batches before the
    position `features_until` have patch features.
    """

    def read(position: int) -> Batch:
        seed = derived_seed(order.seed, "batch", position)
        rng = rank_slice.random(torch.Generator().manual_seed(seed))
        indices = order.indices(position + rank_slice.rank_offset, rank_slice.count)
        mirrored = None
        if xflip and data.has_mirrored:
            mirrored = rng.rand((rank_slice.count,)) < 0.5
        latents, y = data.batch(indices, rng, mirrored)
        features = data.features(indices) if position < features_until else None
        if xflip and mirrored is None:
            mirrored = rng.rand((rank_slice.count, 1, 1, 1)) < 0.5
            latents = torch.where(mirrored, latents.flip(3), latents)
        if mirrored is not None and features is not None:
            features = torch.where(mirrored.view(-1, 1, 1, 1), features.flip(3), features)
        return Batch(latents.to(device), *(x if x is None else x.to(device) for x in (y, features)))

    return read_ahead(read, itertools.count(start, rank_slice.total), threads)


def configured_perturbation(config: Config) -> Perturbation | None:
    """Return the perturbation of the training, or None if conditions stay as they are."""
    train = config.train
    if not train.perturbation:
        return None
    return Perturbation(
        train.perturbation_type, train.perturbation, train.mean, train.trunc_a, train.trunc_b
    )


def make_condition(y: torch.Tensor | None, config: Config, rng: BatchRandom) -> torch.Tensor | None:
    """Perturb embeddings (N, D) and zero some rows, which means "no condition" -> (N, D).

    External features, if there are any, are the last columns of y and stay as they are. The network
    itself applies a learnable perturbation.
    """
    if y is None:
        return None
    perturbation = configured_perturbation(config)
    y, features = y.tensor_split([config.model.num_classes], dim=1)
    if perturbation is not None and perturbation.kind != "learnable":
        y = perturb(y, perturbation, rng)
    elif config.data.norm_feature or config.learns_perturbation:
        y = F.normalize(y, dim=1)
    y = y * (rng.rand((len(y), 1), y.device) >= config.model.class_dropout_prob)
    return torch.cat([y, features], dim=1) if features.shape[1] else y
