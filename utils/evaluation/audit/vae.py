"""Measure what a VAE loses: peak signal-to-noise ratio, and a distance of patch features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.base.progress import progress

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder
    from models.patch_features import PatchEncoder

AT_ONCE = 16


@dataclass(frozen=True)
class VaeLoss:
    """Of each image, (N,): `psnr` in dB, and `distance` relative to that of two other images.

    rebuilt: (N, 3, H, W) uint8. distance is None without patch features.
    """

    rebuilt: Tensor
    psnr: Tensor
    distance: Tensor | None

    @property
    def worst(self) -> Tensor:
        """Return the indices of all images, those that lose most first."""
        return (
            self.psnr.argsort() if self.distance is None else self.distance.argsort(descending=True)
        )


@torch.inference_mode()
def rebuild(vae: Autoencoder, images: Tensor) -> Tensor:
    """Encode uint8 images (N, 3, H, W) to the mean of the VAE's posterior, and decode them."""
    parts = images.split(AT_ONCE)
    rebuilt = []
    for part in progress(parts, "VAE", len(parts), "batch"):
        latents = vae.mean_latents(vae.encode_moments(part.float() / 127.5 - 1))
        pixels = vae.decode(latents).float().cpu().nan_to_num()
        rebuilt.append((pixels * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(rebuilt)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of pairs of uint8 images (N, 3, H, W): (N,) dB.

    Equal images have that of an error of half a level.
    """
    error = (images.double() - others.double()).square().mean(dim=(1, 2, 3)).clamp(min=0.25)
    return 10 * (255**2 / error).log10()


def patch_distance(maps: Tensor, others: Tensor) -> Tensor:
    """Return the distance of pairs of patch features (N, F, h, w): (N,).

    It is that of LPIPS (Zhang 2018, equation 1) in one layer, with all channels weighted equally:
    the mean over positions of the squared difference of unit vectors.
    """
    difference = F.normalize(maps, dim=1) - F.normalize(others, dim=1)
    return difference.square().sum(dim=1).mean(dim=(1, 2))


def measure_vae(vae: Autoencoder, images: Tensor, patches: PatchEncoder | None) -> VaeLoss:
    """Measure what a VAE loses of uint8 images (N, 3, H, W)."""
    rebuilt = rebuild(vae, images)
    distance = None
    if patches is not None and len(images) > 1:
        lost, apart = list[Tensor](), list[Tensor]()
        parts = list(zip(images.split(AT_ONCE), rebuilt.split(AT_ONCE), strict=True))
        for before, after in progress(parts, "patch features", len(parts), "batch"):
            # A number of its own for each batch: the encoder keeps the maps of the last one.
            maps = patches.maps(before, 2 * len(lost))
            lost.append(patch_distance(maps, patches.maps(after, 2 * len(lost) + 1)))
            if len(maps) > 1:
                apart.append(patch_distance(maps, maps.roll(1, dims=0)))
        distance = torch.cat(lost) / torch.cat(apart).mean().clamp(min=1e-12)
    return VaeLoss(rebuilt, psnr(images, rebuilt), distance)
