"""Copies of encoders for a release folder: safetensors and text, whatever format they came in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from models.weights import looks_like_path
from utils.base.errors import UserError

if TYPE_CHECKING:
    from models.clip import ClipEncoder

CLIP_JSON = "open_clip_config.json"
CLIP_FILE = "open_clip_model.safetensors"
MERGES = "merges.txt.gz"
SOURCE = "config.json"  # of an encoder that is named and not copied


def is_public_vae(source: str) -> bool:
    """Return True if a VAE is a name on the hub, no file or folder here."""
    return not looks_like_path(source) and not Path(source).exists()


def write_source(folder: Path, source: str) -> None:
    """Write the public name of an encoder, which takes the place of its copy."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOURCE).write_text(json.dumps({"source": source}) + "\n", encoding="utf-8")


def read_source(folder: str | Path) -> str | None:
    """Return the public name that `write_source` wrote, or None if the folder holds a copy."""
    file = Path(folder) / SOURCE
    source = json.loads(file.read_text(encoding="utf-8")).get("source") if file.exists() else None
    return source if isinstance(source, str) else None


def copy_clip(clip: ClipEncoder, source: str, folder: Path) -> None:
    """Write a CLIP as a folder that `open_clip` reads.

    source: the place that `clip` was loaded from, as `models.clip.load_clip` takes it.
    Raises UserError if the source does not say its architecture.
    """
    path = Path(os.path.expanduser(source))
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        for name in (CLIP_JSON, MERGES):
            if (path / name).exists():
                shutil.copyfile(path / name, folder / name)
    else:
        described = {"model_cfg": _architecture(clip, source), "preprocess_cfg": _pixels(clip)}
        (folder / CLIP_JSON).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    weights = clip.model.state_dict()
    plain = {
        n: w.detach().cpu().clone(memory_format=torch.contiguous_format) for n, w in weights.items()
    }
    save_file(plain, folder / CLIP_FILE, metadata={"format": "pt"})


def _pixels(clip: ClipEncoder) -> dict[str, Any]:
    """Return how images are prepared for a CLIP, as open_clip writes it."""
    import open_clip  # imported here: slow, and only a release folder needs it

    described = open_clip.get_model_preprocess_cfg(clip.model)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in described.items()}


def _architecture(clip: ClipEncoder, source: str) -> dict[str, Any]:
    """Return the architecture of a CLIP from a file of weights, as open_clip writes it."""
    import open_clip  # imported here: slow, and only a release folder needs it

    model = clip.model
    is_quick = any("QuickGELU" in type(module).__name__ for module in model.modules())
    if known := open_clip.get_model_config(source.partition(":")[0]):
        return {**known, "quick_gelu": is_quick}
    vision = model.visual
    if not isinstance(vision, open_clip.transformer.VisionTransformer):
        raise UserError(
            f"encoders.clip: {source}: give its open_clip name in front, e.g. RN50:{source}, so "
            "that the release folder can say which architecture it is"
        )
    blocks, texts = vision.transformer.resblocks, model.transformer.resblocks
    return {
        "embed_dim": model.text_projection.shape[1],
        "quick_gelu": is_quick,
        "vision_cfg": {
            "image_size": clip.image_size,
            "layers": len(blocks),
            "width": vision.conv1.out_channels,
            "head_width": vision.conv1.out_channels // blocks[0].attn.num_heads,
            "patch_size": vision.conv1.kernel_size[0],
        },
        "text_cfg": {
            "context_length": model.context_length,
            "vocab_size": model.vocab_size,
            "width": model.ln_final.normalized_shape[0],
            "heads": texts[0].attn.num_heads,
            "layers": len(texts),
        },
    }
