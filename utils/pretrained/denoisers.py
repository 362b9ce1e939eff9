"""Denoisers from a configuration, with fresh weights or with those of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.edm import EDMPrecond, build_denoiser
from utils.base.errors import UserError
from utils.base.files import write_whole
from utils.base.finite import require_finite
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.pretrained.checkpoint_files import load_weights, read_weights
from utils.pretrained.encoder_paths import shareable_encoders


def denoiser_arguments(config: Config) -> dict[str, Any]:
    """Return the arguments of `build_denoiser` for a configuration: plain values."""
    model = config.model
    return {
        "model_type": model.model_type,
        "in_size": model.in_size,
        "in_channels": model.in_channels,
        "cond_dim": model.num_classes,
        "sigma_data": model.sigma_data,
        "student_sigmas": config.distill.sigmas,
        "depth": model.depth,
        "hidden_size": model.hidden_size,
        "num_heads": model.num_heads,
        "use_decoder": model.use_decoder,
        "decoder_hidden_size": model.decoder_hidden_size,
        "decoder_depth": model.decoder_depth,
        "decoder_num_heads": model.decoder_num_heads,
        "cond_init_std": model.cond_init_std,
        "mae_loss_coef": model.mae_loss_coef,
        "pad_cls_token": model.pad_cls_token,
        "ext_feature_dim": model.ext_feature_dim,
        "self_cond": model.self_cond,
        "mlp": model.mlp,
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


def denoiser_with(weights: Mapping[str, torch.Tensor], config: Config, source: Path) -> EDMPrecond:
    """Build the configured network with the given weights in float32.

    `source` is the weights' file, for messages. Raises UserError if the weights do not fit.
    """
    # On the meta device, no time is lost on initialising weights that are replaced.
    with torch.device("meta"):
        denoiser = denoiser_from_config(config)
    load_weights(denoiser, {n: w.float() for n, w in weights.items()}, source, assign=True)
    return denoiser


def check_sigma_data(trained: float, configured: float, source: Path) -> None:
    """Raise UserError if the weights in `source` were trained at another scale than configured.

    They would fit, and give wrong pictures.
    """
    if trained != configured:
        raise UserError(
            f"{source} was trained with model.sigma_data={trained:g}, and the settings say "
            f"{configured:g}; set model.sigma_data={trained:g}"
        )


def check_same_student(stored: Config, config: Config, source: Path) -> None:
    """Raise UserError if the weights in `source` are those of another student than configured.

    They would fit, and give wrong pictures at all levels but their own.
    """
    theirs, ours = stored.distill.sigmas, config.distill.sigmas
    if theirs != ours:
        raise UserError(
            f"{source} holds {_kind(theirs)}, and the settings ask for {_kind(ours)}; name "
            f"another file, or set distill.sigmas={_listed(theirs)}"
        )


def _kind(student_sigmas: tuple[float, ...] | None) -> str:
    levels = _listed(student_sigmas)
    return f"a student for the noise levels {levels}" if student_sigmas else "no student"


def _listed(sigmas: tuple[float, ...] | None) -> str:
    return f"[{','.join(f'{sigma:g}' for sigma in sigmas)}]" if sigmas else "null"


def load_denoiser(
    path: Path | str,
    device: torch.device | str = "cpu",
    which: str = "ema",
    config: Config | None = None,
) -> tuple[EDMPrecond, Config]:
    """Load a trained denoiser, in eval mode, and its configuration from a .pt or .safetensors file.

    `config` replaces the configuration in the file. Checkpoints of the published code hold none and
    need it. Raises UserError if the file is damaged, no checkpoint, or does not fit `config`.
    """
    path = Path(path)
    weights, stored = read_weights(path, which)
    if stored is not None and config is not None:
        check_sigma_data(stored.model.sigma_data, config.model.sigma_data, path)
        check_same_student(stored, config, path)
    config = config or stored
    if config is None:
        raise UserError(f"{path} holds no configuration; give the one it was trained with")
    denoiser = denoiser_with(weights, config, path)
    return denoiser.to(device).eval().requires_grad_(False), config


def in_precision(
    weights: Mapping[str, torch.Tensor], dtype: torch.dtype, source: object
) -> dict[str, torch.Tensor]:
    """Return weights in another type; raise UserError if one of `source` is beyond its range."""
    converted = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    remedy = f"it is beyond the range of {dtype}: the training has diverged; take an earlier one"
    require_finite(converted, source, remedy)
    return converted


def export_safetensors(
    checkpoint: Path | str, out: Path | str, overrides: Sequence[str] = ()
) -> list[str]:
    """Write a checkpoint's EMA weights as float16 with its configuration, for release.

    `overrides`, e.g. `sampling.cfg_scale=2`, change the released configuration. Encoder paths are
    stored so that they are found from other folders. Returns the local encoders that drawing needs.
    Raises UserError if the checkpoint holds no configuration, or its weights do not fit.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    weights, config = read_weights(checkpoint)
    if config is None:
        raise UserError(f"{checkpoint} holds no configuration and cannot be exported")
    config = config_from_dict(config.to_dict(), str(checkpoint), overrides)
    denoiser_with(weights, config, checkpoint)  # raises if the weights do not fit
    values, local = shareable_encoders(config.to_dict())
    config = config_from_dict(values, str(checkpoint))
    half = in_precision(weights, torch.float16, checkpoint)
    metadata = {"config": config.to_yaml(), "source": checkpoint.name}
    write_whole(out, lambda temporary: save_file(half, temporary, metadata=metadata))
    return local
