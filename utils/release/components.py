"""Components of the pipeline: what diffusers loads from the folders of a release, and saves there.

Encoders are copied as safetensors and text, whatever format they came in; public ones are named.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import save_file

from models.autoencoder import WEIGHTS, load_network, vae_with
from models.clip import ClipEncoder, load_clip
from models.edm import EDMPrecond, build_denoiser
from models.tiny_autoencoder import TinyNetwork, tiny_with
from models.vae_network import VaeConfig, VaeNetwork
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.data.embeddings import read_image_mean
from utils.pretrained.denoisers import denoiser_arguments, in_precision
from utils.pretrained.effective_config import CONFIG, read_config
from utils.pretrained.encoder_paths import NEEDED
from utils.pretrained.hub import is_clip_name, is_vae_name

# A folder below that of the component: from a folder that holds weights itself, diffusers downloads
# only files with names of its own.
OPEN_CLIP = "open_clip"
CLIP_JSON = "open_clip_config.json"
CLIP_FILE = "open_clip_model.safetensors"
MERGES = "merges.txt.gz"
SOURCE = "config.json"  # of an encoder that is named and not copied


# Models of diffusers derive from both mixins, whose types for `config_name` disagree.
class Denoiser(ModelMixin, EDMPrecond, ConfigMixin):  # type: ignore[misc]
    """EDMPrecond as a model of diffusers; weights have the names of our checkpoints."""

    @register_to_config
    def __init__(self, arguments: dict[str, Any]) -> None:
        """Build it with fresh weights; `arguments`: of `models.edm.build_denoiser`."""
        built = build_denoiser(**arguments)
        EDMPrecond.__init__(self, built.model, built.sigma_data, built.distilled_sigmas)
        self.requires_grad_(False).eval()

    @classmethod
    def holding(cls, denoiser: EDMPrecond, config: Config, dtype: torch.dtype) -> Denoiser:
        """Return a denoiser with the weights of another one in a precision."""
        with torch.device("meta"):
            made = cls(denoiser_arguments(config))
        weights = in_precision(denoiser.state_dict(), dtype, "the network", denoiser.adapters)
        made.load_state_dict(weights, assign=True)
        return made.requires_grad_(False).eval()


class Clip(ModelMixin):
    """ClipEncoder as a model of diffusers.

    encoder: both towers; source: the place that they were loaded from.
    """

    def __init__(self, encoder: ClipEncoder, source: str) -> None:
        """Hold a loaded CLIP, whose weights move with the pipeline."""
        super().__init__()
        self.encoder, self.source = encoder, source
        self.towers = encoder.model

    @classmethod
    def from_pretrained(cls, *place: Any, **_: Any) -> Any:
        """Load the CLIP in a folder, or the public one that the folder names."""
        folder = Path(*place)
        source = read_source(folder) or str(folder / OPEN_CLIP)
        return cls(load_clip(source), source)

    def save_pretrained(self, *place: Any, **_: Any) -> None:
        """Write a folder that `from_pretrained` reads."""
        if is_clip_name(self.source):
            write_source(Path(*place), self.source)
        else:
            copy_clip(self.encoder, self.source, Path(*place) / OPEN_CLIP)


class TinyVae(ModelMixin, ConfigMixin):
    """A tiny autoencoder as a model of diffusers, whose own one lacks pooled blocks."""

    config_name = SOURCE  # type: ignore[assignment]  # diffusers states None, for want of a name

    def __init__(self, network: TinyNetwork) -> None:
        """Hold a loaded network, whose weights move with the pipeline."""
        super().__init__()
        self.network = network
        self.register_to_config(**network.config.stated)

    def save_pretrained(self, *place: Any, **_: Any) -> None:
        """Write a folder that `models.autoencoder.load_network` reads."""
        folder = Path(*place)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {n: w.contiguous() for n, w in self.network.state_dict().items()}
        save_file(weights, folder / WEIGHTS[0], metadata={"format": "pt"})
        (folder / SOURCE).write_text(json.dumps(dict(self.config), indent=2) + "\n", "utf-8")


class Vae:
    """Loads a VAE that its folder names or, if diffusers lacks its class, holds."""

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> AutoencoderKL | TinyVae:
        """Load the VAE; `torch_dtype` is its precision."""
        vae = as_model(load_network(read_source(folder) or folder))
        torch.nn.Module.to(vae, options.get("torch_dtype") or torch.float32)
        return vae


def as_model(network: VaeNetwork | TinyNetwork) -> AutoencoderKL | TinyVae:
    """Return a VAE as a model of diffusers."""
    if isinstance(network, TinyNetwork):
        return TinyVae(tiny_with(network.state_dict(), network.config.stated, "vae"))
    vae: AutoencoderKL = AutoencoderKL.from_config(network.config.stated)
    vae.load_state_dict(network.state_dict())
    return vae.eval().requires_grad_(False)


def as_network(vae: AutoencoderKL | TinyVae) -> VaeNetwork | TinyNetwork:
    """Return a VAE of diffusers as our network, in float32."""
    if isinstance(vae, TinyVae):
        return tiny_with(vae.network.state_dict(), vae.config, "vae")
    return vae_with(vae.state_dict(), VaeConfig.from_dict(vae.config), "vae")


@dataclass(frozen=True)
class Settings:
    """The configuration of a release.

    folder: the release folder that it came from, or None.
    """

    values: Config
    folder: Path | None = None

    @classmethod
    def from_pretrained(cls, folder: Path, **_: Any) -> Settings:
        """Read `config.yaml` in a folder; raise UserError if it is wrong."""
        return cls(read_config(folder.parent / CONFIG), folder.parent)

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.yaml`, and what it names beside the encoders, into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        values = self.values.to_dict()
        encoders = values["encoders"]
        if not is_vae_name(encoders["vae"]):
            encoders["vae"] = "../vae"
        if not is_clip_name(encoders["clip"]):
            encoders["clip"] = f"../clip/{OPEN_CLIP}"
        for key in NEEDED:
            if key not in ("vae", "clip") and encoders[key] is not None:
                width = values["model"]["num_classes"]
                encoders[key] = f"{key}/{_copy(Path(encoders[key]), folder / key, width)}"
        values["sampling"]["preview"] = None  # of the training's grids
        for section in ("data", "eval"):
            values[section] = {key: _without_folders(v) for key, v in values[section].items()}
        config = config_from_dict(values, "the release")
        (folder / Path(CONFIG).name).write_text(config.to_yaml(), encoding="utf-8")


# Name of a folder -> what loads the component in it; others are classes of diffusers.
COMPONENTS = {"denoiser": Denoiser, "vae": Vae, "clip": Clip, "settings": Settings}


def _copy(file: Path, folder: Path, dim: int) -> str:
    """Copy a file that sampling needs, as safetensors or JSON; return its new name."""
    folder.mkdir(exist_ok=True)
    if not file.is_file():
        raise UserError(f"encoders: {file} is not there; copy it there, or set its key to null")
    if file.suffix in (".safetensors", ".json"):
        shutil.copyfile(file, folder / file.name)
        return file.name
    save_file({"image_mean": read_image_mean(file, dim)}, folder / f"{file.stem}.safetensors")
    return f"{file.stem}.safetensors"


def _without_folders(value: Any) -> Any:
    """Return the last name of an absolute path, which means nothing elsewhere."""
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


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
    """Write a CLIP as a folder that `open_clip` reads, with its tokenizer.

    source: the place that `clip` was loaded from, as `models.clip.load_clip` takes it.
    Raises UserError if the source does not say its architecture.
    """
    path = Path(os.path.expanduser(source))
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        described = json.loads((path / CLIP_JSON).read_text(encoding="utf-8"))
        if (path / MERGES).exists():
            shutil.copyfile(path / MERGES, folder / MERGES)
    else:
        described = {"model_cfg": _architecture(clip, source), "preprocess_cfg": _pixels(clip)}
    # Names of Hugging Face may be places of this machine; all that they name lies in the folder.
    text = described["model_cfg"].get("text_cfg", {})
    text.update({key: "." for key in ("hf_model_name", "hf_tokenizer_name") if key in text})
    (folder / CLIP_JSON).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if "hf_model_name" in text:
        clip.model.text.config.save_pretrained(folder)
    if hasattr(clip.tokenizer, "save_pretrained"):
        clip.tokenizer.save_pretrained(folder)
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
