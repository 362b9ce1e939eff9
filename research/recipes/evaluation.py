"""Held-out faces with captions, and all metrics of a network on them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.edm import EDMPrecond
from research.attributes.check_handwritten import read_captions
from research.attributes.check_prompts import agreement, choose_captions
from research.attributes.classifier import classify, codes_of, load_classifier, load_faces
from research.attributes.model import Model
from research.variety.check import check_sentences
from research.variety.measures import PROMPTS
from utils.config.schema import Config
from utils.evaluation.evaluator import load_networks_and_references
from utils.evaluation.image_set import ImageSet
from utils.evaluation.metric_names import key_of
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.pretrained.priors import load_config_prior
from utils.sampling.conditions import caption_conditions

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
SEEDS = 24  # images of each sentence that says little
LOSS_FACES = 128
LOSS_SIGMAS = torch.logspace(-1.3, 1.3, 12)  # 0.05 to 20
SIGMA_DATA = 0.5  # of the weight of the loss, also if a network has another one


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


class Evaluation:
    """Held-out faces, their captions, and the networks that evaluate images of the captions."""

    def __init__(self, config: Config, data: Path, count: int, classifier: Path) -> None:
        """Load the first `count` test faces below `data`, and the networks of `config`.

        classifier: file of the attribute classifier, which is trained on first use. Raise UserError
        if something is missing.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.images, self.records = load_faces(data / "test", count)
        texts, self.stated = choose_captions(self.records)
        self.codes = codes_of(self.records)
        self.clip = load_config_clip(config.encoders, self.device)
        self.vae = load_config_autoencoder(config, self.device)
        self.texts = self.clip.encode_texts(texts)
        self.networks, self.references = load_networks_and_references(
            config, self.device, self.clip
        )
        self._classifier_file, self._train_faces = classifier, data / "train"

    @property
    def identity(self) -> dict[str, Any]:
        """Return the facts that must be equal for metrics that are compared."""
        return {
            "images": len(self.records),
            "network": self.networks[0].name,
            "reference": self.references[0].source,
        }

    @cached_property
    def classifier(self) -> nn.Module:
        """Attribute classifier."""
        return load_classifier(self._classifier_file, self._train_faces)

    @cached_property
    def loss_inputs(self) -> tuple[Tensor, Tensor]:
        """Latents (N, C, H, W) and image embeddings (N, D) of the first LOSS_FACES faces."""
        latents, embeddings = [], []
        for part in self.images[:LOSS_FACES].split(BATCH):
            moments = self.vae.encode_moments(part.float() / 127.5 - 1)
            latents.append(self.vae.mean_latents(moments))
            embeddings.append(self.clip.encode_images(part))
        return torch.cat(latents).to(self.device), torch.cat(embeddings).to(self.device)

    def evaluate(self, denoiser: EDMPrecond, config: Config) -> dict[str, Any]:
        """Return all metrics of a network.

        They are KEPT; the percentage of stated attributes that are shown, as `attributes` (mean),
        `coarse` (mean of the coarse ones) and `shown` (each); `variety` of sentences that say
        little, relative to the data, and the percentage `stated` that they state and show; the loss
        of `held_out_losses` given the image's own embedding, as `loss` (mean) and `losses` (each
        sigma).
        """
        prior = load_config_prior(config, self.clip.identity, self.device)
        sampling = config.sampling.model_copy(update={"amp": "bf16"})
        model = Model(denoiser, config, self.vae, self.clip, prior)
        conditions = caption_conditions(self.texts, config)
        images = model.generate(conditions, range(len(self.texts)), sampling, "captions")
        generated = ImageSet(self.networks, self.clip)
        for rows in torch.arange(len(images)).split(BATCH):
            generated.update(images[rows], rows, self.texts[rows.to(self.texts.device)])
        metrics = generated.metrics(self.references)
        shown = agreement(classify(self.classifier, images), self.codes, self.stated)
        latents, embeddings = self.loss_inputs
        cond = F.normalize(embeddings, dim=1) if config.data.norm_feature else embeddings
        losses = held_out_losses(denoiser, latents, cond)
        texts, stated = read_captions(PROMPTS)
        open_ended = check_sentences(model, self.classifier, texts, stated, SEEDS, sampling)
        return {
            "variety": open_ended["ratio"],
            "stated": open_ended["stated"],
            **{key: metrics[key_of(key, metrics["network"])] for key in KEPT},
            "attributes": shown.pop("mean"),
            "coarse": shown.pop("coarse mean"),
            "loss": sum(losses) / len(losses),
            "losses": losses,
            "shown": shown,
        }
