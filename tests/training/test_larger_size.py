"""A network for larger images that begins with one for smaller images, by the configs for both."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny import DIM, NETWORK, make_tiny_clip, make_tiny_training_data, make_tiny_vae
from trainings import run

from utils.config.load import load_config
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.sampling.text_to_face import TextToFace
from utils.training.checkpoint import list_checkpoints

CONFIGS = ROOT / "configs" / "others"
LOST = [f"encoders.{key}=null" for key in ("latent_statistics", "image_mean", "prior")]


@pytest.fixture(scope="module")
def small_settings(tmp_path_factory) -> list[str]:
    """Return settings that make a config small, with tiny encoders."""
    folder = tmp_path_factory.mktemp("encoders")
    vae, clip = make_tiny_vae(folder / "vae"), make_tiny_clip(folder / "clip")
    network = [f"model.{key}={value}" for key, value in NETWORK.items()]
    return [
        *LOST, *network, f"encoders.vae={vae}", f"encoders.clip={clip}", "train.batchsize=4",
        "train.max_num_steps=1", "train.lr_warmup_steps=0", "log.ckpt_every=1", "log.log_every=1",
        "log.use_tensorboard=false", "log.sample_every=0", "sampling.num_steps=2",
        "sampling.freedom=0",
    ]  # fmt: skip


def train_at(name: str, folder: Path, small_settings: list[str], start: Path | None = None) -> Path:
    """Train a config of one's own images for a step on latents of ones; return the checkpoint."""
    paths = [f"data.root={folder}/z", f"data.feat_path={folder}/y", "data.image_dir=null"]
    path = CONFIGS / f"{name}.yaml"
    side = load_config(path).data.resolution // 8
    sizes = [f"data.feat_dim={DIM}", f"model.num_classes={DIM}", f"model.in_size={side}"]
    settings = [*small_settings, *paths, *sizes]
    make_tiny_training_data(load_config(path, settings), 4, side)
    run(path, folder, *settings, start_from=start)
    *_, last = list_checkpoints(folder / "checkpoints").values()
    return last


def test_own_images_at_512_pixels_begin_with_the_network_for_256(small_settings, tmp_path):
    base = train_at("own_images", tmp_path / "base", small_settings)
    larger = train_at("own_images_512", tmp_path / "larger", small_settings, base)
    log = (tmp_path / "larger" / "log.txt").read_text()
    assert "interpolated from 16x16 to 32x32 tokens" in log
    assert "train.P_mean should be +0.69 of that" in log
    first, last = (load_checkpoint(path)["ema"] for path in (base, larger))
    kept = "model.blocks.0.attn.qkv.weight"
    assert torch.nn.functional.cosine_similarity(first[kept], last[kept]).min() > 0.9
    (image,) = TextToFace.load(larger).generate("a face", seeds=[3]).images
    assert image.size == (512, 512)
