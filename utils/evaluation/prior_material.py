"""Held-out embeddings and unlike sentences, by which a prior is evaluated."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.base.errors import UserError
from utils.config.schema import Config
from utils.data.embeddings import read_directions
from utils.data.lmdb_reader import LMDBReader, is_complete
from utils.pretrained.encoders import load_config_clip

MOST = 2048  # held-out embeddings that are read
LEAST_IMAGES, LEAST_TEXTS = 16, 16  # with fewer, figures mean nothing
MOST_TEXTS = 64
WHO = ("a young woman", "an old woman", "a young man", "an old man", "a child")
HAIR = ("black", "blond", "red", "brown", "grey")
WEARS = ("glasses", "sunglasses", "a hat", "a scarf", "a green shirt")
LOOK = ("smiling", "laughing", "angry", "sad", "surprised")


class Material(NamedTuple):
    """Embeddings of unit length (N, D), and a phrase that says where they come from."""

    embeddings: Tensor
    source: str


def usual_sentences() -> list[str]:
    """Return 25 sentences of four traits; any two of them share one trait at most.

    Their values form an orthogonal array, so that a sample that keeps its sentence is nearest to it
    alone.
    """
    return [
        f"{WHO[i]} with {HAIR[j]} hair who wears {WEARS[(i + j) % 5]}, {LOOK[(i + 2 * j) % 5]}"
        for i, j in product(range(5), repeat=2)
    ]


def held_out_images(config: Config, reader: LMDBReader, held_out: Tensor) -> Material | None:
    """Return embeddings of images that a prior on the images of `reader` did not see.

    They are those of the test images (`eval.image_feat_path`) if they are there and of the same
    CLIP, else the part `held_out` (M, D) of the training images; None if there are too few.
    """
    path = config.eval.image_feat_path
    if path is not None and is_complete(path):
        test = LMDBReader(path)
        if _same_space(test, reader) and test.info.length >= LEAST_IMAGES:
            return Material(read_directions(test, MOST), "test images")
    if len(held_out) >= LEAST_IMAGES:
        return Material(held_out[:MOST], "held-out images")
    return None


def different_texts(config: Config, reader: LMDBReader) -> Material:
    """Return embeddings of different texts by the CLIP of the image embeddings of `reader`.

    They are test captions (`eval.feat_path`) if these are embedded, else training captions
    (`data.text_feat_path`), else `usual_sentences`.

    Raises UserError if there are no captions, and `encoders.clip` cannot be loaded or is another
    CLIP than that of the images.
    """
    for path, source in (
        (config.eval.feat_path, "test captions"),
        (config.data.text_feat_path, "training captions"),
    ):
        if path is not None and is_complete(path) and _same_space(LMDBReader(path), reader):
            texts = torch.unique(read_directions(LMDBReader(path), MOST), dim=0)
            order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
            if len(texts) >= LEAST_TEXTS:
                return Material(texts[order[:MOST_TEXTS]], source)
    clip = load_config_clip(config.encoders)
    if reader.info.meta.get("encoder", clip.identity) != clip.identity:
        raise UserError(
            f"encoders.clip: {config.encoders.clip} is another CLIP than the one that made "
            f"{reader.path}"
        )
    return Material(F.normalize(clip.encode_texts(usual_sentences()), dim=1), "usual sentences")


def _same_space(other: LMDBReader, images: LMDBReader) -> bool:
    """Return True if a database holds embeddings of the same CLIP as those of the images."""
    made_by = [reader.info.meta.get("encoder") for reader in (other, images)]
    is_same = made_by[0] == made_by[1] or None in made_by
    return other.info.kind == "y" and other.info.shape == images.info.shape and is_same
