"""Patch features: what a frozen image network makes of each part of an image.

The tokens of a denoiser in training are aligned to them; see models/alignment.py.
"""

from __future__ import annotations

import math
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
def clip_outputs(clip: ClipEncoder, images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return embeddings (N, D) and maps (N, F, h, w) of a CLIP's image tower, float32 on the CPU.

    images: uint8 (N, 3, H, W) of any size. side: of the grid that the maps are for.

    Transformers give the normalised patch tokens of their last block, without class token and
    projection. Convolutional towers give the deepest of their maps that is at least as fine as the
    grid. Raises ValueError if the tower gives no maps.
    """
    tower = clip.model.visual
    if not hasattr(tower, "forward_intermediates"):
        raise ValueError(f"its image tower, a {type(tower).__name__}, gives no maps of features")
    with clip.autocast():
        outputs = tower.forward_intermediates(clip.pixels(images), normalize_intermediates=True)
    maps = deepest_as_fine(outputs["image_intermediates"], side)
    return outputs["image_features"].float().cpu(), maps.float().cpu()


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


Encode = Callable[[Tensor, int], Tensor]  # takes images and the index of the first of them


@dataclass(frozen=True)
class PatchEncoder:
    """An image network as a function to patch features.

    identity: of its weights. side: of the grid of the denoiser's tokens.
    maps: uint8 (N, 3, H, W) -> (N, F, h, w) float32.
    embeddings: the embeddings (N, D) of a CLIP, if the pass for `maps` gives them too.
    """

    identity: str
    side: int
    maps: Encode
    embeddings: Encode | None = None

    def __call__(self, images: Tensor, first: int) -> Tensor:
        """Encode uint8 (N, 3, H, W) -> normalised features (N, F, side, side) on the CPU."""
        return on_grid(self.maps(images, first), self.side).cpu()


def clip_patch_encoder(clip: ClipEncoder, side: int) -> PatchEncoder:
    """Return the patch features of a CLIP's image tower, which runs once for each batch.

    Raises ValueError if the tower gives no maps.
    """
    kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # of the last batch alone

    def outputs(images: Tensor, first: int) -> tuple[Tensor, Tensor]:
        batch = (first, len(images))
        if batch not in kept:
            kept.clear()
            kept[batch] = clip_outputs(clip, images, side)
        return kept[batch]

    shape = (2, 3, clip.image_size, clip.image_size)
    images = torch.arange(math.prod(shape)).remainder(251).to(torch.uint8).view(shape)
    is_same = torch.equal(clip_outputs(clip, images, side)[0], clip.encode_images(images))
    return PatchEncoder(
        clip.identity,
        side,
        lambda images, first: outputs(images, first)[1],
        (lambda images, first: outputs(images, first)[0]) if is_same else None,
    )
