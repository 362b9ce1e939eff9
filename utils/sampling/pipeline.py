"""TextToFace as a pipeline of diffusers, with components that diffusers loads and saves."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image
from safetensors.torch import save_file

from models.autoencoder import Autoencoder
from models.clip import ClipEncoder, load_clip
from models.edm import EDMPrecond, build_denoiser
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.data.embeddings import read_image_mean
from utils.pretrained.denoisers import denoiser_arguments, in_precision
from utils.pretrained.effective_config import read_config
from utils.pretrained.encoder_copies import copy_clip, is_public_vae, read_source, write_source
from utils.pretrained.encoder_paths import NEEDED
from utils.pretrained.encoders import PRECISIONS
from utils.pretrained.hub import is_clip_name
from utils.pretrained.release import CONFIG, INDEX
from utils.sampling.generate import AMP_DTYPES
from utils.sampling.packed_code import pipeline_code
from utils.sampling.schedulers import solve_with
from utils.sampling.text_to_face import TextToFace

PIPELINE = "pipeline.py"  # the name that diffusers looks for
# Folders below those of components: from a folder that holds weights itself, diffusers downloads
# only files with names of its own.
OPEN_CLIP = "open_clip"
# Files of a release folder that a new copy of it takes over.
BESIDE = ("README.md", "LICENSE", "NOTICE.md", "requirements.txt", "samples.png")
# Names that pipelines of diffusers share, and ours.
OWN_NAMES = {"guidance_scale": "cfg_scale", "num_inference_steps": "num_steps"}


# Models of diffusers derive from both mixins, whose types for `config_name` disagree.
class Denoiser(ModelMixin, EDMPrecond, ConfigMixin):  # type: ignore[misc]
    """EDMPrecond as a model of diffusers; weights have the names of our checkpoints."""

    @register_to_config
    def __init__(self, arguments: dict[str, Any]) -> None:
        """Build it with fresh weights; `arguments`: of `models.edm.build_denoiser`."""
        built = build_denoiser(**arguments)
        EDMPrecond.__init__(self, built.model, built.sigma_data, built.student_sigmas)
        self.requires_grad_(False).eval()

    @classmethod
    def holding(cls, denoiser: EDMPrecond, config: Config, dtype: torch.dtype) -> Denoiser:
        """Return a denoiser with the weights of another one in a precision."""
        with torch.device("meta"):
            made = cls(denoiser_arguments(config))
        weights = in_precision(denoiser.state_dict(), dtype, "the network")
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
        (folder,) = place
        source = read_source(folder) or str(Path(folder) / OPEN_CLIP)
        return cls(load_clip(source), source)

    def save_pretrained(self, *place: Any, **_: Any) -> None:
        """Write a folder that `from_pretrained` reads."""
        if is_clip_name(self.source):
            write_source(Path(*place), self.source)
        else:
            copy_clip(self.encoder, self.source, Path(*place) / OPEN_CLIP)


class PublicVae(AutoencoderKL):
    """A VAE whose folder only names it; it is loaded from the hub."""

    @classmethod
    def from_pretrained(cls, *place: Any, **options: Any) -> Any:
        """Load the VAE that a folder names."""
        dtype = options.get("torch_dtype") or torch.float32
        return AutoencoderKL.from_pretrained(read_source(*place), torch_dtype=dtype)


class Settings(SchedulerMixin):
    """The configuration of a release. SchedulerMixin is the plainest part that diffusers loads.

    folder: the release folder that it came from, or None.
    """

    def __init__(self, config: Config, folder: Path | None = None) -> None:
        self.values, self.folder = config, folder

    @classmethod
    def from_pretrained(cls, *place: Any, **_: Any) -> Any:
        """Read `config.yaml` in a folder; raise UserError if it is wrong."""
        release = Path(*place).parent
        return cls(read_config(release / CONFIG), release)

    def save_pretrained(self, *place: Any, **_: Any) -> None:
        """Write `config.yaml`, and what it names beside the encoders, into a folder."""
        folder = Path(*place)
        folder.mkdir(parents=True, exist_ok=True)
        values = self.values.to_dict()
        encoders = values["encoders"]
        if not is_public_vae(encoders["vae"]):
            encoders["vae"] = "../vae"
        if not is_clip_name(encoders["clip"]):
            encoders["clip"] = f"../clip/{OPEN_CLIP}"
        for key in NEEDED:
            if key not in ("vae", "clip") and encoders[key] is not None:
                width = values["model"]["num_classes"]
                encoders[key] = f"{key}/{_copy(Path(encoders[key]), folder / key, width)}"
        for section in ("data", "eval"):
            values[section] = {key: _without_folders(v) for key, v in values[section].items()}
        config = config_from_dict(values, "the release")
        (folder / Path(CONFIG).name).write_text(config.to_yaml(), encoding="utf-8")


def _copy(file: Path, folder: Path, dim: int) -> str:
    """Copy a file that drawing needs into a folder, as safetensors; return its new name."""
    folder.mkdir(exist_ok=True)
    if not file.is_file():
        raise UserError(f"encoders: {file} is not there; copy it there, or set its key to null")
    if file.suffix == ".safetensors":
        shutil.copyfile(file, folder / file.name)
        return file.name
    save_file({"image_mean": read_image_mean(file, dim)}, folder / f"{file.stem}.safetensors")
    return f"{file.stem}.safetensors"


def _without_folders(value: Any) -> Any:
    """Return the last name of an absolute path, which means nothing elsewhere."""
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


class TextToFacePipeline(DiffusionPipeline):
    """Faces from sentences and images; calls TextToFace, and so draws its pictures.

    scheduler: takes the steps instead of our sampler, see `utils/sampling/schedulers.py`.
    """

    _optional_components = ["scheduler"]
    denoiser: Denoiser
    vae: AutoencoderKL
    clip: Clip
    settings: Settings
    scheduler: SchedulerMixin | None

    def __init__(
        self,
        denoiser: Denoiser,
        vae: AutoencoderKL,
        clip: Clip,
        settings: Settings,
        scheduler: SchedulerMixin | None = None,
    ) -> None:
        """Put components together; `DiffusionPipeline.from_pretrained` does it for a folder."""
        super().__init__()
        self.register_modules(
            denoiser=denoiser, vae=vae, clip=clip, settings=settings, scheduler=scheduler
        )
        self._made: tuple[Any, TextToFace] | None = None

    @classmethod
    def holding(cls, faces: TextToFace, dtype: torch.dtype = torch.float32) -> TextToFacePipeline:
        """Return a pipeline with the networks of a TextToFace, the denoiser in a precision."""
        config, vae = faces.config, faces.autoencoder.vae
        vae.register_to_config(scaling_factor=faces.autoencoder.scale_factor)
        return cls(
            Denoiser.holding(faces.denoiser, config, dtype),
            vae,
            Clip(faces.clip, config.encoders.clip),
            Settings(config),
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        *,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw faces.

        prompt, image: sentences and images (Pillow or paths); each is a row of pictures.
        generator: its first seed counts, as a picture has a seed of its own; a list: one for each
            picture of a row. None = the seeds from `sampling.seed` on.
        output_type: "pil", "np" ((N, H, W, 3) float32 in [0, 1]) or "pt" ((N, 3, H, W)).
        options: `guidance_scale`, `num_inference_steps`, `prompt_embeds` (N, D), `seeds`, `mix`,
            `interpolate`, `batch_size`, and all keys of the config's `sampling` section.

        Returns the pictures, ordered by row and then by seed. Raises UserError for mistakes.
        """
        options = {OWN_NAMES.get(name, name): value for name, value in options.items()}
        sources = [*_listed(prompt), *map(_image_source, _listed(image))]
        sources += list(options.pop("prompt_embeds", ()))
        seeds = options.pop("seeds", None)
        if generator is not None:
            first = [g.initial_seed() for g in _listed(generator)]
            more = range(num_images_per_prompt)
            seeds = first if len(first) > 1 else [first[0] + n for n in more]
        is_shown = not getattr(self, "_progress_bar_config", {}).get("disable", False)
        options = {"progress": is_shown, "num": num_images_per_prompt, "seeds": seeds, **options}
        images: Any = self.faces().generate(sources, **options).images
        if output_type != "pil":
            images = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
        if output_type == "pt":
            images = torch.from_numpy(images).permute(0, 3, 1, 2)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def faces(self) -> TextToFace:
        """Return the TextToFace of the components as they are now, on their device."""
        device, precision = self.denoiser.device, self.denoiser.dtype
        key = (self.denoiser, self.vae, self.clip, self.settings, self.scheduler, device, precision)
        if self._made is None or self._made[0] != key:
            config = self.settings.values
            amp = {dtype: name for name, dtype in AMP_DTYPES.items()}.get(precision, "no")
            if amp != "no":
                sampling = config.sampling.model_copy(update={"amp": amp})
                config = config.model_copy(update={"sampling": sampling})
            dtype = PRECISIONS[config.encoders.precision]
            vae_dtype = dtype if self.vae.dtype == torch.float32 else self.vae.dtype
            scale, memory = self.vae.config["scaling_factor"], config.encoders.vae_memory
            vae = Autoencoder(self.vae, scale, device, vae_dtype, memory)
            clip = ClipEncoder(self.clip.towers, self.clip.encoder.tokenizer, device, dtype)
            solve = None if self.scheduler is None else solve_with(self.scheduler)
            source = str(self.config.get("_name_or_path", "pipeline"))
            self._made = key, TextToFace(self.denoiser, vae, clip, config, source, solve)
        return self._made[1]

    def save_pretrained(self, *place: Any, **options: Any) -> None:
        """Write a release folder; it carries the code, and loads without this project."""
        if options.pop("push_to_hub", False):
            raise UserError("save_pretrained: push with push_to_hub(owner/name) instead")
        folder = Path(*place)
        self.register_modules(scheduler=self.scheduler)  # diffusers misses one that replaces None
        super().save_pretrained(str(folder), **options)
        package, code = pipeline_code()
        (folder / PIPELINE).write_text(code, encoding="utf-8")
        parts = {"denoiser": Denoiser, "clip": Clip, "settings": Settings}
        named = self.settings.values.encoders.vae
        if is_public_vae(named):
            shutil.rmtree(folder / "vae")
            write_source(folder / "vae", named)
            parts["vae"] = PublicVae
        for file in folder.glob("*/*config.json"):
            _change_json(file, {"_name_or_path": None})  # a place of this machine
        index: dict[str, Any] = {}
        for name, part in parts.items():
            index[name] = [f"text_to_face_{name}", part.__name__]
            here = f"from {package}.utils.sampling.pipeline import {part.__name__}  # in {PIPELINE}"
            (folder / name / f"text_to_face_{name}.py").write_text(f"{here}\n", encoding="utf-8")
        index["_class_name"] = [Path(PIPELINE).stem, type(self).__name__]
        index["_name_or_path"] = None
        _change_json(folder / INDEX, index)
        for name in BESIDE:
            there = self.settings.folder and self.settings.folder / name
            if there and there.exists() and not (folder / name).exists():
                shutil.copyfile(there, folder / name)

    def push_to_hub(self, *name: Any, **options: Any) -> str:
        """Upload the release folder to the Hugging Face hub, model card included; return its place.

        name: `owner/name`, which is made if it is not there.
        options: `private`, and those of `huggingface_hub.upload_folder`. The token is that of
            `hf auth login` or of HF_TOKEN; it is neither printed nor stored.
        """
        private, token = options.pop("private", None), options.get("token")
        made = huggingface_hub.create_repo(*name, private=private, token=token, exist_ok=True)
        options = {"commit_message": "Upload the model", **options, "repo_id": made.repo_id}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(huggingface_hub.upload_folder(folder_path=folder, **options))


def _change_json(file: Path, changes: Mapping[str, Any]) -> None:
    """Set keys of a JSON file; None removes a key."""
    values = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in values.items() if key not in changes or value is not None}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _listed(value: Any) -> list[Any]:
    """Return a list as it is, None as an empty one, and any other value in a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _image_source(image: Any) -> Path | Image.Image:
    """Return an image as TextToFace takes it: a text is a path."""
    return Path(image) if isinstance(image, str) else image
