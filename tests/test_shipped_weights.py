"""The weights in `assets/demo` do what the README says of them, on held-out faces."""

from pathlib import Path

import pytest

from demo.train_clip import retrieval
from demo.train_vae import held_out_psnr
from utils.config import DEFAULT_CONFIG, load_config
from utils.encoders import load_config_autoencoder, load_config_clip

ASSETS = Path("assets/demo")

pytestmark = pytest.mark.e2e


def test_the_demo_config_fits_the_shipped_encoders():
    config = load_config(DEFAULT_CONFIG)
    assert load_config_clip(config).dim == config.data.feat_dim == config.model.num_classes
    vae = load_config_autoencoder(config)
    assert config.data.resolution == vae.downsample * config.model.in_size


def test_shipped_clip_finds_the_face_that_a_caption_describes():
    assert retrieval(ASSETS / "clip", count=200) >= 95  # % caption → image R@1


def test_shipped_vae_reconstructs_held_out_faces():
    assert held_out_psnr(ASSETS / "vae", count=40) >= 28  # dB


def test_shipped_weights_stay_small():
    sizes = [file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()]
    assert sum(sizes) <= 25e6
