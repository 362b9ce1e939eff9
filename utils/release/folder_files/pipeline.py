"""Loads this model with diffusers.

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    pipe("a person with long red hair").images[0]

The code of the model lies in `code/`. This file is there twice: as `pipeline.py`, and in the folder
of each component as `text_to_face.py`. diffusers copies it elsewhere before it runs it, so that
only the folder of a component tells where `code/` is.
"""

import hashlib
import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin


def import_code(folder: Path) -> Any:
    """Import `code/` as a package whose name depends on its place, and return its pipeline module.

    So two releases can be used in one program, each with its own code.
    """
    package = "text_to_face_" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    if package not in sys.modules:
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[package] = module_from_spec(spec)
    return importlib.import_module(f"{package}.utils.release.pipeline")


class Component(ModelMixin):
    """A folder of the release: denoiser, CLIP, settings, code, or a VAE that is only named."""

    @classmethod
    def from_pretrained(cls, *place: Any, **options: Any) -> Any:
        """Load the component in a folder, whose name is the component's."""
        folder = Path(*place).absolute()
        code = import_code(folder.parent / "code")
        if folder.name == "code":
            return code
        return code.COMPONENTS[folder.name].from_pretrained(folder, **options)


class TextToFacePipeline(DiffusionPipeline):
    """Stands for the class of this name in `code/utils/release/pipeline.py`."""

    _optional_components = ["scheduler"]

    # diffusers reads the names of the components here.
    def __init__(
        self, denoiser: Any, vae: Any, clip: Any, settings: Any, code: Any, scheduler: Any = None
    ) -> None:
        """Never run: `__new__` returns an object of the other class."""

    def __new__(cls, code: Any, **components: Any) -> Any:
        """Return the pipeline that `code/` makes of the components."""
        return code.TextToFacePipeline(**components)
