"""Small real models for tests, their config and their databases, in the project's formats.

Each is built from a seed in a fraction of a second. Sizes: images 16 x 16, latents (4, 2, 2), CLIP
embeddings of 16 numbers. The VAE reduces 8 times, like the real one.
"""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from models.edm import EDMPrecond, build_denoiser
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.feature_networks import ClipFeatures
from utils.evaluation.image_set import ImageSet
from utils.evaluation.references import save_stats
from utils.pretrained.denoisers import export_safetensors
from utils.pretrained.encoders import load_config_clip
from utils.training.checkpoint import save_checkpoint

RESOLUTION = 16  # pixels
LATENT_SIZE = 2
DIM = 16  # numbers of a CLIP embedding
CONTEXT_LENGTH = 24  # tokens that the CLIP reads, start and end included
NETWORK = {  # sizes of the denoiser
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


def make_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP folder for `models.clip.load_clip`; its vocabulary is bytes and one merge."""
    folder.mkdir(parents=True, exist_ok=True)
    tower = {"layers": 1, "width": 16}
    model_cfg = {
        "embed_dim": DIM,
        "vision_cfg": {**tower, "image_size": RESOLUTION, "patch_size": 8, "head_width": 16},
        "text_cfg": {**tower, "context_length": CONTEXT_LENGTH, "vocab_size": 515, "heads": 1},
    }
    with gzip.open(folder / "merges.txt.gz", "wt") as file:
        file.write("#version: tiny\nt h")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = open_clip.CLIP(**model_cfg).state_dict()
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    return folder


def make_tiny_vae(folder: Path, seed: int = 0) -> Path:
    """Write a folder of a diffusers AutoencoderKL: 8 times smaller, four latent channels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=RESOLUTION,
            scaling_factor=0.5,
        )
    vae.save_pretrained(folder)
    return folder


def make_overflowing(folder: Path, size: float) -> None:
    """Give the last layer of a VAE's decoder weights of this size, so that pixels overflow."""
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.weight"] = tensors["decoder.conv_out.weight"].sign() * size
    save_file(tensors, path, {"format": "pt"})


def make_tiny_config(tmp_path: Path, **sections: dict) -> Config:
    """Return a config with the tiny encoders in `tmp_path`; make them if they are missing.

    The config's paths of data lie in `tmp_path` too; no data are made. `sections`: keys to set, by
    section.
    """
    if not (tmp_path / "clip").exists():
        make_tiny_clip(tmp_path / "clip")
        make_tiny_vae(tmp_path / "vae")
    values = {
        "data": {
            "resolution": RESOLUTION,
            "feat_dim": DIM,
            "norm_feature": True,
            "image_dir": tmp_path / "train" / "images",
            "caption_dir": tmp_path / "train" / "captions",
            "root": tmp_path / "lmdb" / "train" / "z",
            "feat_path": tmp_path / "lmdb" / "train" / "clip_img",
        },
        "model": {
            "model_type": "DiT-S/2",
            "in_size": LATENT_SIZE,
            "num_classes": DIM,
            **NETWORK,
        },
        "train": {"batchsize": 8, "amp": "no", "lr": 1e-3, "perturbation": 1.2},
        "eval": {
            "batchsize": 8,
            "feature_network": "clip",
            "fid_sample_size": 24,
            "ref_path": tmp_path / "ref.npz",
            "image_dir": tmp_path / "test" / "images",
            "caption_dir": tmp_path / "test" / "captions",
            "root": tmp_path / "lmdb" / "test" / "z",
            "feat_path": tmp_path / "lmdb" / "test" / "clip_txt",
            "image_feat_path": tmp_path / "lmdb" / "test" / "clip_img",
        },
        "log": {"use_tensorboard": False},
        "encoders": {"vae": tmp_path / "vae", "clip": tmp_path / "clip"},
        "sampling": {"num_steps": 3, "cfg_scale": 2.0},
    }
    plain = {
        name: {key: str(v) if isinstance(v, Path) else v for key, v in keys.items()}
        for name, keys in ((n, keys | sections.get(n, {})) for n, keys in values.items())
    }
    return config_from_dict(plain, "tiny config")


def make_tiny_denoiser(seed: int = 0, cond_dim: int = DIM) -> EDMPrecond:
    """Build a denoiser with all weights random, so that its output depends on every input."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = build_denoiser("DiT-S/2", LATENT_SIZE, 4, cond_dim, **NETWORK)
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
    return denoiser.eval()


def make_tiny_checkpoint(path: Path, config: Config, seed: int = 0) -> Path:
    """Write a checkpoint `<step>.pt` for `config`.

    Its `ema` weights are those of `make_tiny_denoiser(seed)`, its `model` weights are others.
    """
    denoiser = make_tiny_denoiser(seed, config.model.num_classes)
    save_checkpoint(
        path,
        {
            "model": make_tiny_denoiser(seed + 1000, config.model.num_classes).state_dict(),
            "ema": denoiser.state_dict(),
            "opt": {},
            "step": int(path.stem),
            "config": config.to_dict(),
        },
    )
    return path


def make_tiny_release(folder: Path) -> Path:
    """Write tiny encoders and a released model that names them; return the model's file."""
    make_tiny_checkpoint(folder / "0000010.pt", make_tiny_config(folder))
    export_safetensors(folder / "0000010.pt", folder / "dit.safetensors")
    return folder / "dit.safetensors"


def make_tiny_training_data(
    config: Config, count: int = 8, side: int = LATENT_SIZE, seed: int | None = None
) -> None:
    """Write the latents and embeddings that training reads, normal numbers; without `seed` ones."""
    rng = np.random.default_rng(seed)
    for path, name, shape in (
        (config.data.root, "z", (4, side, side)),
        (config.data.feat_path, "y", (1, DIM)),
    ):
        with LMDBWriter(path, name, {}, count) as writer:
            numbers = rng.standard_normal((count, *shape), np.float32)
            writer.append(np.ones_like(numbers) if seed is None else numbers)


def make_tiny_evaluation_data(config: Config, count: int = 10) -> None:
    """Write the databases and reference statistics that evaluation reads, of random images."""
    clip = load_config_clip(config.encoders)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, RESOLUTION, RESOLUTION), generator=generator)
    captions = [[f"face {i}", f"a face with the number {i}"] for i in range(count)]
    embeddings = {
        config.eval.feat_path: [clip.encode_texts(lines).numpy() for lines in captions],
        config.eval.image_feat_path: clip.encode_images(images.byte()).unsqueeze(1).numpy(),
    }
    for path, samples in embeddings.items():
        with LMDBWriter(path, "y", {"encoder": clip.identity}, count) as writer:
            writer.append(samples)
    made = ImageSet([ClipFeatures(clip)])
    made.update(images.byte(), range(count))
    reference = replace(made.references()[0], resolution=RESOLUTION, source="tiny")
    save_stats(config.eval.ref_path, reference)
