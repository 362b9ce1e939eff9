"""The world of rendered faces: held-out faces with captions, and all metrics of a network."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.edm import EDMPrecond
from research.attributes.check_handwritten import read_captions
from research.attributes.check_prompts import agreement, choose_captions
from research.attributes.classifier import classify, codes_of, load_classifier, load_faces
from research.recipes.evaluation import BATCH, Evaluation, Tower, colour_distance, kept_metrics
from research.study.material import prepare
from research.variety.check import check_sentences
from research.variety.measures import PROMPTS
from utils.config.schema import Config
from utils.evaluation.evaluator import load_networks, load_references
from utils.evaluation.image_set import ImageSet
from utils.sampling.conditions import caption_conditions

PHOTO_CLIP = Path("data/photos/source/clip")  # the image tower of the other world, if it is there


class AvatarEvaluation(Evaluation):
    """Held-out faces, their captions, and the networks that evaluate images of the captions."""

    SEEDS = 24

    def __init__(
        self, config: Config, data: Path, count: int, seeds: int | None, classifier: Path
    ) -> None:
        """Load the first `count` test faces below `data`, and the networks of `config`.

        seeds: images of each sentence that says little. classifier: file of the attribute
        classifier, which is trained on first use. Raise UserError if something is missing.
        """
        networks = (config.encoders.clip, config.eval.ref_path)
        prepare([Path(path) for path in networks if path is not None], data)
        images, records = load_faces(data / "test", count)
        super().__init__(config, images, seeds)
        texts, self.stated = choose_captions(records)
        self.codes = codes_of(records)
        self.texts = self.clip.encode_texts(texts)
        self.references = load_references(config)
        self.networks = load_networks(config, self.references, self.device, self.clip)
        self._classifier_file, self._train_faces = classifier, data / "train"

    @property
    def identity(self) -> dict[str, Any]:
        """Return the facts that must be equal for metrics that are compared."""
        return {
            "images": self.count,
            "network": self.networks[0].name,
            "reference": self.references[0].source,
        }

    @cached_property
    def classifier(self) -> nn.Module:
        """Attribute classifier."""
        return load_classifier(self._classifier_file, self._train_faces)

    @cached_property
    def other(self) -> Tower | None:
        """Image tower for photographs; None if the photographs are not there."""
        return Tower(PHOTO_CLIP, self.images, self.device) if PHOTO_CLIP.exists() else None

    def evaluate(self, denoiser: EDMPrecond, config: Config) -> dict[str, Any]:
        """Return all metrics of a network.

        They are KEPT, and the same in the features of `other` if it is there; `colour_distance`;
        the percentage of stated attributes that are shown, as `attributes` (mean), `coarse` (mean
        of the coarse ones) and `shown` (each); `variety` of sentences that say little, relative to
        the data, and the percentage `stated` that they state and show; `losses`.
        """
        sampling = config.sampling.model_copy(update={"amp": "bf16"})
        model = self.model(denoiser, config)
        conditions = caption_conditions(self.texts, config)
        images = model.generate(conditions, range(len(self.texts)), sampling, "captions")
        generated = ImageSet(self.networks, self.clip)
        for rows in torch.arange(len(images)).split(BATCH):
            generated.update(images[rows], rows, self.texts[rows.to(self.texts.device)])
        shown = agreement(classify(self.classifier, images), self.codes, self.stated)
        texts, stated = read_captions(PROMPTS)
        open_ended = check_sentences(model, self.classifier, texts, stated, self.seeds, sampling)
        return {
            "variety": open_ended["ratio"],
            "stated": open_ended["stated"],
            **kept_metrics(generated.metrics(self.references)),
            **(self.other.other_metrics(self.other(images)) if self.other else {}),
            "colour_distance": colour_distance(images, self.images),
            "attributes": shown.pop("mean"),
            "coarse": shown.pop("coarse mean"),
            **self.losses(denoiser, config),
            "shown": shown,
        }
