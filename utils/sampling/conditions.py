"""Conditions of the network: embeddings of captions, prompts, images and their mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from models.geometry import mix, towards_images
from utils.base.errors import UserError, note
from utils.config.schema import Config
from utils.data.captions import check_captions, load_captions, read_captions
from utils.data.embeddings import read_image_mean
from utils.data.images import Sample, center_crop, list_images, to_uint8_array
from utils.data.lmdb_reader import LMDBReader
from utils.sampling.prompts import Row, Source

if TYPE_CHECKING:
    from models.clip import ClipEncoder


def caption_conditions(y: torch.Tensor, config: Config) -> torch.Tensor:
    """Make caption embeddings (N, D) conditions of the network (N, D).

    `encoders.image_mean` moves them towards the images; otherwise `data.norm_feature` scales them
    to unit length. Raises UserError if the file of the mean does not fit.
    """
    if path := config.encoders.image_mean:
        return towards_images(y, read_image_mean(path, y.shape[1]).to(y.device))
    return F.normalize(y, dim=1) if config.data.norm_feature else y


def captions_of(
    config: Config, reader: LMDBReader | None, indices: torch.Tensor
) -> list[str] | None:
    """Return the captions at `indices`, (N, 2): index of the test image, and of its caption.

    reader: embeddings of the captions; None = the captions are not compared with those embedded.
    Returns None if the config does not say where the captions are. Raises UserError if they are not
    there, or are not those that were embedded.
    """
    folder = config.eval.caption_dir
    if folder is None or (samples := captioned_images(config, reader)) is None:
        return None
    rows = indices[:, 0].tolist()
    if reader is None:
        captions = load_captions([samples[row] for row in rows], folder, all_images=False)
    else:
        captions = read_captions(check_captions(reader, samples, folder, rows))
    return [lines[which] for lines, which in zip(captions, indices[:, 1].tolist(), strict=True)]


def check_test_captions(config: Config, reader: LMDBReader) -> None:
    """Raise UserError if a test caption is not the one that was embedded.

    Captions that are not on this machine are not compared: evaluation needs their embeddings alone.
    """
    folder, images = config.eval.caption_dir, config.eval.image_dir
    if folder is None or images is None or not (folder.exists() and images.exists()):
        return
    if (samples := captioned_images(config, reader)) is not None:
        check_captions(reader, samples, folder)


def captioned_images(config: Config, reader: LMDBReader | None) -> list[Sample] | None:
    """Return the test images in the order of their captions' embeddings; None if it is unknown.

    The names in the database count. Without them the order of the image folder does, unless
    `eval.split_file` chose among its images or their number is another.
    """
    names = reader.info.meta.get("names") if reader is not None else None
    images = config.eval.image_dir
    if images is None or (names is None and config.eval.split_file):
        return None
    if names is not None:
        return [Sample(name, images / f"{name}.png") for name in names]
    samples = list_images(images)
    return samples if reader is None or len(samples) == reader.info.length else None


@dataclass(frozen=True)
class Conditions:
    """Rows with their conditions, and with the images for their grid."""

    rows: list[Row]
    embeddings: torch.Tensor  # (R, D)
    thumbnails: dict[str, np.ndarray]  # value of an image -> (S, S, 3) uint8, the input of CLIP

    def icons(self) -> dict[str, list[np.ndarray]]:
        """Return the images of each row, (S, S, 3) uint8, by the row's label."""
        return {row.label: [self.thumbnails[value] for value in row.images] for row in self.rows}


def embed_rows(rows: list[Row], clip: ClipEncoder, config: Config) -> Conditions:
    """Embed every source once and mix them; see `models.geometry.mix`.

    Images are cropped and embedded as in training. A note names each prompt that is cut because it
    is too long. Raises UserError if an image is unreadable, CLIP reads nothing in a prompt, an
    embedding has another width, or a mixture does not exist.
    """
    thumbnails: dict[str, np.ndarray] = {}
    embeddings: dict[Source, torch.Tensor] = {}  # (D,)
    for source in dict.fromkeys(source for row in rows for source, _ in row.parts):
        if source.kind == "image":
            thumbnails[source.value] = _pixels(source, config.data.resolution)
            pixels = torch.tensor(thumbnails[source.value])
            y = clip.encode_images(pixels.permute(2, 0, 1)[None])
            y = F.normalize(y, dim=1) if config.data.norm_feature else y
        elif source.kind == "embedding":
            y = _given_embedding(source, clip.dim)
        else:
            if clip.is_empty([source.value])[0]:
                raise UserError(f"the prompt {source.value!r} holds nothing that this CLIP reads")
            if clip.count_truncated([source.value]):
                note(
                    f"CLIP reads only the first {clip.context_length} tokens of a prompt: "
                    f"{source.value[:60]}…"
                )
            y = caption_conditions(clip.encode_texts([source.value]), config)
        embeddings[source] = y[0]

    conditions = []
    for row in rows:
        y = torch.stack([embeddings[source] for source, _ in row.parts])
        if len(row.parts) > 1:
            try:
                y = mix(y, torch.tensor([[weight for _, weight in row.parts]]))
            except ValueError as fault:
                raise UserError(f"mix: {row.label}: {fault}") from fault
        conditions.append(y[0])
    return Conditions(rows, torch.stack(conditions), thumbnails)


def _pixels(source: Source, side: int) -> np.ndarray:
    """Return an image source as CLIP sees it in training, (side, side, 3) uint8."""
    if isinstance(source.content, Image.Image):
        return np.asarray(center_crop(source.content, side))
    return to_uint8_array(source.value, side)


def _given_embedding(source: Source, width: int) -> torch.Tensor:
    """Return the embedding that a source holds, (1, D); raise UserError if D is not `width`."""
    y = source.content
    assert isinstance(y, torch.Tensor)
    if y.shape != (width,) or not y.isfinite().all():
        raise UserError(
            f"{source.label}: should be {width} finite numbers, the width of this network's "
            f"condition, and has {len(y)}"
        )
    return y[None]
