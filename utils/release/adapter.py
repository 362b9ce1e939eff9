"""Export of what a training with `train.adapt` has trained, as a small file beside its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.adapters import CONDITION
from utils.base.errors import UserError
from utils.base.files import write_json, write_whole
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.pretrained.adapters import FILE, PREFIX, read_adapter
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import adapted_denoiser, in_precision

PEFT_CONFIG = "adapter_config.json"
MATRICES = r".*blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"  # peft's pattern for LoRA's layers


def export_adapter(checkpoint: Path, out: Path) -> int:
    """Write the averaged weights that a training with `train.adapt` trained, as float16.

    out: a .safetensors file, or a folder, which holds peft's `adapter_config.json` too.
    Returns the number of weights. Raises UserError if the checkpoint holds no adapter.
    """
    if out.suffix not in ("", ".safetensors") or out == Path():
        raise UserError(f"--export_adapter '{out}': name a .safetensors file, or a folder")
    state = load_checkpoint(checkpoint)
    values, base = state.get("config"), state.get("base")
    config = None if values is None else config_from_dict(values, str(checkpoint))
    if config is None or config.train.adapt == "all":
        raise UserError(
            f"{checkpoint} holds a network of which all weights were trained; write it with "
            "--export, or train with train.adapt=lora"
        )
    if base is None:
        raise UserError(
            f"{checkpoint}: no file holds the network that it was trained beside, as some of its "
            "weights were fresh; write the whole network with --export"
        )
    with torch.device("meta"):
        named = list(adapted_denoiser(config).named_parameters())
    weights = {name: state["ema"][name] for name, p in named if p.requires_grad}
    is_folder = not out.suffix
    half = in_precision(weights, torch.float16, checkpoint)
    about = {**base, "adapt": config.train.adapt, "source": checkpoint.name}
    metadata = {"adapter": json.dumps(about)}
    file = out / FILE if is_folder else out
    if file.exists():
        read_adapter(file)  # raises: another file is not overwritten
    file.parent.mkdir(parents=True, exist_ok=True)
    prefixed = {f"{PREFIX}{name}": tensor for name, tensor in half.items()}
    write_whole(file, lambda temporary: save_file(prefixed, temporary, metadata=metadata))
    if is_folder and "lora" in config.train.adapt:
        write_json(out / PEFT_CONFIG, _peft_config(config, base["base_name"]))
    return sum(tensor.numel() for tensor in weights.values())


def _peft_config(config: Config, base: str) -> dict[str, Any]:
    """Return the configuration with which peft puts the adapter on an EDMPrecond."""
    rank = config.train.lora_rank
    layers = [name.split(".")[1] for name in CONDITION]
    others = layers if "condition" in config.train.adapt else None
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": MATRICES,
        "modules_to_save": others,
        "inference_mode": True,
    }
