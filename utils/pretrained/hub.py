"""The Hugging Face hub: which of its files are cached here, and if it answers at all.

Without network, the libraries that fetch from the hub wait and retry for up to a minute. This
module asks the hub once before they start, and waits two seconds at most.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import logging

from models.encoder_files import hub_place
from models.weights import looks_like_path
from utils.base.errors import UserError, one_line

PATIENCE = 2.0  # seconds until a hub that does not answer counts as unreachable
VAE_CONFIG = "config.json"
VAE_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
NO_DATA = ["*.py", "*.pt", "*.bin", "*.onnx"]  # files that a released network can do without
# Places of the usual CLIP in open_clip's own list, which takes seconds to import.
OPENAI_CLIP = dict.fromkeys(
    ("ViT-B-32:openai", "ViT-B-32-quickgelu:openai"), "timm/vit_base_patch32_clip_224.openai"
)


def hub_url() -> str:
    """Return the address of the Hugging Face hub, or of the mirror in HF_ENDPOINT."""
    return constants.ENDPOINT


@functools.cache
def answers(url: str, patience: float = PATIENCE) -> bool:
    """Return True if a server answers at `url`, with any status, within `patience` seconds.

    Proxies of the environment are used. Each address is asked once in a process.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    found: list[bool] = []
    # A thread, because no timeout limits the look-up of the host's name.
    asking = threading.Thread(target=lambda: found.append(_ask(url, patience)), daemon=True)
    asking.start()
    asking.join(patience)
    return found == [True]


def _ask(url: str, patience: float) -> bool:
    """Return True if any answer comes, an error of the server or of its certificate included."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=patience):
            return True
    except urllib.error.HTTPError as answer:
        return answer.code not in (502, 503, 504)  # a proxy says that it finds no server
    except urllib.error.URLError as fault:
        return isinstance(fault.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


def cached_file(repository: str, name: str) -> Path | None:
    """Return a hub's file if it is in the cache, else None."""
    with contextlib.suppress(ValueError):  # the repository's name is none
        path = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path)
    return None


def fetched_file(repository: str, name: str) -> Path | None:
    """Return a small file of a hub, from the cache or fetched now; None if neither works."""
    if (file := cached_file(repository, name)) is not None or not answers(hub_url()):
        return file
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except (OSError, ValueError, RuntimeError):  # the library that needs all files says why
        return None


def fetched_release(repository: str) -> Path:
    """Return the folder of a released network of the hub, from the cache or fetched now.

    Only data are fetched, no code and no pickles. Raises UserError if the hub does not have it, or
    does not answer while the cache does not hold it.
    """
    try:
        with offline_if_silent():
            folder = huggingface_hub.snapshot_download(repository, ignore_patterns=NO_DATA)
    except RepositoryNotFoundError as fault:
        raise UserError(
            f"{repository}: is neither a file or folder here nor a model on {hub_url()}; check the "
            "name, and log in (hf auth login) if the model is private"
        ) from fault
    except (OSError, ValueError, RuntimeError) as fault:
        silent = "" if answers(hub_url()) else f", and {hub_url()} does not answer"
        reason = f" ({one_line(fault)})" if not silent else ""
        raise UserError(
            f"{repository}: is neither a file or folder here nor complete in the hub's cache"
            f"{silent}{reason}; name a local file or folder, or try again with network"
        ) from fault
    return Path(folder)


def cache_folder(repository: str) -> Path:
    """Return the folder of a repository in the hub's cache."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def vae_file(source: str, name: str) -> tuple[str, str]:
    """Return repository and file of a VAE on the hub, `owner/name` or `owner/name/subfolder`."""
    repository, subfolder = hub_place(source)
    return repository, f"{subfolder}/{name}" if subfolder else name


def is_vae_name(source: str) -> bool:
    """Return True if a VAE is a name on the hub, no file or folder here."""
    return not looks_like_path(source) and not Path(source).exists()


def vae_is_cached(source: str) -> bool:
    """Return True if the cache holds a VAE of the hub."""
    names = (VAE_CONFIG, *VAE_WEIGHTS)
    is_there = [cached_file(*vae_file(source, name)) is not None for name in names]
    return is_there[0] and any(is_there[1:])


def is_clip_name(source: str) -> bool:
    """Return True if `source` is a `name:tag` whose weights `open_clip` fetches from the hub."""
    return bool(clip_place(source)[0])


def clip_is_cached(source: str) -> bool:
    """Return True if the cache holds the weights of a `name:tag`."""
    repository, file = clip_place(source)
    names = (file, f"{file.rpartition('.')[0]}.safetensors") if file else CLIP_WEIGHTS
    return any(cached_file(repository, name) is not None for name in names)


def clip_place(source: str) -> tuple[str, str]:
    """Return repository and file of the weights of a `name:tag`; both are empty for other sources.

    An empty file alone means one of CLIP_WEIGHTS.
    """
    name, colon, tag = source.partition(":")
    if not colon or source in OPENAI_CLIP:
        return OPENAI_CLIP.get(source, ""), ""
    import open_clip  # imported here: slow, and neither the usual CLIP nor a folder needs it

    place = str((open_clip.get_pretrained_cfg(name, tag) or {}).get("hf_hub") or "")
    repository, _, file = place.rpartition("/")
    return repository, file


@contextlib.contextmanager
def offline_if_silent() -> Iterator[None]:
    """Let the hub's library read its cache at once, without a warning, if the hub is silent."""
    before, verbosity = constants.HF_HUB_OFFLINE, logging.get_verbosity()
    if not answers(hub_url()):
        # The library reads this at each request, but its environment variable at import only.
        constants.HF_HUB_OFFLINE = True
        logging.set_verbosity_error()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.set_verbosity(verbosity)
