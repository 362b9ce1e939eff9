"""Each of eight faults is named within 100 steps, and trainings in order are not warned of any."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import ROOT
from rendered_world import configured, make_world, warnings_of, write
from trainings import fresh_process

from utils.data.images import to_uint8_array
from utils.data.lmdb_reader import LMDBReader
from utils.pretrained.encoders import load_config_clip

DEMO, OWN = "demo/demo.yaml", "demo/recipes/own_small.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Databases of rendered faces."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def spoilt(world, tmp_path) -> Path:
    """A copy of the databases, to be damaged."""
    shutil.copytree(world / "lmdb", tmp_path / "lmdb")
    for split in ("train", "test"):
        (tmp_path / split).symlink_to(world / split)
    return tmp_path


def read(path: Path) -> np.ndarray:
    reader = LMDBReader(path)
    return reader.read(np.arange(reader.info.length))


def replace(path: Path, kind: str, samples) -> None:
    shutil.rmtree(path)
    write(path, kind, samples)


def scaled(folder: Path) -> None:
    """Latents that nobody multiplied by the VAE's scale factor of Stable Diffusion."""
    replace(folder / "lmdb/train/z", "z", read(folder / "lmdb/train/z") / 0.18215)


def shuffled(folder: Path) -> None:
    y = read(folder / "lmdb/train/clip_img")
    order = np.random.default_rng(0).permutation(len(y))
    replace(folder / "lmdb/train/clip_img", "y", y[order, None])


@torch.inference_mode()
def other_clip(folder: Path) -> None:
    """Embeddings of a CLIP of the same widths with other weights."""
    clip = load_config_clip(configured(DEMO, folder).encoders)
    values = json.loads((ROOT / "assets/demo/clip/open_clip_config.json").read_text())
    torch.manual_seed(0)
    clip.model.load_state_dict(open_clip.CLIP(**values["model_cfg"]).state_dict(), strict=False)
    files = sorted((folder / "train/images").iterdir())
    pixels = torch.from_numpy(np.stack([to_uint8_array(file, 128) for file in files]))
    y = clip.encode_images(pixels.permute(0, 3, 1, 2))
    replace(folder / "lmdb/train/clip_img", "y", y[:, None])


@torch.inference_mode()
def empty_captions(folder: Path) -> None:
    clip = load_config_clip(configured(DEMO, folder).encoders)
    lines = ["a face", "a photo of a face", "a person", "an image of someone", "a portrait"]
    random = np.random.default_rng(0).integers(len(lines), size=len(read(folder / "lmdb/test/z")))
    y = clip.encode_texts([lines[number] for number in random])
    replace(folder / "lmdb/test/clip_txt", "y", y[:, None])


def lost_faces(folder: Path) -> None:
    """Latents that a VAE blurred until 2 x 2 of 16 x 16 places are left."""
    z = torch.from_numpy(read(folder / "lmdb/train/z"))
    small = torch.nn.functional.adaptive_avg_pool2d(z, 2)
    z = torch.nn.functional.interpolate(small, z.shape[-2:])
    replace(folder / "lmdb/train/z", "z", z * (1 / z.square().mean().sqrt()))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("wrong scale", scaled),
        ("shuffled embeddings", shuffled),
        ("another CLIP", other_clip),
        ("empty captions", empty_captions),
        ("lost faces", lost_faces),
    ],
)
def test_a_fault_of_the_data_is_named_before_the_first_step(spoilt, name, damage):
    damage(spoilt)
    with fresh_process():
        found = warnings_of(configured(DEMO, spoilt), steps=0)
    assert name in {line.split(":")[0] for line in found}
    others = {"lost faces"} if name == "wrong scale" else set()  # which are decoded badly, too
    assert {line.split(":")[0] for line in found} <= {name} | others


@pytest.mark.parametrize(
    ("config", "name", "settings"),
    [
        (DEMO, "dead average", ("train.ema_decay=0.9999", "train.ema_rampup=null")),
        (DEMO, "learning rate too high", ("train.lr=1e-2", "train.muon_lr=5e-2")),
        (DEMO, "learning rate too low", ("train.lr=1e-4", "train.muon_lr=5e-4")),
        (OWN, "learning rate too low", ("train.lr=1e-4", "train.muon_lr=5e-4")),
    ],
)
def test_a_fault_of_the_settings_is_named_within_100_steps(world, config, name, settings):
    with fresh_process():
        found = warnings_of(configured(config, world, *settings))
    assert [line.split(":")[0] for line in found] == [name]


@pytest.mark.parametrize(
    "config",
    [DEMO, OWN, "main_config/train/celeb_t2f_gaus1.2.yaml", "main_config/train/celeb_fast.yaml"],
)
def test_a_training_in_order_is_not_warned_of_anything_in_100_steps(world, config):
    with fresh_process():
        assert warnings_of(configured(config, world)) == []


@pytest.mark.skipif("PHOTOS" not in os.environ, reason="PHOTOS names no folder of photographs")
def test_a_training_on_photographs_is_not_warned_of_anything(tmp_path):
    photos = Path(os.environ["PHOTOS"])
    encoders = (f"encoders.vae={photos / 'vae'}", f"encoders.clip={photos / 'clip'}")
    make_world(tmp_path, photos, (*encoders, "model.in_channels=32", "data.num_channels=32"))
    settings = ("train.xflip=false", f"data.image_dir={photos / 'train' / 'images'}")
    with fresh_process():
        assert warnings_of(configured("others/photos.yaml", tmp_path, *encoders, *settings)) == []
