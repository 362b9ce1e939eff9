"""Read what an audit measures: images of a split, their pixels, embeddings and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.base.errors import UserError, note
from utils.base.progress import progress
from utils.base.read_ahead import read_ahead
from utils.config.schema import Config
from utils.data.captions import captions_where_there
from utils.data.embeddings import BATCH, some_samples
from utils.data.images import Sample, UnreadableImage, center_crop, list_images, load_image
from utils.data.lmdb_reader import LMDBReader
from utils.data.name_lists import choose, read_names
from utils.data.preprocess_jobs import KEYS, config_value
from utils.evaluation.neighbours import open_training_embeddings, training_image_paths

if TYPE_CHECKING:
    from models.clip import ClipEncoder

MOST = 10_000  # embeddings of a database that are read
AT_ONCE = 64  # images that CLIP embeds at once
SplitName = Literal["train", "test"]


@dataclass(frozen=True)
class Pixels:
    """Images as the network sees them, and what their files hold.

    indices: (M,) of the images in `Material.samples`.
    crops: (M, 3, S, S) uint8. sizes: (M, 2) width and height of the files, pixels.
    unreadable: one line for each file that cannot be read.
    """

    indices: Tensor
    crops: Tensor
    sizes: Tensor
    unreadable: list[str]


@dataclass(frozen=True)
class Material:
    """Images of a split.

    samples: those with embeddings (N, D), which have unit length. total: images of the split.
    captions: of each sample; an empty list where it has none.
    """

    split: SplitName
    folder: Path
    total: int
    samples: list[Sample]
    embeddings: Tensor
    captions: list[list[str]]
    pixels: Pixels

    @property
    def captioned(self) -> Tensor:
        """Return the indices of the samples with captions, (M,) int64."""
        return torch.tensor([bool(lines) for lines in self.captions]).nonzero()[:, 0]


class Files(NamedTuple):
    """The image files of a split."""

    split: SplitName
    folder: Path
    samples: list[Sample]


def find_files(config: Config, split: SplitName) -> Files:
    """Return the images of a split.

    Raises UserError if the config names no images, or if they or the folder of the captions that
    it names are not there.
    """
    key = KEYS[split]["images"]
    folder = config_value(config, key)
    if folder is None:
        raise UserError(f"{key}: not set; name the images to audit, e.g. {key}=FOLDER")
    samples, names = list_images(folder), config_value(config, KEYS[split]["names"])
    if names is not None:
        samples = [
            samples[i] for i in choose([s.file_name for s in samples], read_names(names), names)
        ]
    captions = config_value(config, KEYS[split]["captions"])
    if captions is not None:
        captions_where_there([], captions)  # raises
    return Files(split, folder, samples)


def load_material(config: Config, files: Files, clip: ClipEncoder, count: int) -> Material:
    """Read `count` random images of a split, and the embeddings of these or of up to MOST images.

    The embeddings come from the config's database if it holds those of this CLIP and of these
    images. Raises UserError if captions cannot be read, or if no image can.
    """
    split, folder, samples = files
    total, generator = len(samples), torch.Generator().manual_seed(0)
    found = _from_database(config_value(config, KEYS[split]["clip_img"]), clip, folder, samples)
    if found is not None:
        samples, embeddings = found
    chosen = torch.randperm(len(samples), generator=generator)[:count].sort().values
    pixels = _read_pixels(samples, chosen, config.data.resolution)
    if not len(pixels.indices):
        raise UserError(
            f"{folder}: none of {len(chosen)} images can be read; {pixels.unreadable[0]}"
        )
    if found is None:
        samples = [samples[i] for i in pixels.indices.tolist()]
        pixels = Pixels(torch.arange(len(samples)), *list(vars(pixels).values())[1:])
    captions_in = config_value(config, KEYS[split]["captions"])
    captions: list[list[str]] = [[] for _ in samples]
    if captions_in is not None:
        captions = captions_where_there(samples, captions_in)
    if found is None:
        embeddings = embed(clip, pixels.crops, f"CLIP, {split} images")
    return Material(split, folder, total, samples, embeddings, captions, pixels)


def embed(clip: ClipEncoder, images: Tensor, label: str) -> Tensor:
    """Return the embeddings of uint8 (N, 3, H, W), scaled to unit length: (N, D)."""
    parts = images.split(AT_ONCE)
    bar = progress(parts, label, len(parts), "batch")
    return F.normalize(torch.cat([clip.encode_images(part) for part in bar]), dim=1)


def _from_database(
    path: Path | None, clip: ClipEncoder, folder: Path, samples: Sequence[Sample]
) -> tuple[list[Sample], Tensor] | None:
    """Return at most MOST random images of a database with their embeddings, or None."""
    reader = open_training_embeddings(path, clip.identity, clip.dim)
    if reader is None or reader.info.meta.get("y_holds") == "captions":
        return None
    rows = some_samples(reader, MOST, torch.Generator().manual_seed(0)).sort().values
    paths = training_image_paths(folder, reader, rows.tolist())
    if paths is None:
        note(f"{path}: holds embeddings of other images than {folder} does; they are not used")
        return None
    names = _names(reader, samples)
    found = [Sample(names[i], file) for i, file in zip(rows.tolist(), paths, strict=True)]
    parts = [torch.from_numpy(reader.read(part.numpy())) for part in rows.split(BATCH)]
    return found, F.normalize(torch.cat(parts), dim=1)


def _names(reader: LMDBReader, samples: Sequence[Sample]) -> Sequence[str]:
    names: Sequence[str] | None = reader.info.meta.get("names")
    return [sample.name for sample in samples] if names is None else names


def _read_pixels(samples: Sequence[Sample], chosen: Tensor, side: int) -> Pixels:
    """Decode the chosen images; those that cannot be read are named, not raised."""

    def read(index: int) -> tuple[int, np.ndarray, tuple[int, int]] | str:
        try:
            image = load_image(samples[index].path)
        except UnreadableImage as fault:
            return str(fault)
        return index, np.array(center_crop(image, side)), image.size

    results = progress(read_ahead(read, chosen.tolist(), 2, 16), "images", len(chosen), "image")
    found = list(results)
    there = [item for item in found if not isinstance(item, str)]
    crops = np.stack([pixels for _, pixels, _ in there]) if there else np.zeros((0, side, side, 3))
    return Pixels(
        torch.tensor([index for index, _, _ in there], dtype=torch.int64),
        torch.from_numpy(crops).permute(0, 3, 1, 2),
        torch.tensor([size for _, _, size in there]).view(-1, 2),
        [item for item in found if isinstance(item, str)],
    )
