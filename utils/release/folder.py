"""Export of a trained network as a release folder: for diffusers, the hub, and this project."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.base.errors import UserError
from utils.base.files import write_folder_whole
from utils.config.schema import Config
from utils.config.sections import Encoders
from utils.pretrained.encoder_paths import PROJECT
from utils.release.card import model_card, read_run
from utils.sampling.conditions import captions_of
from utils.sampling.text_to_face import TextToFace

PROMPTS = (
    "a smiling person with glasses",
    "someone with long dark hair",
    "an old man with a beard",
)
IMAGES = 4  # of each prompt, in the sample grid
GRID = "samples.png"
MORE_PACKAGES = "# Beyond generating images"  # line of requirements.txt


def export_folder(
    checkpoint: Path,
    out: Path,
    overrides: Sequence[str] = (),
    device: str | None = None,
    adapters: Sequence[str | Path] = (),
) -> None:
    """Write a release folder of a checkpoint's EMA weights (float16), complete or not at all.

    It holds the network, its encoders or their public names, the settings with `overrides`, the
    code, a model card and samples: safetensors, text and PNG only.
    adapters: of the network, see `load_denoiser`.
    Raises UserError if `out` is there already, or if the checkpoint or an encoder is not usable.
    """
    from utils.release.pipeline import TextToFacePipeline  # imported here: it imports diffusers

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--export {out}: is there already; delete it, or name another folder")
    faces = TextToFace.load(checkpoint, overrides=overrides, device=device, adapters=adapters)
    prompts = sample_prompts(faces.config)
    run, notice = read_run(checkpoint), has_demo_parts(faces.config.encoders)

    def write(folder: Path) -> None:
        TextToFacePipeline.holding(faces, torch.float16).save_pretrained(folder)
        shutil.copyfile(PROJECT / "LICENSE", folder / "LICENSE")
        if notice:
            shutil.copyfile(PROJECT / "NOTICE.md", folder / "NOTICE.md")
        packages = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
        needed = [line for line in packages.split(MORE_PACKAGES)[0].splitlines() if line[0] != "#"]
        (folder / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")
        # The release itself generates the samples, from its weights in float16.
        released = TextToFace.load(folder, device=device)
        released.source = out.name
        released.generate(prompts, num=IMAGES, progress=True).save_grid(folder / GRID)
        card = model_card(out.name, faces, run, prompts, GRID, notice)
        (folder / "README.md").write_text(card, encoding="utf-8")

    write_folder_whole(out, write)


def has_demo_parts(encoders: Encoders) -> bool:
    """Return True if an encoder is one of the demo's, whose terms stand in NOTICE.md."""
    places = [Path(encoders.vae).absolute(), Path(encoders.clip).absolute()]
    return any(place.is_relative_to(PROJECT / "assets" / "demo") for place in places)


def sample_prompts(config: Config) -> list[str]:
    """Return the prompts of the sample grid: captions of the first test images, if they are there.

    Otherwise they are three usual ones.
    """
    firsts = torch.tensor([(image, 0) for image in range(len(PROMPTS))])
    try:
        captions = captions_of(config, None, firsts)
    except (UserError, IndexError):  # the test images are on another machine, or too few
        captions = None
    return list(captions or PROMPTS)
