"""Checkpoints of another architecture are refused with the keys that make it theirs."""

from pathlib import Path

import pytest
import torch
from tiny import make_tiny_checkpoint, make_tiny_config

from utils.base.errors import UserError
from utils.config.load import load_config
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import denoiser_from_config, load_denoiser
from utils.training.finetune import start_from


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Return a checkpoint; `config.yaml` lies beside it."""
    folder = tmp_path_factory.mktemp("architectures")
    config = make_tiny_config(folder)
    (folder / "config.yaml").write_text(config.to_yaml())
    return make_tiny_checkpoint(folder / "0000007.pt", config)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        (["model.depth=3", "model.mlp=gelu"], "model.depth=2: set these keys, or leave --config"),
        (["model.use_decoder=false", "model.mask_ratio=0"], "has model.use_decoder=true: set"),
        (["model.model_type=UViT-S/2", "model.use_decoder=false", "model.mask_ratio=0"],
         "has model.model_type=DiT-S/2 model.use_decoder=true: set"),
    ],
)  # fmt: skip
def test_the_line_names_the_keys_of_the_file(checkpoint, changes, remedy):
    config = load_config(checkpoint.parent / "config.yaml", changes)
    fresh, ema = denoiser_from_config(config), denoiser_from_config(config)
    message = f"does not fit the configured model.*{remedy}"
    with pytest.raises(UserError, match=message):
        start_from(checkpoint, fresh, ema, torch.optim.AdamW(fresh.parameters()), 8)
    with pytest.raises(UserError, match=message):
        load_denoiser(checkpoint, config=config)


def test_weights_that_differ_from_the_files_own_architecture_are_called_changed(
    checkpoint, tmp_path
):
    state = load_checkpoint(checkpoint)
    state["ema"] = {name + ".new": weight for name, weight in state["ema"].items()}
    torch.save(state, tmp_path / "0000007.pt")
    with pytest.raises(UserError, match="the file was changed, copy it again"):
        load_denoiser(tmp_path / "0000007.pt")
