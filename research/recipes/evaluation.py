"""The jury: held-out faces with captions, and all metrics of a network on them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.edm import EDMPrecond
from research.attributes.check_handwritten import read_captions
from research.attributes.check_prompts import agreement, choose_captions
from research.attributes.classifier import classify, codes_of, load_classifier, load_faces
from research.variety.measures import PROMPTS, classify_generated, figures
from utils.config.schema import Config
from utils.evaluation.evaluator import load_networks_and_references
from utils.evaluation.image_set import ImageSet
from utils.evaluation.metric_names import key_of
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.pretrained.priors import load_config_prior
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import generate

BATCH = 64  # pictures that are drawn or encoded at once
# Metrics of utils/evaluation that are kept; recall needs a reference that holds features.
KEPT = (
    "frechet_distance",
    "frechet_distance_low",
    "frechet_distance_high",
    "precision",
    "recall",
    "clip_score",
)
SEEDS = 24  # pictures of each sentence that says little
LOSS_FACES = 128
LOSS_LEVELS = torch.logspace(-1.3, 1.3, 12)  # sigma, 0.05 to 20
SIGMA_DATA = 0.5  # of the weight of the loss, also if a network has another one


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the jury's faces and its judge of attributes."""
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="folder of the rendered faces"
    )
    parser.add_argument(
        "--judge",
        type=Path,
        default=Path("results/check_prompts/classifier.safetensors"),
        help="judge of attributes, trained on first use; research/attributes/check_prompts.py "
        "uses it too",
    )


@torch.inference_mode()
def held_out_losses(
    denoiser: EDMPrecond, latents: Tensor, cond: Tensor, levels: Tensor = LOSS_LEVELS
) -> list[float]:
    """Return the denoising loss at each noise level: no mask, and noise of a fixed seed.

    latents: (N, C, H, W). cond: (N, D). levels: (K,) sigma; every face is noised to all of them.
    The weight is lambda(sigma) of EDM (Karras 2022, table 1), with which the loss is that of the
    network's own output F.
    """
    generator, losses = torch.Generator().manual_seed(0), []
    for sigma in levels.tolist():
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        error = denoiser(latents + sigma * noise, sigma, cond) - latents
        losses.append(float(weight * error.square().mean()))
    return losses


class Evaluation:
    """Held-out faces, their captions, and the networks that judge pictures of the captions."""

    def __init__(self, config: Config, data: Path, count: int, classifier: Path) -> None:
        """Load the first `count` test faces below `data`, and the networks of `config`.

        classifier: file of the judge of attributes, which is trained on first use. Raise UserError
        if something is missing.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.images, self.records = load_faces(data / "test", count)
        texts, self.stated = choose_captions(self.records)
        self.codes = codes_of(self.records)
        self.clip = load_config_clip(config, self.device)
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
            "pictures": len(self.records),
            "network": self.networks[0].name,
            "reference": self.references[0].source,
        }

    @cached_property
    def classifier(self) -> nn.Module:
        """Evaluator of attributes."""
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
        level).
        """
        pictures = self.draw(denoiser, config)
        generated = ImageSet(self.networks, self.clip)
        for rows in torch.arange(len(pictures)).split(BATCH):
            generated.update(pictures[rows], rows, self.texts[rows.to(self.texts.device)])
        metrics = generated.metrics(self.references)
        shown = agreement(classify(self.classifier, pictures), self.codes, self.stated)
        latents, embeddings = self.loss_inputs
        cond = F.normalize(embeddings, dim=1) if config.data.norm_feature else embeddings
        losses = held_out_losses(denoiser, latents, cond)
        open_ended = self.vary(denoiser, config)
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

    def vary(self, denoiser: EDMPrecond, config: Config) -> dict[str, Any]:
        """Return the figures of research/variety/measures.py for sentences that say little."""
        sentences, stated = read_captions(PROMPTS)

        def draw(texts: list[str], seeds: list[int]) -> Tensor:
            return self.draw(denoiser, config, self.clip.encode_texts(texts), seeds)

        name = partial(classify, self.classifier)
        return figures(classify_generated(draw, name, sentences, SEEDS), stated)

    def draw(
        self,
        denoiser: EDMPrecond,
        config: Config,
        texts: Tensor | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw a picture of each caption by the config's sampler: (N, 3, H, W) uint8.

        texts: embeddings of captions (N, D); None = those of the held-out faces.
        seeds: None = the captions' numbers, so that all networks start from equal noise.
        """
        texts = self.texts if texts is None else texts
        batches = generate(
            denoiser,
            self.vae,
            caption_conditions(texts, config),
            seeds or range(len(texts)),
            config.sampling.model_copy(update={"amp": "bf16"}),
            prior=load_config_prior(config, self.clip.identity, self.device),
            batch_size=BATCH,
        )
        return torch.cat([images for _, images in batches]).permute(0, 3, 1, 2)
