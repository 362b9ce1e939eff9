"""Sizes of a VAE or CLIP, read from its JSON or the shapes of its weights.

These need neither `diffusers` nor `open_clip`, whose import takes seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.weights import tensor_shapes

# Keys of open_clip's configs for towers of another library: its adapter, and the library.
ADAPTERS = {
    "timm_model_name": ("timm_model", "timm"),
    "hf_model_name": ("hf_model", "transformers"),
}
LDM_SCALE_FACTOR = 0.18215  # Rombach 2022, the released first-stage models
# Classes in the config.json of a VAE: those of diffusers, and of a tiny one that it lacks.
KL, TINY, POOLED_TINY = "AutoencoderKL", "AutoencoderTiny", "PooledAutoencoderTiny"
PAIR = re.compile(r"(.+)_(encoder|decoder)(\.pth|\.safetensors)")


def latent_layout(path: Path) -> tuple[int, int] | None:
    """Return (channels, pixels per latent along a side) of the VAE in a folder or file.

    A config.json may stand for its folder. JSON and shapes are read, no weights. Returns None if
    `models.autoencoder.load_autoencoder` would refuse the path.
    """
    path = vae_folder(path) if path.is_dir() else path
    try:
        if pair := vae_pair(path):
            return _tiny_layout(pair[0])
        if path.is_dir() or path.suffix == ".json":
            described = vae_config(path if path.is_dir() else path.parent)
            is_kl = described.get("_class_name", KL) == KL
            widths = described["block_out_channels" if is_kl else "encoder_block_out_channels"]
            return int(described["latent_channels"]), 2 ** (len(widths) - 1)
        prefix = "first_stage_model."
        shapes = {n.removeprefix(prefix): shape for n, shape in tensor_shapes(path).items()}
        return shapes["post_quant_conv.weight"][1], 2 ** (ldm_levels(shapes) - 1)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _tiny_layout(encoder: Path) -> tuple[int, int]:
    """Return the layout of a tiny autoencoder, from the file of its encoder."""
    shapes = tensor_shapes(encoder)
    kernels = [name for name in shapes if re.fullmatch(r"\d+\.weight", name)]
    last = max(kernels, key=lambda name: int(name.partition(".")[0]))
    halvings = [name for name in kernels if name.replace("weight", "bias") not in shapes]
    return shapes[last][0], 2 ** len(halvings)


def vae_folder(path: Path) -> Path:
    """Return the folder of a VAE: `path`, or the `vae` folder of a diffusers pipeline in `path`."""
    inside = path / "vae"
    has_own = (path / "config.json").exists() or not (inside / "config.json").exists()
    return path if has_own else inside


def hub_place(name: str) -> tuple[str, str]:
    """Split a VAE's name on the hub, `owner/name/subfolder`, into repository and subfolder."""
    parts = name.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def vae_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a VAE; raise ValueError if there is none, or of another network."""
    file = folder / "config.json"
    if not file.exists():
        raise ValueError(
            f"{folder} holds no config.json, so it is not a diffusers VAE, and no pair of files "
            "*_encoder.pth and *_decoder.pth"
        )
    described: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    kind = described.get("_class_name", KL)
    if kind not in (KL, TINY, POOLED_TINY):
        raise ValueError(
            f"{folder} holds {kind}, and encoders.vae takes AutoencoderKL and AutoencoderTiny only"
        )
    return described


def vae_pair(path: Path) -> tuple[Path, Path] | None:
    """Return the files of a tiny autoencoder, the encoder's and the decoder's; None for other VAEs.

    path: one of them, or the folder of both. Raises ValueError if a file is missing, or if a folder
    holds several pairs.
    """
    folder = path if path.is_dir() else path.parent
    names = sorted(f.name for f in path.iterdir()) if path.is_dir() else [path.name]
    found = {(match[1], match[3]) for name in names if (match := PAIR.fullmatch(name))}
    has_config = path.is_dir() and (path / "config.json").exists()
    if not found or has_config or (path.is_file() and not _is_half(tensor_shapes(path))):
        return None
    if len(found) > 1:
        listed = ", ".join(sorted(f"{stem}_encoder{suffix}" for stem, suffix in found))
        raise ValueError(f"{path} holds several tiny autoencoders; name the file of one: {listed}")
    ((stem, suffix),) = found
    encoder, decoder = (folder / f"{stem}_{half}{suffix}" for half in ("encoder", "decoder"))
    for file in (encoder, decoder):
        if not file.is_file():
            raise ValueError(
                f"{file} is missing; a tiny autoencoder is this file and its other half"
            )
    return encoder, decoder


def _is_half(names: Iterable[str]) -> bool:
    """Return True if weights are named by the numbers of their layers."""
    return all(name.partition(".")[0].isdigit() for name in names)


def ldm_levels(names: Iterable[str]) -> int:
    """Return the number of levels of an LDM encoder, which has these names of weights."""
    return 1 + max(int(n.split(".")[2]) for n in names if n.startswith("encoder.down."))


def embedding_width(source: str | Path) -> int | None:
    """Return D of a CLIP's embeddings without loading it; None if it cannot be loaded.

    source: as `models.clip.load_clip` takes it. JSON, names and shapes are read, no weights.
    """
    path = Path(os.path.expanduser(source))
    try:
        if path.is_dir():
            described = json.loads((path / "open_clip_config.json").read_text(encoding="utf-8"))
            return int(described["model_cfg"]["embed_dim"])
        if path.is_file():
            return tensor_shapes(path)["text_projection"][1]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return _width_of_name(str(source).partition(":")[0])


def _width_of_name(name: str) -> int | None:
    """Return D of an architecture that `open_clip` knows by name, else None."""
    if "/" in name:  # a path at which nothing is
        return None
    package = importlib.util.find_spec("open_clip")  # finds the package without importing it
    assert package is not None and package.origin is not None
    described = Path(package.origin).with_name("model_configs") / f"{name}.json"
    if described.is_file():
        return int(json.loads(described.read_text(encoding="utf-8"))["embed_dim"])
    import open_clip  # imported here: slow, and only names added at run time need it

    known = open_clip.get_model_config(name)
    return None if known is None else int(known["embed_dim"])


def import_adapters(config: str) -> None:
    """Import the libraries that a CLIP's config, as JSON, takes towers from.

    `open_clip` has imported them, unless they were hidden from it (utils/pretrained/encoders.py).
    """
    for key, (adapter, library) in ADAPTERS.items():
        module = importlib.import_module(f"open_clip.{adapter}")
        if f'"{key}"' in config and getattr(module, library) is None:
            importlib.reload(module)
