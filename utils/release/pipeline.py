"""TextToFace as a pipeline of diffusers, which is saved as a release folder and loaded from it."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image

from models.autoencoder import Autoencoder
from models.clip import ClipEncoder
from utils.base.errors import UserError
from utils.pretrained.adapters import with_adapters
from utils.pretrained.effective_config import INDEX
from utils.pretrained.encoders import PRECISIONS
from utils.pretrained.hub import is_vae_name
from utils.pretrained.latent_statistics import normalise
from utils.release.components import (
    COMPONENTS,
    Clip,
    Denoiser,
    Settings,
    TinyVae,
    as_model,
    as_network,
    write_source,
)
from utils.release.schedulers import solve_with
from utils.sampling.editing import Edit
from utils.sampling.generate import AMP_DTYPES
from utils.sampling.text_to_face import TextToFace

__all__ = ["COMPONENTS", "TextToFacePipeline"]

ROOT = Path(__file__).resolve().parents[2]  # the project, or `code/` of a release folder
# The code that a release folder carries: what this file stands on.
ROOMS = (
    "models", "utils", "utils/base", "utils/config", "utils/data", "utils/pretrained",
    "utils/sampling", "utils/release", "utils/release/folder_files",
)  # fmt: skip
EXPORT = (
    "folder.py",
    "card.py",
    "adapter.py",
)  # they stand on further rooms, and only make a release folder
LOADER = "text_to_face"  # module in the folder of each component
# Files of a release folder that a new copy of it takes over.
BESIDE = ("README.md", "LICENSE", "NOTICE.md", "requirements.txt", "samples.png")
# Names of diffusers' pipelines -> ours.
OWN_NAMES = {
    "guidance_scale": "cfg_scale",
    "num_inference_steps": "num_steps",
    "negative_prompt": "negative",
    "mask_image": "mask",
}
# Arguments that make an edit of `image`.
EDITS = {field.name for field in fields(Edit)} - {"image", "prompts", "interpolate"}


class TextToFacePipeline(DiffusionPipeline):
    """Faces from sentences and images; calls TextToFace, and so gives its images.

    scheduler: takes the steps instead of our sampler, see `utils/release/schedulers.py`.
    """

    _optional_components = ["scheduler"]
    denoiser: Denoiser
    vae: AutoencoderKL | TinyVae
    clip: Clip
    settings: Settings
    scheduler: SchedulerMixin | None

    def __init__(
        self,
        denoiser: Denoiser,
        vae: AutoencoderKL | TinyVae,
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
        self._base: dict[str, torch.Tensor] = {}  # the weights that adapters have changed

    @classmethod
    def holding(cls, faces: TextToFace, dtype: torch.dtype = torch.float32) -> TextToFacePipeline:
        """Return a pipeline with the networks of a TextToFace, the denoiser in a precision."""
        config, vae = faces.config, as_model(faces.autoencoder.vae)
        vae.register_to_config(scaling_factor=faces.autoencoder.scale_factor)
        torch.nn.Module.to(vae, faces.device, faces.autoencoder.dtype)  # its own warns of half
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
        """Generate faces.

        prompt, image: sentences and images (Pillow or paths); each is a row of images. With
            `strength`, `mask_image` or another field of `Edit` the one image is edited, and prompts
            and `prompt_embeds` replace its own embedding (docs/editing.md).
        generator: its first seed counts, as an image has a seed of its own; a list: one for each
            image of a row. None = the seeds from `sampling.seed` on.
        output_type: "pil", "np" ((N, H, W, 3) float32 in [0, 1]) or "pt" ((N, 3, H, W)).
        options: `guidance_scale`, `num_inference_steps`, `negative_prompt` (one sentence),
            `prompt_embeds` (N, D), `seeds`, `mix`, `interpolate`, `batch_size`, and all keys of the
            config's `sampling` section.

        Returns the images, ordered by row and then by seed. Raises UserError for mistakes.
        """
        options = {OWN_NAMES.get(name, name): value for name, value in options.items()}
        edits = {name: options.pop(name) for name in EDITS & options.keys()}
        if "mask" in edits:
            edits["mask"] = _image_source(edits["mask"])
        images_given = list(map(_image_source, _listed(image)))
        prompts, embeddings = _listed(prompt), list(options.pop("prompt_embeds", ()))
        seeds = options.pop("seeds", None)
        if generator is not None:
            first = [g.initial_seed() for g in _listed(generator)]
            more = range(num_images_per_prompt)
            seeds = first if len(first) > 1 else [first[0] + n for n in more]
        is_shown = not getattr(self, "_progress_bar_config", {}).get("disable", False)
        options = {"progress": is_shown, "num": num_images_per_prompt, "seeds": seeds, **options}
        faces = self.faces()
        if edits:
            edit = Edit.of(images_given, [*prompts, *embeddings], **edits)
            generation = faces.edit(**vars(edit), **options)
        else:
            generation = faces.generate([*prompts, *images_given, *embeddings], **options)
        images: Any = generation.images
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
            vae = Autoencoder(as_network(self.vae), scale, device, vae_dtype, memory)
            normalise(vae, config.encoders)
            clip = ClipEncoder(self.clip.towers, self.clip.encoder.tokenizer, device, dtype)
            solve = None if self.scheduler is None else solve_with(self.scheduler)
            source = str(self.config.get("_name_or_path", "pipeline"))
            self._made = key, TextToFace(self.denoiser, vae, clip, config, source, solve)
        return self._made[1]

    def load_adapters(self, *files: str | Path) -> None:
        """Put adapters into the denoiser in place of those it holds; without any, it is the base.

        files: `PATH` or `PATH:AMOUNT` each, of --export_adapter.
        Raises UserError if one was trained beside another network.
        """
        network = self.denoiser
        network.load_state_dict(self._base, strict=False)
        weights, self._base = network.state_dict(), {}
        changed = {
            name: tensor
            for name, tensor in with_adapters(weights, files, "the pipeline's network").items()
            if tensor is not weights[name]
        }
        self._base = {name: weights[name].clone() for name in changed}
        network.load_state_dict(changed, strict=False)
        self._made = None
        network.adapters = tuple(map(str, files))

    def save_pretrained(self, *place: Any, **options: Any) -> None:
        """Write a release folder; it carries the code, and loads without this project.

        options: those of `save_pretrained` of the models of diffusers.
        """
        if options.pop("push_to_hub", False):
            raise UserError("save_pretrained: push with push_to_hub(owner/name) instead")
        folder = Path(*place)
        self.denoiser.save_pretrained(folder / "denoiser", **options)
        self.clip.save_pretrained(folder / "clip")
        self.settings.save_pretrained(folder / "settings")
        index: dict[str, Any] = {
            "_class_name": ["pipeline", type(self).__name__],
            "_diffusers_version": diffusers.__version__,
            "scheduler": [None, None],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        if self.scheduler is not None:
            self.scheduler.save_pretrained(folder / "scheduler")
            index["scheduler"] = ["diffusers", type(self.scheduler).__name__]
        ours = ["denoiser", "clip", "settings", "code"]
        if is_vae_name(vae := self.settings.values.encoders.vae):
            write_source(folder / "vae", vae)
            ours.append("vae")
        else:
            self.vae.save_pretrained(folder / "vae", **options)
            if isinstance(self.vae, TinyVae):
                ours.append("vae")
        for file in folder.glob("*/config.json"):
            described = json.loads(file.read_text(encoding="utf-8"))
            described.pop("_name_or_path", None)  # a place of this machine
            _write_json(file, described)
        copy_code(folder / "code")
        files = Path(__file__).with_name("folder_files")
        for name in ours:
            index[name] = [LOADER, "Component"]
            shutil.copyfile(files / "pipeline.py", folder / name / f"{LOADER}.py")
        for name in ("pipeline.py", "app.py"):
            shutil.copyfile(files / name, folder / name)
        _write_json(folder / INDEX, index)
        for name in BESIDE:
            there = self.settings.folder and self.settings.folder / name
            if there and there.exists() and not (folder / name).exists():
                shutil.copyfile(there, folder / name)

    def push_to_hub(self, *name: Any, **options: Any) -> str:
        """Upload the release folder to the Hugging Face hub, model card included; return its place.

        name: `owner/name`, which is made if it is not there.
        options: `private`, and those of `huggingface_hub.upload_folder`; with `repo_type="space"`
            the hub runs `app.py` of the folder as a page. The token is that of `hf auth login` or
            of HF_TOKEN; it is neither printed nor stored.
        """
        private, kind = options.pop("private", None), options.get("repo_type")
        made = huggingface_hub.create_repo(
            *name,
            private=private,
            token=options.get("token"),
            repo_type=kind,
            space_sdk="gradio" if kind == "space" else None,
            exist_ok=True,
        )
        options = {"commit_message": "Upload the model", **options, "repo_id": made.repo_id}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(huggingface_hub.upload_folder(folder_path=folder, **options))


def copy_code(folder: Path) -> None:
    """Copy the code that the pipeline needs; imports between its files become relative ones.

    So the code has no name of its own, and does not meet another `utils` or `models`.
    """
    for room in ROOMS:
        (folder / room).mkdir(parents=True, exist_ok=True)
        up = "." * (room.count("/") + 2)
        for file in sorted((ROOT / room).glob("*.py")):
            if room == "utils/release" and file.name in EXPORT:
                continue
            text = file.read_text(encoding="utf-8")
            for top in ("models", "utils"):
                text = text.replace(f"from {top}.", f"from {up}{top}.")
            (folder / room / file.name).write_text(text, encoding="utf-8")


def _write_json(file: Path, values: dict[str, Any]) -> None:
    """Write indented JSON."""
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _listed(value: Any) -> list[Any]:
    """Return a list as it is, None as an empty one, and any other value in a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _image_source(image: Any) -> Path | Image.Image:
    """Return an image as TextToFace takes it: a text is a path."""
    return Path(image) if isinstance(image, str) else image
