"""Traits that a CLIP sees in images: a classifier made of captions, and the sentences it checks.

An image's score of a trait is its mean cosine with the captions that state the trait, minus its
mean cosine with all captions: some images are near to all texts. The trait is seen where the score
reaches a threshold, which separates the training images best (balanced accuracy). This CLIP was
trained on these images and knows them better than any others, so that it sees a trait in fewer
test images than training images. Rates of generated images stand beside those of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

from utils.base.errors import UserError
from utils.config.yaml_files import load_yaml

if TYPE_CHECKING:
    from models.clip import ClipEncoder

SENTENCES = Path(__file__).with_name("sentences.yaml")
Captions = Sequence[Sequence[str]]  # of each image


class Trait(BaseModel):
    """A sentence, and the captions of images that have the trait."""

    model_config = ConfigDict(extra="forbid")

    sentence: str
    captions: list[str]


class Sentences(BaseModel):
    """Traits by name; sentences and the traits that they state."""

    model_config = ConfigDict(extra="forbid")

    traits: dict[str, Trait]
    unseen: dict[str, list[str]]
    combined: dict[str, list[str]]

    @property
    def stated(self) -> dict[str, list[str]]:
        """Return each sentence with the traits that it states: those of the traits come first."""
        single = {trait.sentence: [name] for name, trait in self.traits.items()}
        return {**single, **self.unseen, **self.combined}


def read_sentences(file: Path = SENTENCES) -> Sentences:
    """Read the sentences."""
    return Sentences.model_validate(load_yaml(file.read_text(encoding="utf-8")))


def rate(hits: Tensor) -> dict[str, Any]:
    """Return the percentage of True in (N,) bool, Wilson's 95 % interval (1927), and N."""
    n, seen = len(hits), int(hits.sum())
    if not n:
        return {"rate": None, "low": None, "high": None, "n": 0}
    ends = binomtest(seen, n).proportion_ci(method="wilson")
    return {"rate": 100 * seen / n, "low": 100 * ends.low, "high": 100 * ends.high, "n": n}


def best_threshold(scores: Tensor, shown: Tensor) -> float:
    """Return the score that separates images (N,) with a trait, (N,) bool, from the others best.

    It is the middle between two images' scores, and has the highest balanced accuracy.
    """
    order = scores.argsort()
    is_shown = shown[order].double()
    # With the cut above the first k images: fraction of the others below, and of the shown above.
    below = (1 - is_shown).cumsum(0) / (1 - is_shown).sum()
    above = 1 - is_shown.cumsum(0) / is_shown.sum()
    cut = int((below + above)[:-1].argmax())
    return float(scores[order][cut : cut + 2].mean())


class TraitClassifier:
    """The classifier of the traits of `sentences`, with thresholds of training images."""

    def __init__(
        self, sentences: Sentences, clip: ClipEncoder, embeddings: Tensor, captions: Captions
    ) -> None:
        """`embeddings`: (N, D) of training images, `captions`: of each of them.

        Raises UserError if no training image has a trait.
        """
        self.traits = sentences.traits
        texts = sorted({text for lines in captions for text in lines})
        all_texts = F.normalize(clip.encode_texts(texts), dim=1)
        self.directions = torch.stack(
            [
                all_texts[[text in trait.captions for text in texts]].mean(dim=0)
                for trait in self.traits.values()
            ]
        ) - all_texts.mean(dim=0)  # (T, D)
        shown, scores = self.shown(captions), self.scores(embeddings)
        for name, is_shown in zip(self.traits, shown.any(dim=0), strict=True):
            if not is_shown:
                raise UserError(f"{name}: no training image has a caption with this trait")
        self.thresholds = torch.tensor(
            [best_threshold(*both) for both in zip(scores.T, shown.T, strict=True)]
        )

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return the scores of image embeddings (N, D) for all traits, (N, T)."""
        return F.normalize(embeddings, dim=1) @ self.directions.T

    def seen(self, embeddings: Tensor) -> Tensor:
        """Return the traits that are seen in images (N, D), (N, T) bool."""
        return self.scores(embeddings) >= self.thresholds

    def shown(self, captions: Captions) -> Tensor:
        """Return the traits that images' captions state, (N, T) bool."""
        of_traits = [set(trait.captions) for trait in self.traits.values()]
        return torch.tensor([[bool(s & set(lines)) for s in of_traits] for lines in captions])

    def rates_of_real(self, embeddings: Tensor, captions: Captions) -> dict[str, dict[str, Any]]:
        """Return for each trait how often it is seen in real images whose caption states it.

        `others`: the rate among the other images, some of which have the trait without a caption.
        """
        seen, shown = self.seen(embeddings), self.shown(captions)
        return {
            name: {**rate(seen[shown[:, t], t]), "others": rate(seen[~shown[:, t], t])["rate"]}
            for t, name in enumerate(self.traits)
        }

    def rates_of_sentences(
        self, embeddings: Tensor, stated: Mapping[str, Sequence[str]]
    ) -> dict[str, dict[str, Any]]:
        """Return for each sentence how often all that it states is seen in its images.

        embeddings: (P, S, D) of S images for each of P sentences. `each`: the rate of each trait.
        """
        names, found = list(self.traits), {}
        for (text, traits), images in zip(stated.items(), embeddings, strict=True):
            seen = self.seen(images)[:, [names.index(trait) for trait in traits]]
            each = {
                trait: rate(column)["rate"] for trait, column in zip(traits, seen.T, strict=True)
            }
            found[text] = {**rate(seen.all(dim=1)), "each": each}
        return found
