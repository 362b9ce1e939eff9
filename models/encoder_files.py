"""Sizes of a VAE or CLIP, read from its JSON or the shapes of its weights.

These need neither `diffusers` nor `open_clip`, whose import takes seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path

from models.weights import tensor_shapes

# Keys of open_clip's configs for towers of another library: its adapter, and the library.
ADAPTERS = {
    "timm_model_name": ("timm_model", "timm"),
    "hf_model_name": ("hf_model", "transformers"),
}
LDM_SCALE_FACTOR = 0.18215  # Rombach 2022, the released first-stage models


def latent_layout(path: Path) -> tuple[int, int] | None:
    """Return (channels, pixels per latent along a side) of the VAE in a folder or file.

    A config.json may stand for its folder. JSON and shapes are read, no weights. Returns None if
    `models.autoencoder.load_autoencoder` would refuse the path.
    """
    json_file = vae_folder(path) / "config.json" if path.is_dir() else path
    try:
        if json_file.suffix == ".json":
            check_is_autoencoder_kl(json_file.parent)
            described = json.loads(json_file.read_text(encoding="utf-8"))
            levels = len(described["block_out_channels"])
            return int(described["latent_channels"]), 2 ** (levels - 1)
        prefix = "first_stage_model."
        shapes = {n.removeprefix(prefix): shape for n, shape in tensor_shapes(path).items()}
        return shapes["post_quant_conv.weight"][1], 2 ** (ldm_levels(shapes) - 1)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def vae_folder(path: Path) -> Path:
    """Return the folder of a VAE: `path`, or the `vae` folder of a diffusers pipeline in `path`."""
    inside = path / "vae"
    has_own = (path / "config.json").exists() or not (inside / "config.json").exists()
    return path if has_own else inside


def hub_place(name: str) -> tuple[str, str]:
    """Split a VAE's name on the hub, `owner/name/subfolder`, into repository and subfolder."""
    parts = name.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def check_is_autoencoder_kl(folder: Path) -> None:
    """Raise ValueError if a diffusers folder holds no config.json, or that of another network."""
    file = folder / "config.json"
    if not file.exists():
        raise ValueError(f"{folder} holds no config.json, so it is not a diffusers VAE")
    kind = json.loads(file.read_text(encoding="utf-8")).get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"{folder} holds {kind}, and encoders.vae takes AutoencoderKL only")


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
