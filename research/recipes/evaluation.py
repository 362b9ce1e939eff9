"""Metrics of a network, on the held-out images of a world: what the worlds share.

avatars.py and photos.py have the two worlds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.edm import EDMPrecond
from research.attributes.model import Model
from utils.config.schema import Config
from utils.config.sections import Encoders
from utils.evaluation.feature_networks import ClipFeatures
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.image_set import ImageSet
from utils.evaluation.metric_names import key_of
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.pretrained.priors import load_config_prior, with_proposed_freedom

BATCH = 64  # images that are encoded at once
# Metrics of utils/evaluation that are kept; recall needs a reference that holds features.
KEPT = (
    "frechet_distance",
    "frechet_distance_low",
    "frechet_distance_high",
    "precision",
    "recall",
    "clip_score",
)
OTHER = "other"  # ends the names of metrics in the features of the other world's image tower
LOSS_IMAGES = 128
LOSS_SIGMAS = torch.logspace(-1.3, 1.3, 12)  # 0.05 to 20
SIGMA_DATA = 0.5  # of the weight of the loss, also if a network has another one
CELLS = 8  # along a side of an image, whose mean colours are compared


@torch.inference_mode()
def held_out_losses(
    denoiser: EDMPrecond, latents: Tensor, cond: Tensor, sigmas: Tensor = LOSS_SIGMAS
) -> list[float]:
    """Return the denoising loss at each sigma: no mask, and noise of a fixed seed.

    latents: (N, C, H, W). cond: (N, D). sigmas: (K,); every face is noised to all of them.
    The weight is lambda(sigma) of EDM (Karras 2022, table 1), with which the loss is that of the
    network's own output F.
    """
    generator, losses = torch.Generator().manual_seed(0), []
    for sigma in sigmas.tolist():
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        error = denoiser(latents + sigma * noise, sigma, cond) - latents
        losses.append(float(weight * error.square().mean()))
    return losses


class Tower:
    """The image tower of a CLIP in bfloat16, and its features of a world's held-out images.

    Generated images are compared with them. Both are in the same precision, so no reference file
    is read.
    """

    def __init__(self, clip: Path | str, images: Tensor, device: torch.device) -> None:
        """Load the CLIP; `images`: (N, 3, H, W) uint8."""
        self.clip = load_config_clip(Encoders(clip=str(clip), precision="bf16"), device)
        self.network = ClipFeatures(self.clip)
        self.features = self(images)  # (N, D)
        self.reference = self._set(self.features).references()[0]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of (N, 3, H, W) uint8, (N, D)."""
        return torch.cat([self.network(part).pooled for part in images.split(BATCH)])

    def _set(self, features: Tensor, texts: Tensor | None = None) -> ImageSet:
        rows = {"0.pooled": features}
        if texts is not None:
            rows["pairs"] = torch.cat([features, texts], dim=1)
        found = ImageSet([self.network], self.clip)
        found.add(rows, range(len(features)))
        return found

    def metrics(self, features: Tensor, texts: Tensor | None = None) -> dict[str, Any]:
        """Return the metrics KEPT of generated images, by their features (N, D).

        texts: (N, D) embeddings of their captions; without them there is no CLIP score.
        """
        return kept_metrics(self._set(features, texts).metrics([self.reference]))

    def other_metrics(self, features: Tensor) -> dict[str, Any]:
        """Return these metrics with names that end with OTHER, and the network's as its own."""
        found = {f"{k}_{OTHER}": v for k, v in self.metrics(features).items() if v is not None}
        return {**found, f"network_{OTHER}": self.network.name}


def kept_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics KEPT of those of an ImageSet, without the network in their names."""
    return {key: metrics[key_of(key, metrics["network"])] for key in KEPT}


def colour_distance(images: Tensor, real: Tensor) -> float:
    """Return the Fréchet distance of images (N, 3, H, W) uint8 and real ones, by colours alone.

    The features are the mean colours of CELLS × CELLS cells, in [0, 1]: no network, no training.
    """
    given: list[np.ndarray] = []
    for part in (images, real):
        cells = F.adaptive_avg_pool2d(part.double() / 255, CELLS).flatten(1).numpy()
        given += [cells.mean(axis=0), np.cov(cells, rowvar=False)]
    return frechet_distance(*given)


class Evaluation(ABC):
    """Held-out images of a world, and the networks that evaluate images of their captions.

    count: held-out images. seeds: images of each sentence that stands in no caption.
    """

    SEEDS: ClassVar[int]  # the usual number of `seeds`

    def __init__(self, config: Config, images: Tensor, seeds: int | None) -> None:
        """Load the encoders of `config`; `images`: the held-out images, (N, 3, H, W) uint8."""
        self.config, self.images, self.count = config, images, len(images)
        self.seeds = seeds or self.SEEDS
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clip = load_config_clip(config.encoders, self.device)
        self.vae = load_config_autoencoder(config, self.device)

    @property
    def size(self) -> str:
        """The numbers of images as they stand in names of files; `seeds` only if not the usual."""
        return f"{self.count}" if self.seeds == self.SEEDS else f"{self.count}x{self.seeds}"

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the facts that must be equal for metrics that are compared."""

    @abstractmethod
    def evaluate(self, denoiser: EDMPrecond, config: Config) -> dict[str, Any]:
        """Return all metrics of a network, which was trained by `config`."""

    def model(self, denoiser: EDMPrecond, config: Config) -> Model:
        """Return a network with the encoders, and the prior that its config names."""
        config = with_proposed_freedom(config)
        prior = load_config_prior(config, self.clip.identity, self.device)
        vae = (
            self.vae if self.same_latents(config) else load_config_autoencoder(config, self.device)
        )
        return Model(denoiser, config, vae, self.clip, prior)

    def same_latents(self, config: Config) -> bool:
        """Return True if a network's latents are normalised like those of `loss_inputs`."""
        return config.encoders.latent_statistics == self.config.encoders.latent_statistics

    @cached_property
    def loss_inputs(self) -> tuple[Tensor, Tensor]:
        """Latents (N, C, H, W) and image embeddings (N, D) of the first LOSS_IMAGES images."""
        images, latents = self.images[:LOSS_IMAGES], []
        for part in images.split(BATCH):
            moments = self.vae.encode_moments(part.float() / 127.5 - 1)
            latents.append(self.vae.mean_latents(moments))
        return torch.cat(latents).to(self.device), self.embed(images).to(self.device)

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings of (N, 3, H, W) uint8 by the config's CLIP, (N, D)."""
        return torch.cat([self.clip.encode_images(part) for part in images.split(BATCH)])

    def losses(self, denoiser: EDMPrecond, config: Config) -> dict[str, Any]:
        """Return `loss` (mean) and `losses` (each sigma) of `held_out_losses`.

        The condition is the image's own embedding. Both are None for a network of latents that are
        normalised in another way: its losses are of other numbers.
        """
        if not self.same_latents(config):
            return {"loss": None, "losses": None}
        latents, embeddings = self.loss_inputs
        cond = F.normalize(embeddings, dim=1) if config.data.norm_feature else embeddings
        losses = held_out_losses(denoiser, latents, cond)
        return {"loss": sum(losses) / len(losses), "losses": losses}
