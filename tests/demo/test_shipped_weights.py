"""The weights in `assets/demo` reach the quality that demo/README.md states, on held-out faces."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from demo.make_faces import make_face
from demo.make_weights.train_clip import retrieval
from demo.make_weights.train_vae import held_out_psnr
from utils.config.command_line import DEFAULT_CONFIG
from utils.config.load import load_config
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.sampling.generate import generate

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


def test_shipped_model_draws_the_faces_that_sentences_describe():
    denoiser, config = load_denoiser(ASSETS / "dit.safetensors")
    vae, clip = load_config_autoencoder(config), load_config_clip(config)
    records = [make_face("test", index, num_captions=6)[1] for index in range(40)]
    fullest = [max(r["captions"], key=lambda c: len(c["states"]))["text"] for r in records]
    texts = F.normalize(clip.encode_texts(fullest), dim=1)
    sampling = config.sampling.model_copy(update={"guidance_interval": None, "amp": "no"})
    batches = generate(denoiser, vae, texts, range(40), sampling)
    pictures = torch.cat([batch for _, batch in batches]).permute(0, 3, 1, 2)
    scores = texts @ F.normalize(clip.encode_images(pictures), dim=1).T  # (texts, pictures)
    found = (scores.argmax(dim=1) == torch.arange(40)).float().mean()
    assert found >= 0.8  # by chance 0.025


def test_shipped_weights_stay_small():
    sizes = [file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()]
    assert sum(sizes) <= 25e6
