"""A trained network with all that it needs to generate images from sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.editing import Prior
from models.edm import EDMPrecond
from utils.base.progress import progress
from utils.config.sampling_sections import Sampling
from utils.config.schema import Config
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import read_config
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.pretrained.priors import load_config_prior, with_proposed_freedom
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import generate

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder
    from models.clip import ClipEncoder

BATCH = 50  # images that are generated at once


@dataclass
class Model:
    """A network, its config, and the encoders and the prior that the config names."""

    denoiser: EDMPrecond
    config: Config
    vae: Autoencoder
    clip: ClipEncoder
    prior: Prior | None

    @classmethod
    def load(cls, checkpoint: Path, overrides: Sequence[str] = ()) -> Model:
        """Load a checkpoint; overrides: `key=value` of its config."""
        config = read_config(checkpoint, list(overrides)) if overrides else None
        denoiser, config = load_denoiser(checkpoint, config=config)
        config = with_proposed_freedom(config)
        clip = load_config_clip(config.encoders)
        prior = load_config_prior(config, clip.identity)
        return cls(denoiser, config, load_config_autoencoder(config), clip, prior)

    def conditions(self, texts: Sequence[str]) -> Tensor:
        """Return the conditions of sentences, (N, D)."""
        return caption_conditions(self.clip.encode_texts(list(texts)), self.config)

    def generate(
        self,
        conditions: Tensor,
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        label: str = "",
    ) -> Tensor:
        """Return an image for each condition (N, D) and seed: (N, 3, H, W) uint8.

        sampling: None = the config's. label: of the progress bar; none without it.
        """
        batches = generate(
            self.denoiser, self.vae, conditions, seeds, sampling or self.config.sampling,
            prior=self.prior, batch_size=BATCH,
        )  # fmt: skip
        if label:
            batches = iter(progress(batches, label, -(-len(seeds) // BATCH), "batch"))
        return torch.cat([images for _, images in batches]).permute(0, 3, 1, 2)
