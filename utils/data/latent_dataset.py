"""The training data: latents with their conditions, a batch at a time."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch

from models.batch_random import WHOLE_BATCH, BatchRandom
from models.encoder_files import LDM_SCALE_FACTOR
from models.finite import is_finite
from utils.base.errors import UserError
from utils.base.processes import launch
from utils.config.schema import Config
from utils.data.derived_sizes import token_grid
from utils.data.latent_statistics import latent_statistics_of
from utils.data.lmdb_layout import UnmadeDatabase
from utils.data.lmdb_reader import LMDBReader, check_same_samples, expect_kind
from utils.data.preprocess_jobs import naming_commands
from utils.pretrained.latent_statistics import LatentStatistics

MOST_RAM = 0.25  # fraction of the available memory that a dataset may take
FEW = 64  # samples that are checked before a training begins


class LatentDataset:
    """Latents, conditions and patch features of a dataset, read by index.

    `length` is the number of samples, `latent_shape` is (C, H, W), and `cond_dim` is the width of a
    condition (0 = none). `n_features` embeddings are stored for every image at least.
    `patch_shape` is (F, G, G) of an image's patch features; () = there are none.
    `statistics` of each channel normalise the latents; None = they stay as they are.
    """

    def __init__(
        self,
        root: str | Path,
        feat_path: str | Path | None = None,
        in_memory: bool | Literal["auto"] = "auto",
        channels: int = 4,
        num_features: int | None = None,
        classes: int = 0,
        scale_factor: float = 1.0,
        patch_feat_path: str | Path | None = None,
        mirrored_root: str | Path | None = None,
    ) -> None:
        """Open the databases.

        Args:
            root: database of latents.
            feat_path: database of embeddings; None = no embeddings in the condition.
            in_memory: load the databases once; 'auto' = if they take less than a quarter of the
                free memory. Batches do not depend on it.
            channels: of a latent, for databases that do not record it.
            num_features: embeddings of an image, from its first on, to choose among; None = all.
            classes: width of the one-hot class labels that the condition begins with; 0 = no
                labels.
            scale_factor: factor for databases with class labels, whose latents are stored unscaled.
            patch_feat_path: database of patch features; None = there are none.
            mirrored_root: database of the mirrored images' latents; None = there are none.

        Raises a UserError if the databases belong to different images, if there are no labels for
        `classes`, or if most samples hold NaN or infinite numbers.
        """
        self._z = LMDBReader(root, channels)
        self._y = LMDBReader(feat_path) if feat_path is not None else None
        expect_kind(self._z, "z")
        if self._y is not None:
            expect_kind(self._y, "y")
            check_same_samples(self._z, self._y)
        self._maps = LMDBReader(patch_feat_path) if patch_feat_path is not None else None
        if self._maps is not None:
            expect_kind(self._maps, "map")
            check_same_samples(self._z, self._maps)
        self._mirrored = LMDBReader(mirrored_root, channels) if mirrored_root is not None else None
        if self._mirrored is not None:
            expect_kind(self._mirrored, "z")
            check_same_samples(self._z, self._mirrored)
        self.patch_shape = self._maps.info.shape if self._maps is not None else ()
        self.length = self._z.info.length
        labels = self._z.info.labels
        self._classes, self._labels = classes, labels if classes else None
        if classes and labels is None:
            raise UserError(
                f"{self._z.path} holds no class labels for model.num_classes={classes}; set data."
                "feat_path to the embeddings that are the condition, or model.num_classes=0"
            )
        if classes and labels is not None and labels.max() >= classes:
            raise UserError(
                f"{self._z.path} holds class {labels.max()}, but model.num_classes is {classes}"
            )
        self._is_moments = labels is not None or self._z.info.meta.get("z_holds") == "moments"
        self._scale = 1.0 if labels is None else scale_factor
        self.statistics: LatentStatistics | None = None
        channels, *sides = self._z.info.shape
        self.latent_shape = (channels // 2 if self._is_moments else channels, *sides)
        self.cond_dim = classes + (self._y.info.shape[0] if self._y is not None else 0)
        self.n_features = self._y.info.n_features if self._y is not None else 0
        if self._y is not None:
            self._counts = np.minimum(self._y.info.counts, num_features or self._y.info.counts)
            self._choose = self._counts.max() > 1
        given = (self._z, self._y, self._maps, self._mirrored)
        readers = [reader for reader in given if reader is not None]
        # Every process of a machine loads its own copy.
        nbytes = launch().local_size * sum(reader.nbytes for reader in readers)
        fits = nbytes <= MOST_RAM * psutil.virtual_memory().available
        if in_memory is True or (in_memory == "auto" and fits):
            for reader in readers:
                reader.load()
        self.fault: str | None = None  # of the first sample that held NaN or infinite numbers
        self._refuse_mostly_not_finite(readers)

    def _refuse_mostly_not_finite(self, readers: Sequence[LMDBReader]) -> None:
        """Raise a UserError if half of a few samples are not finite: there is nothing to learn."""
        rows = np.unique(np.linspace(0, self.length - 1, FEW).astype(np.int64))
        for reader in readers:
            samples = reader.read(rows, finite=False)
            bad = sum(not is_finite(sample) for sample in samples)
            if 2 * bad > len(rows):
                raise UserError(f"{reader.fault(samples, rows)} ({bad} of {len(rows)} samples)")

    def _checked(
        self, reader: LMDBReader, rows: np.ndarray, feature: int | np.ndarray = 0
    ) -> np.ndarray:
        """Read samples; the first that is not finite is named once, and its steps are skipped."""
        samples = reader.read(rows, feature, finite=False)
        if self.fault is None and (fault := reader.fault(samples, rows)):
            self.fault = fault
            print(f"WARNING: its steps are skipped: {fault}", file=sys.stderr, flush=True)
        return samples

    @property
    def identity(self) -> str:
        """Return a hash of names, encoders and settings, and one of the images' contents.

        The form is `facts-files`; either is empty if it is not recorded. They do not depend on the
        places of the databases and images. `data_differences` compares two of them.
        """
        facts, files = [], []
        # Without the others, the identity is that of checkpoints before there were any.
        others = [reader for reader in (self._maps, self._mirrored) if reader is not None]
        for reader in (self._z, self._y, *others):
            meta = {} if reader is None else dict(reader.info.meta)
            if reader is not None:
                if not {"names_hash", "encoder"} <= meta.keys():
                    return ""
                files.append(meta.pop("content_hash", ""))
            facts.append({k: v for k, v in meta.items() if k not in ("names", "source")})
        if self.statistics is not None:
            of_channels = self.statistics.mean, self.statistics.std
            facts.append({"statistics": [x.flatten().tolist() for x in of_channels]})
        hashed = [json.dumps(facts, sort_keys=True), "".join(files) if all(files) else ""]
        return "-".join(
            hashlib.sha256(part.encode()).hexdigest() if part else "" for part in hashed
        )

    @property
    def has_mirrored(self) -> bool:
        """Return True if there are latents of the mirrored images."""
        return self._mirrored is not None

    @property
    def path(self) -> Path:
        """Return the path of the database of latents."""
        return self._z.path

    @property
    def origin(self) -> dict[str, Any]:
        """Return what identifies the images: where from, hashes, names; None if not recorded."""
        keys = ("source", "names_hash", "content_hash", "names")
        return {key: self._z.info.meta.get(key) for key in keys}

    def batch(
        self,
        indices: torch.Tensor,
        rng: BatchRandom = WHOLE_BATCH,
        mirrored: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Read latents (B, C, H, W) and conditions (B, D) or None, float32 on the CPU.

        Conditions are one-hot labels, embeddings, or the embeddings after the labels.
        `indices`: (B,) integers. `rng` chooses among several embeddings of a sample, and samples
        the latent where the database holds moments. `mirrored`: (B,) bool, the images whose latents
        are those of the mirrored image, from the database for them.
        """
        rows = indices.numpy()
        z = torch.from_numpy(self._checked(self._z, rows))
        if mirrored is not None and self._mirrored is not None and mirrored.any():
            of_mirrored = self._checked(self._mirrored, rows[mirrored.numpy()])
            z[mirrored] = torch.from_numpy(of_mirrored)
        if self._is_moments:
            mean, log_variance = z.chunk(2, dim=1)
            noise = rng.randn(mean.shape)
            z = self._scale * (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise)
        if self.statistics is not None:
            z = self.statistics.normalised(z)
        if not self.cond_dim:
            return z, None
        y: list[np.ndarray] = []
        if self._labels is not None:
            is_class = self._labels[rows, None] == np.arange(self._classes)
            y.append(is_class.astype(np.float32))
        if self._y is not None:
            feature = 0
            if self._choose:
                random = rng.rand((len(rows),)).numpy()
                feature = (random * self._counts[rows].astype(np.float32)).astype(np.int64)
            y.append(self._checked(self._y, rows, feature))
        return z, torch.from_numpy(y[0] if len(y) == 1 else np.concatenate(y, axis=1))

    def features(self, indices: torch.Tensor) -> torch.Tensor:
        """Read patch features (B, F, G, G), float16 on the CPU. `indices`: (B,) integers."""
        assert self._maps is not None
        return torch.from_numpy(self._checked(self._maps, indices.numpy()))


def data_differences(before: str, now: str) -> list[str]:
    """Say how two identities of a LatentDataset differ, as far as both are recorded."""
    # Older checkpoints hold the first hash alone.
    pairs = zip(before.split("-"), now.split("-"), strict=False)
    texts = (
        "data.root and data.feat_path were made with other images, encoders or settings than there",
        "data.root and data.feat_path were made anew from images of another content",
    )
    return [text for text, (a, b) in zip(texts, pairs, strict=False) if a and b and a != b]


def open_data(config: Config) -> LatentDataset:
    """Open the configured databases; raise a UserError unless they have the configured shapes."""
    paths, model = config.data, config.model
    if paths.root is None:
        raise UserError("data.root: required key is missing; set it to the database of latents")
    width = model.num_classes + model.ext_feature_dim
    feat_path = paths.feat_path if width else None
    if model.ext_feature_dim and feat_path is None:
        raise UserError("data.feat_path: set it to the embeddings for model.ext_feature_dim")
    if config.is_aligned and paths.patch_feat_path is None:
        raise UserError(
            "train.align_coef: the alignment needs data.patch_feat_path, a database of patch "
            "features; set it to a folder, and add --with_features to create_latentspace_lmdb.py"
        )
    patch_feat_path = paths.patch_feat_path if config.is_aligned else None
    mirrored_root = paths.mirrored_root if config.train.xflip else None
    with naming_commands(config):
        data = LatentDataset(
            paths.root,
            feat_path,
            channels=model.in_channels,
            num_features=paths.num_features_per_sample,
            classes=model.num_classes if model.ext_feature_dim or feat_path is None else 0,
            scale_factor=config.encoders.scale_factor or LDM_SCALE_FACTOR,
            patch_feat_path=patch_feat_path,
            mirrored_root=mirrored_root,
        )
        side = token_grid(model)
        if patch_feat_path is not None and data.patch_shape[1:] != (side, side):
            there = "x".join(map(str, data.patch_shape[1:]))
            problem = f"holds patch features of {there} positions for {side}x{side} tokens"
            remedy = "delete it and make it again"
            raise UnmadeDatabase(patch_feat_path, problem, remedy, remedy)
    wanted = (model.in_channels, model.in_size, model.in_size)
    if data.latent_shape != wanted:
        raise UserError(
            f"{paths.root} holds latents of shape {data.latent_shape}, but model.in_channels and "
            f"model.in_size say {wanted}"
        )
    if feat_path and (paths.num_features_per_sample or 0) > data.n_features:
        raise UserError(
            f"data.num_features_per_sample: {paths.num_features_per_sample}, but {feat_path} holds "
            f"{data.n_features} embedding(s) for each image"
        )
    if data.cond_dim != width:
        key = "ext_feature_dim" if model.ext_feature_dim else "num_classes"
        raise UserError(
            f"{feat_path} holds embeddings of {data.cond_dim - width + getattr(model, key)} "
            f"numbers, but model.{key} says {getattr(model, key)}"
        )
    data.statistics = latent_statistics_of(config)
    return data
