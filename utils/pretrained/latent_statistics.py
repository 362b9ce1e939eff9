"""Mean and deviation of each channel of the training latents: `encoders.latent_statistics`.

Databases hold latents as the VAE scales them, and a network trained with the statistics sees
(z - mean) / deviation. So `utils/data` applies them to what it reads, and the VAE undoes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.base.errors import UserError, refusing
from utils.config.sections import Encoders

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder

KEY = "encoders.latent_statistics"
SCRIPT = "preprocess_scripts/create_latentspace_lmdb.py"


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of scaled latents.

    mean, std: (C, 1, 1) float32.
    about: `vae` and `scale_factor` of the latents, and `latents`, their identity; {} = unknown.
    """

    mean: Tensor
    std: Tensor
    about: Mapping[str, Any]

    def normalised(self, z: Tensor) -> Tensor:
        """Return latents (B, C, h, w) as the network sees them."""
        return (z - self.mean) / self.std


def read_latent_statistics(path: Path) -> LatentStatistics:
    """Read a file of `write_latent_statistics`; raise UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(
            f"{KEY}: {path} is not there; {SCRIPT} writes it beside the training latents; or copy "
            f"it there or beside the checkpoint that names it, or set {KEY}=null"
        )
    with refusing(f"{KEY}: {path} cannot be read"):
        values = json.loads(path.read_text(encoding="utf-8"))
        mean, std = (torch.tensor(values[key], dtype=torch.float32) for key in ("mean", "std"))
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ValueError("mean and std should be two lists of one length")
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise ValueError("all numbers should be finite, and deviations above 0")
    about = {key: values[key] for key in ("vae", "scale_factor", "latents") if key in values}
    return LatentStatistics(mean.view(-1, 1, 1), std.view(-1, 1, 1), about)


def config_latent_statistics(
    encoders: Encoders, channels: int, vae: str | None, scale_factor: float | None
) -> LatentStatistics | None:
    """Read the statistics that a config names, or return None if it names none.

    channels, vae, scale_factor: of the latents that they are applied to; None = unknown. Raises
    UserError if the statistics are not those of such latents.
    """
    if (path := encoders.latent_statistics) is None:
        return None
    found = read_latent_statistics(path)
    again = f"name the file that {SCRIPT} wrote for these latents, or set {KEY}=null"
    if len(found.mean) != channels:
        raise UserError(
            f"{KEY}: {path} holds {len(found.mean)} channels, and the latents have {channels}; "
            f"{again}"
        )
    for key, now in (("vae", vae), ("scale_factor", scale_factor)):
        there = found.about.get(key)
        if None not in (there, now) and there != now:
            raise UserError(
                f"{KEY}: {path} was measured with {key.replace('_', ' ')} {there}, and the latents "
                f"have {now}; {again}"
            )
    return found


def normalise(vae: Autoencoder, encoders: Encoders) -> None:
    """Let a VAE take and give latents as a network trained with `encoders` sees them.

    Raises UserError if the statistics of `encoders.latent_statistics` are not those of this VAE.
    """
    found = config_latent_statistics(encoders, vae.latent_channels, vae.identity, vae.scale_factor)
    if found is not None:
        vae.normalise(found.mean, found.std)
