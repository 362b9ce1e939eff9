"""Trainings that align tokens to patch features."""

from pathlib import Path

import numpy as np

from utils.config.load import load_config
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter

WIDTH = 12  # of the features of a patch


def write_features(path: Path, features: np.ndarray) -> None:
    """Write patch features (N, F, G, G)."""
    with LMDBWriter(path, "map", {}, len(features)) as writer:
        writer.append(features)


def make_aligned_config(faces: Path) -> Path:
    """Write and return the config of a training of twelve steps, eight of which align.

    faces: the config of the fixture of this name. The features (12, 4, 4) of an image follow from
    its latent, so that a network can learn them.
    """
    features = faces.parent / "features"
    latents = LMDBReader(load_config(faces).data.root).read(range(40))
    write_features(features, np.repeat(latents[:, :, ::2, ::2], WIDTH // 4, axis=1))
    settings = ["train.align_coef=0.5", "train.align_until=0.6", "train.max_num_steps=12"]
    config = load_config(faces, [f"data.patch_feat_path={features}", *settings])
    path = faces.parent / "aligned.yaml"
    path.write_text(config.to_yaml())
    return path
