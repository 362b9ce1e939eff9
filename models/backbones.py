"""The networks that `model.model_type` names."""

import difflib
from collections.abc import Mapping

from models.backbone import Backbone, Size
from models.maskdit import MaskDiT
from models.uvit import UViT

BACKBONES: tuple[type[Backbone], ...] = (MaskDiT, UViT)
MODEL_SIZES: Mapping[str, Size] = {
    name: size for backbone in BACKBONES for name, size in backbone.SIZES.items()
}


def backbone_of(model_type: str) -> type[Backbone]:
    """Return the class of a named size; raise ValueError for an unknown name."""
    for backbone in BACKBONES:
        if model_type in backbone.SIZES:
            return backbone
    close = difflib.get_close_matches(model_type, MODEL_SIZES, n=1, cutoff=0.0)
    raise ValueError(f"unknown model type '{model_type}'; did you mean '{close[0]}'?")
