"""Denoisers from a configuration, with fresh weights or with those of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.adapters import adapt
from models.backbone import Architecture
from models.edm import EDMPrecond, build_denoiser
from utils.base.errors import UserError
from utils.base.files import json_text, write_whole
from utils.base.finite import require_finite
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.config.sections import Model
from utils.pretrained.adapters import with_adapters
from utils.pretrained.checkpoint_files import load_weights, read_weights
from utils.pretrained.encoder_paths import shareable_encoders

UNSHAPED = ("cond_init_std", "mlp")  # options on which no weight depends
KEYS = {"img_size": "in_size", "cond_dim": "num_classes"}  # of `model`, where names differ


def denoiser_arguments(config: Config) -> dict[str, Any]:
    """Return the arguments of `build_denoiser`: the `model` section, under Architecture's names."""
    model = config.model
    names = [field.name for field in fields(Architecture) if field.name in Model.model_fields]
    return {
        **{name: getattr(model, name) for name in names},
        "model_type": model.model_type,
        "in_size": model.in_size,
        "cond_dim": model.num_classes,
        "sigma_data": model.sigma_data,
        "distilled_sigmas": config.distill.sigmas,
        "perturbation": config.learns_perturbation,
    }


def denoiser_from_config(config: Config) -> EDMPrecond:
    """Build the network that a configuration describes, with fresh weights.

    Raises UserError if the settings do not fit together.
    """
    try:
        return build_denoiser(**denoiser_arguments(config))
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def adapted_denoiser(config: Config) -> EDMPrecond:
    """Build the network that a training trains, with fresh weights; see `models.adapters.adapt`."""
    denoiser = denoiser_from_config(config)
    width = denoiser.model.architecture.hidden_size
    if config.train.lora_rank > width:
        raise UserError(f"train.lora_rank: should be at most the network's width, {width}")
    adapt(denoiser, config.train.adapt, config.train.lora_rank)
    return denoiser


def denoiser_with(
    weights: Mapping[str, torch.Tensor], config: Config, source: Path, stored: Config | None
) -> EDMPrecond:
    """Build the configured network with the given weights in float32.

    source: the weights' file, for messages. stored: the configuration in it, or None.
    Raises UserError if the weights do not fit.
    """
    # On the meta device, no time is lost on initialising weights that are replaced.
    with torch.device("meta"):
        denoiser = denoiser_from_config(config)
    weights = {name: weight.float() for name, weight in weights.items()}
    load_weights(denoiser, weights, source, assign=True, remedy=partial(fitting, denoiser, stored))
    return denoiser


def fitting(denoiser: EDMPrecond, stored: Config | None) -> str:
    """Return which keys make a denoiser the network of the configuration that a file holds."""
    if stored is None:
        return "it holds no configuration: set the keys of `model` as they were in its training"
    with torch.device("meta"):
        theirs = denoiser_from_config(stored).model
    here, there = denoiser.model.architecture, theirs.architecture
    is_same = {"mae_loss_coef": bool(here.mae_loss_coef) == bool(there.mae_loss_coef)}  # 0 or not
    keys = {
        KEYS.get(name, name): value
        for name, value in vars(there).items()
        if not is_same.get(name, name in UNSHAPED or getattr(here, name) == value)
    }
    if type(theirs) is not type(denoiser.model) or keys.keys() - Model.model_fields.keys():
        keys = {"model_type": stored.model.model_type, **keys}
    values = {n: v if isinstance(v, str) else json_text(v) for n, v in keys.items()}
    texts = [f"model.{n}={v}" for n, v in values.items() if n in Model.model_fields]
    if not texts:
        return "its own configuration describes this model: the file was changed, copy it again"
    return f"its own configuration has {' '.join(texts)}: set these keys, or leave --config out"


def check_sigma_data(trained: float, configured: float, source: Path) -> None:
    """Raise UserError if the weights in `source` fit, but were trained at another scale."""
    if trained != configured:
        raise UserError(
            f"{source} was trained with model.sigma_data={trained:g}, and the settings say "
            f"{configured:g}; set model.sigma_data={trained:g}"
        )


def check_same_student(stored: Config, config: Config, source: Path) -> None:
    """Raise UserError if the weights in `source` fit, but were distilled for other sigmas."""
    if stored.distill.sigmas != config.distill.sigmas:
        raise UserError(
            f"{source} holds {_kind(stored)}, and the settings ask for {_kind(config)}; name "
            f"another file, or set distill.sigmas={_listed(stored)}"
        )


def check_same_latents(stored: Config, config: Config, source: Path) -> None:
    """Raise UserError if the weights in `source` fit, but see latents that are scaled otherwise."""
    there, here = (c.encoders.latent_statistics for c in (stored, config))
    if (there is None) != (here is None):
        raise UserError(
            f"{source} was trained with encoders.latent_statistics={there or 'null'}, and the "
            f"settings say {here or 'null'}; set it as in that training"
        )


def _kind(config: Config) -> str:
    return f"a student for the sigmas {_listed(config)}" if config.distill.sigmas else "no student"


def _listed(config: Config) -> str:
    sigmas = config.distill.sigmas
    return f"[{','.join(f'{sigma:g}' for sigma in sigmas)}]" if sigmas else "null"


def load_denoiser(
    path: Path | str,
    device: torch.device | str = "cpu",
    which: str = "ema",
    config: Config | None = None,
    adapters: Sequence[str | Path] = (),
) -> tuple[EDMPrecond, Config]:
    """Load a trained denoiser, in eval mode, and its configuration from a .pt or .safetensors file.

    adapters: files that change its weights, see `with_adapters`. `config` replaces the
    configuration in the file. Checkpoints of the published code hold none and need it.
    Raises UserError if the file is damaged, no checkpoint, or does not fit `config`.
    """
    path = Path(path)
    weights, stored = read_weights(path, which)
    if stored is not None and config is not None:
        check_sigma_data(stored.model.sigma_data, config.model.sigma_data, path)
        check_same_student(stored, config, path)
        check_same_latents(stored, config, path)
    config = config or stored
    if config is None:
        raise UserError(f"{path} holds no configuration; give the one it was trained with")
    denoiser = denoiser_with(with_adapters(weights, adapters, path), config, path, stored)
    denoiser.adapters = tuple(map(str, adapters))
    return denoiser.to(device).eval().requires_grad_(False), config


def in_precision(
    weights: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    source: object,
    adapters: Sequence[str | Path] = (),
) -> dict[str, torch.Tensor]:
    """Return weights in another type; raise UserError if one of `source` is beyond its range.

    adapters: that are in the weights, for the message.
    """
    converted = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    remedy = "the training has diverged; take an earlier one"
    if adapters:
        remedy = f"bring the weight of {', '.join(map(str, adapters))} nearer to 0"
    require_finite(converted, source, f"it is beyond the range of {dtype}: {remedy}")
    return converted


def export_safetensors(
    checkpoint: Path | str,
    out: Path | str,
    overrides: Sequence[str] = (),
    adapters: Sequence[str | Path] = (),
) -> list[str]:
    """Write a checkpoint's EMA weights as float16 with its configuration, for release.

    `overrides`, e.g. `sampling.cfg_scale=2`, change the released configuration. `adapters`: see
    load_denoiser. Encoder paths are stored so that other folders find them.
    Returns the local encoders that sampling needs.
    Raises UserError if the checkpoint holds no configuration, or its weights do not fit.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    weights, config = read_weights(checkpoint)
    if config is None:
        raise UserError(f"{checkpoint} holds no configuration and cannot be exported")
    config = config_from_dict(config.to_dict(), str(checkpoint), overrides)
    weights = with_adapters(weights, adapters, checkpoint)
    denoiser_with(weights, config, checkpoint, config)  # raises if the weights do not fit
    values, local = shareable_encoders(config.to_dict())
    values["sampling"]["preview"] = None  # of the training's grids
    config = config_from_dict(values, str(checkpoint))
    half = in_precision(weights, torch.float16, checkpoint, adapters)
    metadata = {"config": config.to_yaml(), "source": checkpoint.name}
    write_whole(out, lambda temporary: save_file(half, temporary, metadata=metadata))
    return local
