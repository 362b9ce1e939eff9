"""The training faces: groups of four that differ in one attribute, and batches with captions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.make_faces import ATTRIBUTES, encode_attributes, hide, random_attributes, render
from utils.base.progress import progress
from utils.base.threads import processors

GROUP = 4  # faces
CHUNK = 32  # groups that a process renders at once
# Writes a text about shown attributes; the last argument names one that it has to state.
Writer = Callable[[dict[str, str], random.Random, str], dict[str, Any]]
# Relative number of groups; attributes with similar variants get more.
ATTRIBUTE_WEIGHTS = {
    "expression": 4,
    "eyes": 1.5,
    "facial_hair": 2,
    "clothes": 2,
    "glasses": 1.5,
    "hair_color": 2,
    "headwear_color": 1.5,
    "clothes_color": 2,
}


def make_group(index: int) -> tuple[list[dict[str, str]], str]:
    """Return four faces that differ in one attribute, and the attribute's name."""
    rng = random.Random(f"clip-{index}")
    face = random_attributes(rng)
    names = list(ATTRIBUTES)
    name = rng.choices(names, [ATTRIBUTE_WEIGHTS.get(n, 1) for n in names])[0]
    # The attribute must be visible.
    if name in ("hair_style", "hair_color"):
        face["headwear"] = "none"
    if name == "headwear_color" and face["headwear"] == "none":
        face["headwear"] = rng.choice(ATTRIBUTES["headwear"][1:])
    if name == "eyes" and face["glasses"] == "sunglasses":
        face["glasses"] = rng.choice(["none", "round"])
    values = ATTRIBUTES[name]
    picked = rng.sample(values, min(GROUP, len(values)))
    picked += rng.choices(values, k=GROUP - len(picked))
    return [face | {name: value} for value in picked], name


def render_group(index: int) -> np.ndarray:
    """Render the faces of a group, (4, 128, 128, 3) uint8."""
    return np.stack([np.asarray(render(face)) for face in make_group(index)[0]])


def render_all(cache: Path, groups: int) -> np.ndarray:
    """Render all training faces, or read the file `cache`: (groups, 4, 128, 128, 3) uint8."""
    if cache.exists():
        images: np.ndarray = np.load(cache, mmap_mode="r", allow_pickle=False)
        if len(images) >= groups:
            return images[:groups]
    workers = min(processors(), -(-groups // CHUNK))
    with get_context("spawn").Pool(workers) as pool:
        stream = pool.imap(render_group, range(groups), chunksize=CHUNK)
        bar = progress(stream, desc="faces in groups", total=groups, unit="group")
        images = np.stack(list(bar))
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, images)
    return images


@dataclass(frozen=True)
class TrainingFaces:
    """Groups of four faces that differ in one attribute."""

    images: np.ndarray  # (groups, 4, 128, 128, 3) uint8
    attributes: list[list[dict[str, str]]]  # of each face, "hidden" where it does not show
    differs: list[str]  # for each group, the attribute in which its faces differ
    codes: np.ndarray  # (groups, 4, A) int, the attributes as numbers; −1 = hidden


def load_training_faces(cache: Path, groups: int) -> TrainingFaces:
    """Return so many groups of faces; `cache` is the file of their images, see render_all."""
    made = [make_group(index) for index in range(groups)]
    attributes = [[hide(face) for face in faces] for faces, _ in made]
    codes = np.array([[encode_attributes(face) for face in faces] for faces in attributes])
    return TrainingFaces(render_all(cache, groups), attributes, [name for _, name in made], codes)


@dataclass(frozen=True)
class Batch:
    """N faces, groups of four one after another, and a text about each."""

    faces: np.ndarray  # (N, 2) int: number of the group, place in the group
    texts: list[str]
    shows: np.ndarray  # (N, A) int, attributes of the faces; −1 = hidden
    stated: np.ndarray  # (N, A) bool, the attributes that the texts state


def random_batch(faces: TrainingFaces, step: int, groups: int, write: Writer) -> Batch:
    """Choose so many groups and write their texts, by the number of the training step alone.

    write: `make_caption` or another writer with its arguments.
    """
    rng = random.Random(step)
    picked = rng.sample(range(len(faces.images)), groups)
    places = [(group, place) for group in picked for place in range(GROUP)]
    written = [write(faces.attributes[g][i], rng, faces.differs[g]) for g, i in places]
    return Batch(
        faces=np.array(places),
        texts=[text["text"] for text in written],
        shows=faces.codes[picked].reshape(len(written), -1),
        stated=np.array([[a in text["states"] for a in ATTRIBUTES] for text in written]),
    )


def read_pixels(faces: TrainingFaces, batch: Batch) -> Tensor:
    """Return the images of a batch, (N, 3, 128, 128) float32 in [-1, 1]."""
    images = np.stack([faces.images[group][place] for group, place in batch.faces])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
