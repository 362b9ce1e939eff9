"""The frozen networks that a config names; one clear line where they cannot be loaded."""

import torch

from models.autoencoder import Autoencoder, load_autoencoder
from models.clip import ClipEncoder, load_clip
from utils.config import Config
from utils.errors import UserError


def load_config_clip(config: Config, device: torch.device | str = "cpu") -> ClipEncoder:
    """The CLIP at `encoders.clip`; raises UserError if there is none."""
    try:
        return load_clip(config.encoders.clip, device=device)
    except (FileNotFoundError, ValueError) as fault:
        raise UserError(f"encoders.clip: {fault}") from fault


def load_config_autoencoder(config: Config, device: torch.device | str = "cpu") -> Autoencoder:
    """The VAE at `encoders.vae`; raises UserError if there is none or it does not fit."""
    encoders, model = config.encoders, config.model
    try:
        vae = load_autoencoder(encoders.vae, scale_factor=encoders.scale_factor, device=device)
    except (FileNotFoundError, ValueError) as fault:
        raise UserError(f"encoders.vae: {fault}") from fault
    if vae.latent_channels != model.in_channels:
        raise UserError(
            f"encoders.vae: {encoders.vae} has latents of {vae.latent_channels} channels, "
            f"but model.in_channels is {model.in_channels}"
        )
    return vae
