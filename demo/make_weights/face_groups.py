"""The training faces: groups of four that differ in one attribute, and batches with captions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from multiprocessing import Pool, cpu_count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.captions import make_caption
from demo.make_faces import ATTRIBUTES, draw_attributes, encode_attributes, hide, render
from utils.base.progress import progress

GROUP = 4  # faces
# Relative number of groups; attributes with variants that look similar get more.
ATTRIBUTE_WEIGHTS = {"expression": 3, "eyes": 2, "facial_hair": 3, "clothes": 3, "glasses": 1.5}


def make_group(index: int) -> tuple[list[dict[str, str]], str]:
    """Return four faces that differ in one attribute, and the attribute's name."""
    rng = random.Random(f"clip-{index}")
    face = draw_attributes(rng)
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
    chosen = rng.sample(values, min(GROUP, len(values)))
    chosen += rng.choices(values, k=GROUP - len(chosen))
    return [face | {name: value} for value in chosen], name


def render_group(index: int) -> np.ndarray:
    """Draw the faces of a group, (4, 128, 128, 3) uint8."""
    return np.stack([np.asarray(render(face)) for face in make_group(index)[0]])


def render_all(cache: Path, groups: int) -> np.ndarray:
    """Draw all training faces, (groups, 4, 128, 128, 3) uint8, or read them from the file `cache`.

    Drawn faces are written to `cache`.
    """
    if cache.exists():
        images: np.ndarray = np.load(cache, mmap_mode="r", allow_pickle=False)
        if len(images) >= groups:
            return images[:groups]
    with Pool(cpu_count()) as pool:
        stream = pool.imap(render_group, range(groups), chunksize=32)
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
    """N faces, each with one caption."""

    pixels: Tensor  # (N, 3, 128, 128) in [-1, 1]
    texts: list[str]
    shows: np.ndarray  # (N, A) int, attributes of the faces; −1 = hidden
    stated: np.ndarray  # (N, A) bool, the attributes that the captions state


def draw_batch(faces: TrainingFaces, step: int, groups: int) -> Batch:
    """Draw so many groups and their captions, by the number of the training step alone."""
    rng = random.Random(step)
    picked = rng.sample(range(len(faces.images)), groups)
    images = np.stack([faces.images[g] for g in picked]).reshape(-1, 128, 128, 3)
    written = [
        make_caption(face, rng, must_name=faces.differs[g])
        for g in picked
        for face in faces.attributes[g]
    ]
    return Batch(
        pixels=torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1,
        texts=[caption["text"] for caption in written],
        shows=faces.codes[picked].reshape(len(written), -1),
        stated=np.array([[a in caption["states"] for a in ATTRIBUTES] for caption in written]),
    )
