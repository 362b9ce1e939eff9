"""Reference files (npz): statistics of the images that generated images are compared with.

pytorch-fid writes and reads `mu` and `sigma`. Our files add how they were made, `mu_s` and
`sigma_s` for sFID (the names in ADM's reference batches), and on request the features of at most
SAMPLE_LIMIT images, for kernel and manifold metrics. ADM's files are read too.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.base.errors import UserError, note, refusing
from utils.base.files import write_whole
from utils.base.finite import require_finite
from utils.data.source_files import as_bytes, from_bytes

ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "features")
SCRIPT = "python preprocess_scripts/fid_ref.py"
FACTS = {"n": int, "network": str, "resolution": int, "source": str, "content": str}
FILES = "files"  # entry with a record of each image file, (N, 32) uint8; see source_files.py


@dataclass(frozen=True)
class Reference:
    """Statistics of a set of images; None where a file lacks an entry."""

    mu: np.ndarray  # (D,) float64
    sigma: np.ndarray  # (D, D) float64
    n: int | None = None  # images
    network: str | None = None  # FeatureNetwork.name
    resolution: int | None = None  # pixels, side of the images; 0 = each has its own size
    source: str | None = None  # hash of the images' names
    content: str | None = None  # hash of the images' contents
    files: np.ndarray | None = None  # (N,) records of the image files
    mu_s: np.ndarray | None = None  # (2023,) mean of Inception's spatial features
    sigma_s: np.ndarray | None = None  # (2023, 2023) their covariance
    features: np.ndarray | None = None  # (M, D) float32, M at most SAMPLE_LIMIT
    path: Path | None = None  # file that it was read from, for messages

    @property
    def identity(self) -> str:
        """Return what identifies the images: a hash, or else the file's path."""
        return self.content or self.source or str(self.path)


def save_stats(path: str | Path, reference: Reference) -> None:
    """Write a reference to an npz file, which pytorch-fid can read too.

    Raises UserError if a statistic is not finite.
    """
    arrays = {key: getattr(reference, key) for key in ARRAYS if getattr(reference, key) is not None}
    require_finite(arrays, path, "the weights of the feature network may be damaged")
    fields = {key: getattr(reference, key) for key in (*ARRAYS, *FACTS)}
    values = {key: value for key, value in fields.items() if value is not None}
    if reference.files is not None:
        values[FILES] = as_bytes(reference.files)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **values)

    write_whole(Path(path), write)


def load_stats(path: str | Path, words: Sequence[str] = ()) -> Reference:
    """Read a reference file: ours, pytorch-fid's (`mu`, `sigma`) or ADM's (`mu_s`, `sigma_s` too).

    `words`: of the config (`Config.words`), for the command that makes the file.

    Raises UserError if the file is missing, damaged or of another kind.
    """
    try:
        with (
            refusing(f"{path}: not readable as reference statistics"),
            np.load(path, allow_pickle=False) as file,
        ):
            if not {"mu", "sigma"} <= set(file.files):
                hint = ""
                if "arr_0" in file.files:
                    hint = f"; make one of its images with {SCRIPT} --images {path} --out X.npz"
                raise UserError(f"{path}: holds no 'mu' and 'sigma', so it is no reference{hint}")
            arrays = {key: file[key] for key in ARRAYS if key in file.files}
            records = file[FILES] if FILES in file.files else None
            facts = {key: kind(file[key]) for key, kind in FACTS.items() if key in file.files}
            statistics = {k: v.astype(np.float64) for k, v in arrays.items() if k != "features"}
    except FileNotFoundError:
        raise UserError(
            f"{path}: there are no reference statistics; make them with "
            f"{shlex.join([*SCRIPT.split(), *words])}, or set eval.ref_path"
        ) from None
    require_finite(arrays, path, f"make it again with {SCRIPT}")
    shapes = {key: array.shape for key, array in statistics.items()}
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        mu, sigma = shapes.get(mean), shapes.get(covariance)
        if mu is not None and (len(mu) != 1 or sigma != 2 * mu):
            raise UserError(
                f"{path}: {mean} {mu} and {covariance} {sigma} are not of one dimension"
            )
    features, length = arrays.get("features"), len(arrays["mu"])
    if features is not None and (features.ndim != 2 or features.shape[1] != length):
        raise UserError(f"{path}: features {features.shape} do not go with mu {arrays['mu'].shape}")
    files = None if records is None else from_bytes(records)
    return Reference(**statistics, **facts, files=files, features=features, path=Path(path))


def half_of(reference: Reference, which: int) -> Reference:
    """Return the reference of every second image, from number `which` on: 0 or 1.

    Raises UserError if the reference holds no features, or those of fewer than four images.
    """
    features = reference.features
    if features is None or len(features) < 4:
        held = "no features" if features is None else f"features of {len(features)} images"
        raise UserError(
            f"{reference.path}: holds {held} and cannot be halved: make it again with "
            f"{SCRIPT} --features, of at least four images"
        )
    rows = features[which::2]
    values = rows.astype(np.float64)
    return replace(
        reference,
        mu=values.mean(axis=0),
        sigma=np.cov(values, rowvar=False),
        n=len(rows),
        features=rows,
        content=f"{reference.identity}, every second image from {which}",
        files=None,
        mu_s=None,
        sigma_s=None,
    )


def check_comparable(reference: Reference, network: str, resolution: int | None) -> None:
    """Raise UserError if the reference is of another feature network or another image size.

    A file that does not state them, for example of pytorch-fid, passes. `resolution`: side in
    pixels, None = any.
    """
    again = f"make it again with {SCRIPT}"
    if reference.network not in (None, network):
        raise UserError(
            f"{reference.path}: features are from '{reference.network}', those of the images from "
            f"'{network}', so their metrics cannot be compared: {again}, or set "
            "eval.feature_network"
        )
    if resolution and reference.resolution not in (None, resolution):
        side = f"{reference.resolution} pixels wide" if reference.resolution else "of any size"
        raise UserError(
            f"{reference.path}: images are {side} but data.resolution is "
            f"{resolution}, so their metrics cannot be compared: {again}"
        )
    if reference.network is None and reference.mu_s is not None and network == "inception":
        note(
            f"{reference.path}: seems to be ADM's, whose evaluator resizes as TensorFlow does; "
            "eval.feature_network=inception-tf gives metrics like its own"
        )


def check_dimension(reference: Reference, dimension: int) -> None:
    """Raise UserError if features of `dimension` numbers do not go with the reference."""
    if len(reference.mu) != dimension:
        raise UserError(
            f"{reference.path}: the reference has {len(reference.mu)} dimensions, the features "
            f"{dimension}; they come from different networks"
        )
