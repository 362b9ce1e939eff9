"""Stable Diffusion's VAE and CLIP ViT-B/32 at full size, with random weights.

They load from files in their published formats, run, and agree with the libraries.
"""

from functools import partial
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import crude_face
from diffusers import AutoencoderKL
from ldm_vae import ldm_names
from openai_clip import openai_tensors, random_clip, save_archive
from plain_clip import as_tensor, assert_same_as

from models.autoencoder import load_autoencoder
from models.clip import load_clip

pytestmark = pytest.mark.e2e
VIT_B_32 = {
    "embed_dim": 512,
    "vision_cfg": {"layers": 12, "width": 768, "image_size": 224, "patch_size": 32},
    "text_cfg": {
        "layers": 12,
        "width": 512,
        "context_length": 77,
        "vocab_size": 49408,
        "heads": 8,
    },
}


def size_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_stable_diffusion_vae_from_an_ldm_file(tmp_path: Path):
    torch.manual_seed(0)
    plain = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()
    assert size_of(plain) == 83_653_863
    torch.save(ldm_names(plain), tmp_path / "autoencoder_kl.pth")
    vae = load_autoencoder(tmp_path / "autoencoder_kl.pth")
    small, image = (as_tensor(crude_face(0, side)) / 127.5 - 1 for side in (64, 256))
    with torch.inference_mode():
        expected = plain.encode(small).latent_dist.parameters
        decoded = plain.decode(expected[:, :4]).sample.clamp(-1, 1)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=5e-5)
    close(vae.encode_moments(small), expected)
    close(vae.decode(vae.mean_latents(expected)), decoded)
    latents = vae.mean_latents(vae.encode_moments(image))
    assert latents.shape == (1, 4, 32, 32)
    assert vae.decode(latents).shape == image.shape


def test_vit_b_32_from_openais_archive(tmp_path: Path):
    path = save_archive(openai_tensors(random_clip(**VIT_B_32)), tmp_path / "ViT-B-32.pt")
    assert path.stat().st_size == pytest.approx(354e6, rel=0.01)  # as the published file
    clip = load_clip(path)
    assert size_of(clip.model) == 151_277_313
    assert (clip.dim, clip.image_size, clip.context_length) == (512, 224, 77)
    plain = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
    assert_same_as(clip, plain, crude_face(0, 256))


def test_vit_b_32_from_an_open_clip_checkpoint(tmp_path: Path):
    torch.manual_seed(0)
    path = tmp_path / "vit_b_32.pt"
    torch.save({"epoch": 32, "state_dict": open_clip.create_model("ViT-B-32").state_dict()}, path)
    clip = load_clip(f"ViT-B-32:{path}")
    assert size_of(clip.model) == 151_277_313
    plain = open_clip.create_model("ViT-B-32", pretrained=str(path)).eval()
    assert_same_as(clip, plain, crude_face(1, 256))
