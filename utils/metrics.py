"""Figures of merit of generated images, in three steps: features -> statistics -> figure.

A feature network is any object with a `.name` and a call `uint8 (B, 3, H, W) -> (B, D)`; it runs
once per image set. `FeatureStats` gathers its features in memory that does not grow with their
number, and the functions below turn statistics into figures. Reference statistics live in npz files
that `pytorch-fid` reads, and its own files are read here.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from models.clip import ClipEncoder
from utils.checkpoint import write_whole
from utils.config import Config
from utils.encoders import load_config_clip
from utils.errors import UserError, note, refusing


class FeatureNetwork(Protocol):
    """What every metric asks of a network: a name that tells two networks apart, and features."""

    name: str

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) -> (B, D) features."""


class ClipFeatures:
    """The image tower of a CLIP: its embeddings, not normalised."""

    def __init__(self, clip: ClipEncoder):
        self.clip = clip
        self.name = clip.identity

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_images(images)


class InceptionFeatures:
    """The 2048 pooled features of the FID Inception network, fed as `pytorch-fid` feeds it.

    That is: bilinear resize to 299x299 without antialiasing, values in [-1, 1].
    """

    name = "inception"

    def __init__(self, weights: str | Path, device: torch.device | str = "cpu"):
        """`weights`: pt_inception-2015-12-05-*.pth as published for pytorch-fid."""
        # Costs a second at import, and most runs never need it.
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            # torch-fidelity would unpickle the file; it gets a copy that holds tensors only.
            tensors_only = io.BytesIO()
            torch.save(state, tensors_only)
            tensors_only.seek(0)
            network = FeatureExtractorInceptionV3("inception", ["2048"], tensors_only)
        except Exception as fault:
            reason = str(fault).splitlines()[0]
            raise UserError(f"{weights}: not the FID Inception weights ({reason})") from fault
        layers = [layer for name, layer in network.named_children() if name != "fc"]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Flatten()).eval().to(device)
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        x = images.to(self.device).float() / 255
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return self.layers(2 * x - 1)


def load_feature_network(
    config: Config, device: torch.device | str = "cpu", clip: ClipEncoder | None = None
) -> FeatureNetwork:
    """The network that `eval.feature_network` asks for; CLIP stands in where Inception is missing.

    `clip`: the config's CLIP where it is already loaded. Its `.name` tells which network it is.
    """
    weights = config.encoders.inception
    if config.eval.feature_network == "inception":
        if weights and weights.is_file():
            return InceptionFeatures(weights, device)
        missing = f"{weights} is not there" if weights else "encoders.inception is not set"
        note(f"{missing}: the feature network is the CLIP image tower, figures are not FID")
    return ClipFeatures(clip or load_config_clip(config, device))


def image_features(
    network: FeatureNetwork, batches: Iterable[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """(B, D) float64 features on the CPU for each uint8 (B, 3, H, W) batch."""
    for images in batches:
        yield network(images).double().cpu()


class FeatureStats:
    """Streaming mean and covariance in float64, the same whatever the batches or processes.

    Updates and merges are those of Chan, Golub & LeVeque 1983 (equation 2.1), which do not cancel
    as sums of squares do.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mu = np.zeros(0)  # (D,)
        self.scatter = np.zeros((0, 0))  # (D, D), sum of outer products about the mean

    def update(self, features: torch.Tensor | np.ndarray) -> None:
        """Add a batch of (B, D) features; raises UserError if one is not finite."""
        features = np.asarray(features, dtype=np.float64)
        if not np.isfinite(features).all():
            raise UserError("the feature network gave NaN or infinite features for an image")
        batch = FeatureStats()
        batch.n = len(features)
        batch.mu = features.mean(axis=0)
        centred = features - batch.mu
        batch.scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: FeatureStats) -> None:
        """Add what another one (of another process) has gathered."""
        if self.n == 0 or other.n == 0:
            if other.n:
                self.n, self.mu, self.scatter = other.n, other.mu, other.scatter
            return
        n = self.n + other.n
        shift = other.mu - self.mu
        self.mu = self.mu + shift * (other.n / n)
        between = np.outer(shift, shift) * (self.n * other.n / n)
        self.scatter = self.scatter + other.scatter + between
        self.n = n

    @property
    def sigma(self) -> np.ndarray:
        """(D, D) unbiased covariance; raises UserError with fewer than two images."""
        if self.n < 2:
            raise UserError(f"a covariance needs at least two images, got {self.n}")
        return self.scatter / (self.n - 1)


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """Squared Frechet distance of two Gaussians (Heusel 2017, equation 6).

    tr sqrt(S1 S2) is the sum of the root eigenvalues of R^T S2 R with S1 = R R^T, a symmetric
    matrix, so nothing is ever complex. R has only as many columns as S1 has rank, and it is taken
    from the matrix of lower rank: null directions then add no rounding noise.
    """
    root, other = _root(sigma1), sigma2
    if root.shape[1] == len(root):
        root2 = _root(sigma2)
        if root2.shape[1] < len(root2):
            root, other = root2, sigma1
    product = np.linalg.eigvalsh(root.T @ other @ root)
    mixed = np.sqrt(product.clip(min=0)).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * mixed
    return max(float(distance), 0.0)


def _root(sigma: np.ndarray) -> np.ndarray:
    """(D, D) covariance of rank r -> (D, r) with R R^T = sigma."""
    try:
        return np.linalg.cholesky(sigma)  # an eighth of the time of the general way
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(sigma)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])


def clip_similarities(image_emb: torch.Tensor, text_emb: torch.Tensor) -> torch.Tensor:
    """100 x cosine between each image and its text: (N, D), (N, D) -> (N,) float64."""
    return 100 * F.cosine_similarity(image_emb.double(), text_emb.double())


def clip_score(image_emb: torch.Tensor, text_emb: torch.Tensor) -> float:
    """Mean cosine x 100 of paired (N, D) embeddings."""
    return float(clip_similarities(image_emb, text_emb).mean())


@dataclass(frozen=True)
class Reference:
    """Statistics of a set of images; what a plain pytorch-fid file does not say is None."""

    mu: np.ndarray  # (D,) float64
    sigma: np.ndarray  # (D, D) float64
    n: int | None = None  # images
    network: str | None = None  # FeatureNetwork.name
    resolution: int | None = None  # pixels, side of the images
    source: str | None = None  # hash that tells one set of images from another


def save_stats(
    path: str | Path,
    mu: np.ndarray,
    sigma: np.ndarray,
    *,
    n: int,
    network: str,
    resolution: int,
    source: str,
) -> None:
    """Write reference statistics as an npz that pytorch-fid reads too; see Reference."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(
                file, mu=mu, sigma=sigma, n=n, network=network, resolution=resolution, source=source
            )

    write_whole(Path(path), write)


def load_stats(path: str | Path) -> Reference:
    """Read reference statistics, ours or those of pytorch-fid (`mu` and `sigma` only).

    Raises UserError if the file is missing or holds anything else.
    """
    try:
        with (
            refusing(f"{path}: not readable as reference statistics"),
            np.load(path, allow_pickle=False) as file,
        ):
            if not {"mu", "sigma"} <= set(file.files):
                raise UserError(f"{path}: holds no 'mu' and 'sigma', so it is not a reference")
            mu, sigma = (file[name].astype(np.float64) for name in ("mu", "sigma"))
            about = {
                name: kind(file[name])
                for name, kind in (
                    ("n", int),
                    ("network", str),
                    ("resolution", int),
                    ("source", str),
                )
                if name in file.files
            }
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such reference statistics; make them with "
            "python preprocess_scripts/fid_ref.py, or set eval.ref_path"
        ) from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(f"{path}: mu {mu.shape} and sigma {sigma.shape} are not of one dimension")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path}: the reference statistics hold NaN or infinite values")
    return Reference(mu, sigma, **about)


def check_comparable(reference: Reference, network: str, resolution: int, path: str | Path) -> None:
    """Raise UserError if the reference at `path` was made by another network or at another size.

    Files that do not say (pytorch-fid's) are taken at their word.
    """
    again = "make it again with python preprocess_scripts/fid_ref.py"
    if reference.network not in (None, network):
        raise UserError(
            f"{path}: features are from '{reference.network}' but images are judged by "
            f"'{network}'; such figures cannot be compared: {again}, or set eval.feature_network"
        )
    if reference.resolution not in (None, resolution):
        raise UserError(
            f"{path}: images are {reference.resolution} pixels wide but data.resolution is "
            f"{resolution}; such figures cannot be compared: {again}"
        )


def distance_to(reference: Reference, stats: FeatureStats, path: str | Path) -> float:
    """Frechet distance of features to a reference; raises UserError if dimensions differ."""
    if len(reference.mu) != len(stats.mu):
        raise UserError(
            f"{path}: the reference has {len(reference.mu)} dimensions, the features "
            f"{len(stats.mu)}; they come from different networks"
        )
    return frechet_distance(stats.mu, stats.sigma, reference.mu, reference.sigma)
