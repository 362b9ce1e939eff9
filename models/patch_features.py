"""Patch features: what a frozen image network makes of each part of an image.

The tokens of a denoiser in training are aligned to them; see models/alignment.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from models.clip import ClipEncoder

LEAST_DEVIATION = 0.01  # of a channel, relative to the mean of all channels of the image


@torch.inference_mode()
def clip_patch_maps(clip: ClipEncoder, images: Tensor, side: int) -> Tensor:
    """Return maps (N, F, h, w) float32 of the image tower of a CLIP, on its device.

    images: uint8 (N, 3, H, W) of any size. side: of the grid that the maps are for.

    Transformers give the normalised patch tokens of their last block, without class token and
    projection. Convolutional towers give the deepest of their maps that is at least as fine as the
    grid. Raises ValueError if the tower gives no maps.
    """
    tower = clip.model.visual
    if not hasattr(tower, "forward_intermediates"):
        raise ValueError(f"its image tower, a {type(tower).__name__}, gives no maps of features")
    with clip.autocast():
        maps: list[Tensor] = tower.forward_intermediates(
            clip.pixels(images), normalize_intermediates=True, intermediates_only=True
        )["image_intermediates"]
    return deepest_as_fine(maps, side).float()


def deepest_as_fine(maps: Sequence[Tensor], side: int) -> Tensor:
    """Return the last map (N, F, h, w) that is at least `side` wide, else the last of the widest.

    maps: from the first layer to the last.
    """
    widest = max(m.shape[3] for m in maps)
    return next(m for m in reversed(maps) if m.shape[3] >= min(side, widest))


def on_grid(maps: Tensor, side: int) -> Tensor:
    """Resize maps (N, F, h, w) to (N, F, side, side) and normalise them over their positions.

    Each channel of an image loses its mean over the map and is divided by its deviation, so that
    the place of things remains ("spatial normalisation", iREPA, Singh 2025, arXiv 2512.10794).
    Channels that hardly vary are not blown up: a deviation counts as at least a hundredth of the
    channels' mean.
    """
    if maps.shape[2:] != (side, side):
        maps = F.interpolate(maps, (side, side), mode="bilinear", antialias=True)
    variance, mean = torch.var_mean(maps, dim=(2, 3), keepdim=True, correction=0)
    deviation = variance.sqrt()
    least = LEAST_DEVIATION * deviation.mean(dim=1, keepdim=True)
    return (maps - mean) / torch.maximum(deviation, least).clamp_min(1e-6)


@dataclass(frozen=True)
class PatchEncoder:
    """An image network as a function to patch features.

    identity: of its weights. maps: uint8 (N, 3, H, W) -> (N, F, h, w) float32.
    side: of the grid of the denoiser's tokens.
    """

    identity: str
    maps: Callable[[Tensor], Tensor]
    side: int

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Encode uint8 (N, 3, H, W) -> normalised features (N, F, side, side) on the CPU."""
        return on_grid(self.maps(images), self.side).cpu()
