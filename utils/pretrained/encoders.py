"""Load the frozen networks that a config names: CLIP and VAE.

The modules of both import large libraries, for seconds. They are imported when a network is loaded,
so that help texts and mistakes in the settings do not wait for them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.encoder_files import embedding_width, hub_place, latent_layout
from utils.base.errors import UserError, note
from utils.base.finite import OVERFLOW, require_finite
from utils.base.script import is_script
from utils.config.schema import Config
from utils.config.sections import Encoders
from utils.pretrained.assets import advice, local_file, offline_advice
from utils.pretrained.hub import (
    VAE_CONFIG,
    answers,
    cached_file,
    clip_is_cached,
    clip_place,
    fetched_file,
    hub_url,
    is_clip_name,
    is_vae_name,
    offline_if_silent,
    vae_file,
    vae_is_cached,
)
from utils.pretrained.latent_statistics import normalise

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder
    from models.clip import ClipEncoder

ENCODERS = ("encoders.vae", "encoders.clip")
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def usable_device(name: str) -> torch.device:
    """Return the device that `--device` names; raise UserError if it cannot be used."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as fault:
        raise UserError(f"--device {name}: {str(fault).splitlines()[0]}") from fault


def require_encoders(
    encoders: Encoders, keys: Sequence[str] = ("encoders.vae", "encoders.clip")
) -> None:
    """Raise UserError, in one line, if the hub is needed for one of these keys and is silent.

    The line names each file to copy and its place. Faults of local files are found when they are
    loaded.
    """
    missing = {}
    if "encoders.vae" in keys and is_vae_name(encoders.vae) and not vae_is_cached(encoders.vae):
        missing["encoders.vae"] = (encoders.vae, hub_place(encoders.vae)[0])
    is_missing = is_clip_name(encoders.clip) and local_file(encoders.clip) is None
    if "encoders.clip" in keys and is_missing and not clip_is_cached(encoders.clip):
        missing["encoders.clip"] = (encoders.clip, clip_place(encoders.clip)[0])
    if missing and not answers(hub_url()):
        names = " and ".join(f"{key} ({source})" for key, (source, _) in missing.items())
        raise UserError(
            f"{names}: not on this machine, and {hub_url()} does not answer; "
            f"{offline_advice(missing)}"
        )


def config_embedding_width(encoders: Encoders) -> int | None:
    """Return D of the configured CLIP's embeddings without loading it; None if unknown."""
    source = encoders.clip
    return embedding_width(local_file(source) or source)


def config_latent_layout(encoders: Encoders, may_fetch: bool) -> tuple[int, int] | None:
    """Return (channels, pixels per latent along a side) of the configured VAE without loading it.

    A VAE of the hub is known if its JSON is in the cache, or, with `may_fetch`, if the hub answers.
    Returns None if it is unknown.
    """
    source = encoders.vae
    if not is_vae_name(source):
        return latent_layout(Path(source).expanduser())
    file = (fetched_file if may_fetch else cached_file)(*vae_file(source, VAE_CONFIG))
    return None if file is None else latent_layout(file)


def load_config_clip(encoders: Encoders, device: torch.device | str = "cpu") -> ClipEncoder:
    """Load the CLIP at `encoders.clip`; raise UserError if it cannot be loaded.

    OpenAI's weights are read from the file of `download_assets.py` if it is there, else from the
    hub.
    """
    source = encoders.clip
    dtype = PRECISIONS[encoders.precision]
    if file := local_file(source):
        note(f"encoders.clip: {source} is read from {file}")
    require_encoders(encoders, ["encoders.clip"])
    # open_clip imports two packages for few CLIPs, and takes a second for it. A script shares its
    # process with nobody, so that it can wait; models/clip.py imports them for those CLIPs.
    with _hidden("timm", "transformers") if is_script() else contextlib.nullcontext():
        from models.clip import load_clip  # imported here: it imports open_clip and torchvision

    is_on_hub = file is None and is_clip_name(source)
    from_hub = offline_if_silent() if is_on_hub else contextlib.nullcontext()
    try:
        with from_hub:
            clip = load_clip(file or source, device=device, dtype=dtype)
    except (FileNotFoundError, ValueError) as fault:
        raise UserError(f"encoders.clip: {fault}{_remedy(fault, 'clip', source)}") from fault
    require_finite(dict(clip.model.named_parameters()), f"encoders.clip: {source}", OVERFLOW)
    return clip


@contextlib.contextmanager
def _hidden(*packages: str) -> Iterator[None]:
    """Let packages look as if they were not installed, unless they are imported already."""
    hidden: dict[str, Any] = dict.fromkeys({*packages} - sys.modules.keys())
    sys.modules.update(hidden)  # a None there makes an import an ImportError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _remedy(fault: Exception, key: str, source: str) -> str:
    """Return the end of a message about an encoder that cannot be loaded."""
    if known := advice(source):
        return known
    if not isinstance(fault, FileNotFoundError):
        return ""
    return f"; copy it there or beside the checkpoint that names it, or set encoders.{key}=…"


def load_config_preview(config: Config, vae: Autoencoder) -> Autoencoder | None:
    """Load the tiny autoencoder at `sampling.preview`, which decodes what `vae` decodes, or None.

    Raises UserError if it cannot be loaded, or if its latents are others.
    """
    if (source := config.sampling.preview) is None:
        return None
    from models.autoencoder import load_autoencoder  # imported here: messages need not wait

    from_hub = offline_if_silent() if is_vae_name(source) else contextlib.nullcontext()
    try:
        with from_hub:
            preview = load_autoencoder(source, device=vae.device, dtype=vae.dtype)
    except (FileNotFoundError, ValueError) as fault:
        raise UserError(f"sampling.preview: {fault}; or set sampling.preview=null") from fault
    if preview.has_posterior:
        raise UserError(
            f"sampling.preview: {source} is no tiny autoencoder; name one, or set it to null"
        )
    there, here = ((v.latent_channels, v.downsample) for v in (preview, vae))
    if there != here:
        raise UserError(
            f"sampling.preview: {source} has latents of {there[0]} channels, {there[1]} times "
            f"down, and encoders.vae has {here[0]}, {here[1]} times down; name the tiny "
            "autoencoder of this VAE, or set it to null"
        )
    preview.take_latents_of(vae)
    return preview


def load_config_autoencoder(config: Config, device: torch.device | str = "cpu") -> Autoencoder:
    """Load the VAE at `encoders.vae`, whose scaled latents are as the network sees them.

    Raises UserError if that fails, or the model needs another VAE.
    """
    encoders, model = config.encoders, config.model
    require_encoders(encoders, ["encoders.vae"])
    from models.autoencoder import load_autoencoder  # imported here: messages need not wait

    from_hub = offline_if_silent() if is_vae_name(encoders.vae) else contextlib.nullcontext()
    try:
        with from_hub:
            vae = load_autoencoder(
                encoders.vae,
                scale_factor=encoders.scale_factor,
                device=device,
                dtype=PRECISIONS[encoders.precision],
                memory=encoders.vae_memory,
            )
    except (FileNotFoundError, ValueError) as fault:
        remedy = _remedy(fault, "vae", encoders.vae)
        raise UserError(f"encoders.vae: {fault}{remedy}") from fault
    if vae.latent_channels != model.in_channels:
        raise UserError(
            f"encoders.vae: {encoders.vae} has latents of {vae.latent_channels} channels, "
            f"but model.in_channels is {model.in_channels}"
        )
    require_finite(dict(vae.vae.named_parameters()), f"encoders.vae: {encoders.vae}", OVERFLOW)
    normalise(vae, encoders)
    return vae
