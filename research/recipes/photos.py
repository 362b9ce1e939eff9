"""Held-out photographs with captions, and all metrics of a network on them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.edm import EDMPrecond
from research.attributes.model import Model
from research.photos.material import prepare
from research.photos.traits import TraitClassifier, read_sentences
from research.recipes.evaluation import BATCH, OTHER, Evaluation, Tower, colour_distance
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.data.captions import captions_hash, captions_where_there, load_captions
from utils.data.image_batches import iterate_batches
from utils.data.images import Sample, list_images
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.metrics import retrieval, spread
from utils.evaluation.neighbours import training_image_paths
from utils.sampling.conditions import caption_conditions

AVATAR_CLIP = "assets/demo/clip"  # the image tower of the other world
ALIKE = 4  # held-out images of a caption whose variety is measured


def nearest_distances(images: Tensor, others: Tensor) -> Tensor:
    """Return 1 − cosine of each image (N, D) and the nearest of the others (M, D): (N,)."""
    return 1 - (F.normalize(images, dim=1) @ F.normalize(others, dim=1).T).amax(dim=1)


class Seen:
    """Photographs as one image tower sees them: those of training, and the held-out ones."""

    def __init__(self, tower: Tower, train: Tensor, captions: Sequence[str]) -> None:
        """`train`: features (M, D). `captions`: one of each held-out image."""
        self.tower, self.train = tower, train
        self.usual = float(nearest_distances(tower.features, train).median())
        counts = Counter(captions)
        self.repeated = [
            torch.tensor([text == other for other in captions])
            for text, count in counts.items()
            if count >= ALIKE
        ]

    def caption_variety(self, features: Tensor) -> float | None:
        """Return the mean spread of a caption's images, relative to that of its real images.

        features: (N, D) of an image for each held-out one. Captions of fewer than ALIKE held-out
        images do not count. None if there is no other.
        """
        ratios = [
            spread(features[rows]) / spread(self.tower.features[rows]) for rows in self.repeated
        ]
        return statistics.fmean(ratios) if ratios else None

    def distance_to_training(self, features: Tensor) -> dict[str, float]:
        """Return how far images (N, D) are from their nearest training images.

        `to_training`: median, relative to that of held-out images; about 1 if nothing is copied.
        `nearest_training`: 1 − cosine of the nearest pair of all.
        """
        distances = nearest_distances(features, self.train)
        return {
            "to_training": float(distances.median()) / self.usual,
            "nearest_training": float(distances.min()),
        }


class PhotoEvaluation(Evaluation):
    """Held-out photographs, their captions, and what evaluates images of the captions."""

    SEEDS = 8

    def __init__(self, config: Config, data: Path, count: int, seeds: int | None = None) -> None:
        """Load the first `count` test images below `data`, and the networks of `config`.

        seeds: images of each sentence of sentences.yaml. Make the embeddings and the latents of
        the training images if they are not there. Raise UserError if the photographs are missing.
        """
        source, embeddings = data / "source", data / "lmdb" / "train" / "clip_img"
        statistics = config.encoders.latent_statistics
        prepare([embeddings, *([statistics] if statistics else [])], data)
        test = list_images(source / "test" / "images")[:count]
        size = config.data.resolution
        images = torch.cat(list(iterate_batches([path for _, path in test], size, BATCH)))
        super().__init__(config, images, seeds)
        self.captions = load_captions(test, source / "test" / "captions", all_images=False)
        self.texts = sorted({text for lines in self.captions for text in lines})
        self.own = torch.tensor([self.texts.index(lines[0]) for lines in self.captions])
        self.text_features = self.clip.encode_texts(self.texts)  # (C, D)
        self.sentences = read_sentences()
        self.sentence_features = self.clip.encode_texts(list(self.sentences.stated))  # (P, D)
        self._load_towers(source / "train", LMDBReader(embeddings))

    def _load_towers(self, train: Path, reader: LMDBReader) -> None:
        """Load both image towers, the features of the training images, and the classifier."""
        rows = np.arange(reader.info.length)
        features = torch.from_numpy(reader.read(rows))
        paths = training_image_paths(train / "images", reader, rows)
        if paths is None:
            raise UserError(f"{reader.path}: not of the images in {train}; delete it")
        clip = Tower(self.config.encoders.clip, self.images, self.device)
        other = Tower(AVATAR_CLIP, self.images, self.device)
        batches = iterate_batches(paths, self.config.data.resolution, BATCH)
        other_features = torch.cat([other(batch) for batch in batches])
        first = [lines[0] for lines in self.captions]
        self.seen = Seen(clip, features, first)
        self.seen_by_other = Seen(other, other_features, first)
        samples = [Sample(*both) for both in zip(reader.info.meta["names"], paths, strict=True)]
        captions = captions_where_there(samples, train / "captions")
        captioned = torch.tensor([bool(lines) for lines in captions])
        self.training = features[captioned], [lines for lines in captions if lines]
        self.traits = TraitClassifier(self.sentences, self.clip, *self.training)

    @property
    def identity(self) -> dict[str, Any]:
        """Return the facts that must be equal for metrics that are compared."""
        return {
            "images": self.count,
            "network": self.seen.tower.network.name,
            "reference": captions_hash(self.captions)[:16],
        }

    @property
    def real(self) -> dict[str, Any]:
        """Return the same metrics of the held-out photographs themselves, as far as they exist.

        `traits`: how often a trait is seen in images whose caption states it; `traits_of_training`:
        in such training images, for which the classifier was made.
        """
        features = self.seen.tower.features
        return {
            **retrieval(features, self.text_features, self.own),
            "traits": self.traits.rates_of_real(features, self.captions),
            "traits_of_training": self.traits.rates_of_real(*self.training),
        }

    def evaluate(self, denoiser: EDMPrecond, config: Config) -> dict[str, Any]:
        """Return all metrics of a network.

        They are KEPT, and the same in the features of the other world's tower; `colour_distance`;
        `retrieval`; the percentages of images that show what a sentence states, as `traits_shown`,
        `unseen_shown` and `combined_shown` (all images) and `sentences` (each); `caption_variety`
        and `to_training` with `nearest_training`, in both towers; `losses`; and `real`.
        """
        images = self._generate(self.model(denoiser, config))
        of_captions, of_sentences = self.seen.tower(images).tensor_split([self.count])
        captioned = images[: self.count]
        others = self.seen_by_other.tower(captioned)
        found = {
            **self.seen.tower.metrics(of_captions, self.text_features[self.own]),
            **self.seen_by_other.tower.other_metrics(others),
            "colour_distance": colour_distance(captioned, self.images),
            **retrieval(of_captions, self.text_features, self.own),
            **self._shown(of_sentences.unflatten(0, (-1, self.seeds))),
        }
        for seen, features, end in (
            (self.seen, of_captions, ""),
            (self.seen_by_other, others, f"_{OTHER}"),
        ):
            found[f"caption_variety{end}"] = seen.caption_variety(features)
            distances = seen.distance_to_training(features)
            found |= {f"{key}{end}": value for key, value in distances.items()}
        return {**found, **self.losses(denoiser, config), "real": self.real}

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings of (N, 3, H, W) uint8 by the config's CLIP, in bfloat16: (N, D)."""
        return self.seen.tower(images)

    def _generate(self, model: Model) -> Tensor:
        """Generate an image of each held-out one's caption, then `seeds` images of each sentence.

        Returns (count + P · seeds, 3, H, W) uint8. A sentence's images have the seeds from 0 on.
        """
        sentences = self.sentence_features.repeat_interleave(self.seeds, dim=0)
        texts = torch.cat([self.text_features[self.own], sentences])
        seeds = [*range(self.count), *list(range(self.seeds)) * len(self.sentence_features)]
        sampling = model.config.sampling.model_copy(update={"amp": "bf16"})
        conditions = caption_conditions(texts, model.config)
        return model.generate(conditions, seeds, sampling, "photographs")

    def _shown(self, features: Tensor) -> dict[str, Any]:
        """Return the rates of sentences' images, (P, seeds, D), and of each kind of sentence."""
        each = self.traits.rates_of_sentences(features, self.sentences.stated)
        single = [trait.sentence for trait in self.sentences.traits.values()]
        kinds: Mapping[str, Sequence[str]] = {
            "traits_shown": single,
            "unseen_shown": list(self.sentences.unseen),
            "combined_shown": list(self.sentences.combined),
        }
        rates = {
            key: statistics.fmean(each[text]["rate"] for text in texts)
            for key, texts in kinds.items()
        }
        return {**rates, "sentences": each}
