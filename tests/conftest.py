"""Fixtures of many tests: reference values, small folders of images, training data."""

import os
import random
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
# The suite repeats its examples; `make soak` tries more, and new ones each time.
settings.register_profile("suite", max_examples=40, derandomize=True, database=None, deadline=None)
settings.register_profile("soak", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

SKIN = ["#f2d3b1", "#ae5d29", "#ffdbb4", "#8d5524"]
HAIR = ["#2c1b18", "#b58143", "#a55728", "#e8e1e1"]
BACK = ["#65c9ff", "#ffffb1", "#c2f0c2", "#ffafb9"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin each test with random numbers that follow from its name, whatever ran before it."""
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the folder of reference values, computed once with the published MaskDiT code."""
    return ROOT / "tests" / "golden"


def crude_face(index: int, size: int) -> Image.Image:
    """Return a crude face; its colours and smile depend on the index alone."""
    rng = np.random.default_rng(index)
    skin, hair, back = (colours[rng.integers(4)] for colours in (SKIN, HAIR, BACK))
    image = Image.new("RGB", (size, size), back)
    canvas = ImageDraw.Draw(image)
    s = size / 16
    canvas.ellipse((3 * s, 1 * s, 13 * s, 12 * s), fill=hair)
    canvas.ellipse((4 * s, 3 * s, 12 * s, 14 * s), fill=skin)
    for x in (6, 9):
        canvas.ellipse((x * s, 7 * s, (x + 1) * s, 8 * s), fill="#222222")
    canvas.arc((6 * s, 8 * s, 10 * s, (11 + rng.integers(2)) * s), 20, 160, fill="#993333", width=2)
    return image


@pytest.fixture
def own_cores() -> Iterator[None]:
    """Afterwards, give this process the processor cores and threads that a script took from it."""
    import torch  # slow to import, and few tests need it

    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_faces(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return `tiny_faces(n, size, name)`, which writes n faces.

    It returns their folder of images and their folder of captions, two captions a face.
    """

    def make(n: int = 10, size: int = 32, name: str = "faces") -> tuple[Path, Path]:
        images, captions = tmp_path / name / "images", tmp_path / name / "captions"
        images.mkdir(parents=True)
        captions.mkdir()
        for i in range(n):
            crude_face(i, size).save(images / f"{i:06d}.png")
            (captions / f"{i:06d}.txt").write_text(f"a rendered face\nface number {i}\n")
        return images, captions

    return make


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Write databases of 40 images and return the config file of a short training on them.

    An image has a latent (4, 8, 8) and two embeddings. The latent is one colour that follows from
    the embeddings, so that a network can learn it.
    """
    from tiny import DIM, make_tiny_config  # slow to import, and few tests need it

    from utils.data.lmdb_writer import LMDBWriter

    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    means = rng.normal(size=(40, DIM)).astype(np.float32)
    colours = means @ rng.normal(size=(DIM, 4)).astype(np.float32) / 8
    latents = np.broadcast_to(colours[:, :, None, None], (40, 4, 8, 8))
    for split in ("train", "test"):
        with LMDBWriter(folder / "lmdb" / split / "z", "z", {}, 40) as writer:
            writer.append(latents)
        for name in ("clip_img", "clip_txt"):
            with LMDBWriter(folder / "lmdb" / split / name, "y", {}, 40) as writer:
                writer.append([m + 0.1 * rng.normal(size=(2, DIM)) for m in means])
    config = make_tiny_config(
        folder,
        data={"resolution": 64},
        model={"in_size": 8, "unmasked_tail": 0.25},
        train={"max_num_steps": 12, "perturbation": 0.5, "ema_rampup": 0.1, "grad_accum": 2},
        eval={"caption_dir": None},
        log={"log_every": 4, "ckpt_every": 6, "sample_every": 0, "use_tensorboard": False},
    )
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.fixture(scope="session")
def encoders(tmp_path_factory) -> Path:
    """A folder with the tiny CLIP and VAE."""
    from tiny import make_tiny_config  # slow to import, and few tests need it

    folder = tmp_path_factory.mktemp("encoders")
    make_tiny_config(folder)
    return folder


@pytest.fixture
def project(tmp_path, tiny_faces, encoders, monkeypatch):
    """A preprocessing.Project: tiny encoders, train and test faces, scripts run in this process."""
    from preprocessing import N_TEST, N_TRAIN, Project  # slow to import, and few tests need it
    from tiny import RESOLUTION

    for name in ("clip", "vae"):
        shutil.copytree(encoders / name, tmp_path / name)
    tiny_faces(N_TRAIN, 2 * RESOLUTION, "train")
    tiny_faces(N_TEST, 2 * RESOLUTION, "test")
    return Project(tmp_path, monkeypatch)
