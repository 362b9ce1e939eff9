"""Load the frozen networks that a config names: CLIP and VAE."""

import torch

from models.autoencoder import Autoencoder, load_autoencoder
from models.clip import ClipEncoder, load_clip
from utils.base.errors import UserError, note
from utils.config.schema import Config
from utils.pretrained.assets import advice, local_file

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def usable_device(name: str) -> torch.device:
    """Return the device that `--device` names; raise UserError if it cannot be used."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as fault:
        raise UserError(f"--device {name}: {str(fault).splitlines()[0]}") from fault


def load_config_clip(config: Config, device: torch.device | str = "cpu") -> ClipEncoder:
    """Load the CLIP at `encoders.clip`; raise UserError if it cannot be loaded.

    OpenAI's weights are read from the file of `download_assets.py` if it is there, else from the
    hub.
    """
    source = config.encoders.clip
    if file := local_file(source):
        note(f"encoders.clip: {source} is read from {file}")
    try:
        return load_clip(file or source, device=device, dtype=PRECISIONS[config.encoders.precision])
    except (FileNotFoundError, ValueError) as fault:
        raise UserError(f"encoders.clip: {fault}{_remedy(fault, 'clip', source)}") from fault


def _remedy(fault: Exception, key: str, source: str) -> str:
    """Return the end of a message about an encoder that cannot be loaded."""
    if known := advice(source):
        return known
    if not isinstance(fault, FileNotFoundError):
        return ""
    return f"; copy it there or beside the checkpoint that names it, or set encoders.{key}=…"


def load_config_autoencoder(config: Config, device: torch.device | str = "cpu") -> Autoencoder:
    """Load the VAE at `encoders.vae`; raise UserError if that fails or the model needs another."""
    encoders, model = config.encoders, config.model
    try:
        vae = load_autoencoder(
            encoders.vae,
            scale_factor=encoders.scale_factor,
            device=device,
            dtype=PRECISIONS[encoders.precision],
            memory=encoders.vae_memory,
        )
    except (FileNotFoundError, ValueError) as fault:
        remedy = _remedy(fault, "vae", encoders.vae)
        raise UserError(f"encoders.vae: {fault}{remedy}") from fault
    if vae.latent_channels != model.in_channels:
        raise UserError(
            f"encoders.vae: {encoders.vae} has latents of {vae.latent_channels} channels, "
            f"but model.in_channels is {model.in_channels}"
        )
    return vae
