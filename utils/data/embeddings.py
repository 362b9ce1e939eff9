"""The mean of all image embeddings, their directions, and random samples of a feature database."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

from utils.base.errors import UserError, note, refusing
from utils.base.files import write_whole
from utils.base.finite import require_finite
from utils.config.schema import Config
from utils.data.lmdb_reader import LMDBReader, read_meta
from utils.pretrained.priors import prior_made_from

IMAGE_MEAN = "image_mean.npy"
MEAN_SCRIPT, PRIOR_SCRIPT = "preprocess_scripts/clip_encode_img.py", "train_prior.py"
BATCH = 4096  # embeddings read at a time


def write_image_mean(database: Path) -> None:
    """Write the mean of a database's normalised embeddings into its folder, `image_mean.npy`.

    The file also names the embeddings and their CLIP. A mean of these embeddings stays.
    """
    reader = LMDBReader(database)
    about = {"clip": reader.info.meta.get("encoder"), "embeddings": made_from(reader.info.meta)}
    if about["embeddings"] and mean_made_from(database / IMAGE_MEAN) == about:
        return
    total = torch.zeros(reader.info.shape, dtype=torch.float64)
    for rows in torch.arange(reader.info.length).split(BATCH):
        y = torch.from_numpy(reader.read(rows.numpy()))
        total += F.normalize(y.double(), dim=1).sum(dim=0)
    mean = (total / reader.info.length).float().numpy()

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            np.save(file, mean)
            np.save(file, np.array(json.dumps(about)))  # readers of the mean stop before it

    write_whole(database / IMAGE_MEAN, write)


def made_from(meta: Mapping[str, Any]) -> str:
    """Return an identity of embeddings by the `meta` of their database: images, CLIP, settings.

    It is empty if the contents of the images are not recorded.
    """
    if not {"content_hash", "encoder"} <= meta.keys():
        return ""
    facts = {key: value for key, value in meta.items() if key not in ("names", "source")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def mean_made_from(path: Path) -> dict[str, Any]:
    """Return the identities of the `embeddings` of a mean and of their `clip`; {} if not recorded.

    A release folder's file records none.
    """
    with contextlib.suppress(OSError, ValueError, EOFError), open(path, "rb") as file:
        np.load(file, allow_pickle=False)
        return dict(json.loads(str(np.load(file, allow_pickle=False))))
    return {}


def check_image_mean(config: Config, clip: str | None) -> None:
    """Raise UserError if `encoders.image_mean` is of another CLIP than the one of identity `clip`.

    clip: of the sentences' embeddings; None = unknown. `check_prior` says what else is checked.
    """
    path = config.encoders.image_mean
    if path is None or not (about := mean_made_from(path)):
        return
    if about["clip"] != (clip or about["clip"]) and about["clip"]:
        raise UserError(
            f"encoders.image_mean: {path} is the mean of embeddings of another CLIP "
            f"({about['clip']}) than encoders.clip ({clip}); name another file, or set "
            "encoders.image_mean=null"
        )
    _check_embeddings(config, "image_mean", path, about["embeddings"], MEAN_SCRIPT)


def check_prior(config: Config) -> None:
    """Check the embeddings that the prior at `encoders.prior` was trained on, if it is used.

    Raises UserError if it lies beside other embeddings. Prints a note if it lies elsewhere, and
    data.feat_path holds other embeddings: these may have replaced those it was trained on.
    """
    path = config.encoders.prior
    if config.sampling.freedom and path is not None and path.is_file():
        with refusing(f"encoders.prior: {path} holds no prior"):
            trained_on = prior_made_from(path)
        _check_embeddings(config, "prior", path, trained_on, PRIOR_SCRIPT)


def other_encoders(config: Config, vae: str | None, clip: str | None) -> list[str]:
    """Return a line for each training database that other weights made than those in use.

    vae, clip: identities of the networks that decode latents and embed sentences; None = unknown.
    """
    used = (
        ("encoders.vae", vae, config.data.root, "latents"),
        ("encoders.clip", clip, config.data.feat_path, "embeddings"),
    )
    return [
        f"{path}: holds {what} of {there}, but {key} is {now}; make them again with this network, "
        f"or set {key} to the one that made them"
        for key, now, path, what in used
        if path is not None and now and (there := read_meta(path).get("encoder", now)) != now
    ]


def _check_embeddings(config: Config, key: str, path: Path, made: str, script: str) -> None:
    beside = made_from(read_meta(path.parent))
    there = config.data.feat_path
    again = f"make it again: {shlex.join(['python', script, *config.words])}"
    if made and beside not in ("", made):
        raise UserError(
            f"encoders.{key}: {path} was made from other embeddings than those beside it; {again}"
        )
    if made and not beside and there and made_from(read_meta(there)) not in ("", made):
        note(
            f"encoders.{key}: {path} was made from other embeddings than {there} holds; if they "
            f"were replaced, {again}"
        )


def read_image_mean(path: Path, dim: int) -> torch.Tensor:
    """Read (dim,) float32 from a file of write_image_mean; raise a UserError if it does not fit.

    A release folder holds it as safetensors.
    """
    if not path.is_file():
        raise UserError(
            f"encoders.image_mean: {path} is not there; preprocess_scripts/clip_encode_img.py "
            f"writes {IMAGE_MEAN} beside the embeddings; or copy it there or beside the checkpoint "
            "that names it, or set encoders.image_mean=null"
        )
    with refusing(f"encoders.image_mean: {path} cannot be read"):
        is_release = path.suffix == ".safetensors"
        mean = load_file(path)["image_mean"] if is_release else np.load(path, allow_pickle=False)
    if not isinstance(mean, np.ndarray) or mean.shape != (dim,):
        raise UserError(
            f"encoders.image_mean: {path} does not hold {dim} numbers, the width of embeddings"
        )
    if mean.dtype.kind not in "fiu":
        raise UserError(f"encoders.image_mean: {path} holds {mean.dtype}, not numbers")
    require_finite({"the mean": mean}, f"encoders.image_mean: {path}", "make it again")
    return torch.from_numpy(mean.astype(np.float32))


def some_samples(reader: LMDBReader, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return the indices of random samples, each once, (min(count, length),) int64."""
    return torch.randperm(reader.info.length, generator=generator)[:count]


def read_directions(reader: LMDBReader, most: int) -> torch.Tensor:
    """Read the first embedding of each sample, scaled to unit length, (N, D) float32.

    Of more than `most` samples it reads `most` random ones, by a fixed seed.
    """
    rows = some_samples(reader, most, torch.Generator().manual_seed(0)).sort().values
    parts = [torch.from_numpy(reader.read(part.numpy())) for part in rows.split(BATCH)]
    return F.normalize(torch.cat(parts), dim=1)
