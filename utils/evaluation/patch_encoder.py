"""The frozen image network whose patch features a training is aligned to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from models.patch_features import PatchEncoder, clip_patch_encoder
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.evaluation.feature_networks import DinoFeatures
from utils.pretrained.assets import advice
from utils.pretrained.encoders import load_config_clip

if TYPE_CHECKING:
    from models.clip import ClipEncoder


def load_patch_encoder(
    config: Config, side: int, device: torch.device | str, clip: ClipEncoder | None = None
) -> PatchEncoder:
    """Load the DINOv2 at `encoders.dinov2` if that is set, else the image tower of the CLIP.

    side: of the grid of tokens. clip: the config's CLIP, if it is loaded already.
    Raises UserError if weights are missing, or the tower gives no maps.
    """
    weights = config.encoders.dinov2
    if weights is not None:
        if not weights.is_file():
            raise UserError(f"encoders.dinov2: {weights} is not there{advice(weights)}")
        dino = DinoFeatures(weights, device)
        return PatchEncoder(dino.name, side, lambda images, _: dino.patch_maps(images))
    try:
        return clip_patch_encoder(clip or load_config_clip(config.encoders, device), side)
    except ValueError as fault:
        raise UserError(f"encoders.clip: {fault}; set encoders.dinov2 to a DINOv2") from fault
