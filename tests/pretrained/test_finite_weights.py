"""Networks whose weights are NaN or infinite are refused by name, when read and when written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_tiny_checkpoint, make_tiny_config

from models.embedding_prior import EmbeddingPrior
from utils.base.errors import UserError
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import export_safetensors, load_denoiser
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.pretrained.priors import read_prior, save_prior
from utils.release.folder import export_folder
from utils.training.checkpoint import save_checkpoint

NAME = "model.blocks.0.attn.qkv.weight"


def checkpoint_with(tmp_path: Path, value: float) -> Path:
    """Write a checkpoint of which one averaged weight has this value."""
    path = make_tiny_checkpoint(tmp_path / "0000007.pt", make_tiny_config(tmp_path))
    state = load_checkpoint(path)
    state["ema"] = {name: weight.clone() for name, weight in state["ema"].items()}
    state["ema"][NAME][0, 0] = value
    save_checkpoint(path, state)
    return path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_whose_weights_are_not_finite_is_refused_with_the_tensor(tmp_path, value):
    path = checkpoint_with(tmp_path, value)
    with pytest.raises(UserError) as refused:
        load_denoiser(path)
    assert f"{path}: {NAME} holds NaN" in str(refused.value)
    assert "earlier checkpoint" in str(refused.value)


@pytest.mark.parametrize("export", [export_safetensors, export_folder])
def test_weights_beyond_float16_are_not_exported(tmp_path, export):
    path, out = checkpoint_with(tmp_path, 1e6), tmp_path / "out" / "dit.safetensors"
    with pytest.raises(UserError, match=f"{NAME} holds NaN or infinite.*range of torch.float16"):
        export(path, out)
    assert not out.exists() and not list(tmp_path.glob("out/.*"))


@pytest.mark.parametrize(
    ("load", "key", "file", "name"),
    [
        (load_config_autoencoder, "vae", "diffusion_pytorch_model", "decoder.conv_in.weight"),
        (load_config_clip, "clip", "open_clip_model", "visual.proj"),
        (load_config_clip, "clip", "open_clip_model", "text_projection"),
    ],
)
def test_an_encoder_whose_weights_are_not_finite_is_refused(tmp_path, load, key, file, name):
    config = make_tiny_config(tmp_path)
    path = tmp_path / key / f"{file}.safetensors"
    tensors = load_file(path)
    tensors[name].flatten()[0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=rf"encoders\.{key}: .*{name} holds NaN"):
        load(config.encoders if load is load_config_clip else config)


def prior() -> EmbeddingPrior:
    """A small prior that has measured embeddings."""
    made = EmbeddingPrior(8, width=4, depth=1)
    made.measure(torch.nn.functional.normalize(torch.randn(20, 8), dim=1))
    return made


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_a_prior_that_is_not_finite_in_float16_is_not_written(tmp_path, value):
    made = prior()
    with torch.no_grad():
        made.output.weight[0, 0] = value
    with pytest.raises(UserError, match=r"output.weight holds NaN.*prior\.lr"):
        save_prior(made, tmp_path / "prior.safetensors", "clip-a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("std", 0.0), ("mean", float("nan")), ("output.bias", float("inf"))]
)
def test_a_prior_of_an_earlier_version_that_is_not_finite_is_refused(tmp_path, name, value):
    path = tmp_path / "prior.safetensors"
    save_prior(prior(), path, "clip-a")
    tensors = load_file(path)
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, path, {"clip": "clip-a"})
    with pytest.raises(UserError, match=f"holds no prior.*{name} is not a usable number"):
        read_prior(path)
