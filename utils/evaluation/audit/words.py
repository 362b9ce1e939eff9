"""Measure which words a CLIP knows: area under the ROC curve, nearest images, retrieval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from utils.evaluation.audit.terms import terms_in
from utils.evaluation.metrics import retrieval

if TYPE_CHECKING:
    from models.clip import ClipEncoder

NEAREST = 8  # images of a word that are shown, and whose cosine is its `near`
FEW = 10  # least number of images with a word in their captions, to measure its AUC
KNOWN, UNKNOWN = 0.8, 0.65  # a word is known from this AUC on, and unknown below that one


@dataclass(frozen=True)
class Word:
    """A word, or a sentence, and how a CLIP sees it on the images.

    images: those whose captions state the word. expected: as many among all training images.
    auc: probability that an image with the word scores higher than one without it, with its
        95 % interval; None if captions state it of no image, or of all.
    agrees: cosine of the word's direction with that of the images with the word, both from the
        mean of all; None likewise.
    visible: how much of an image it changes: the difference of the mean images with and without it,
        relative to the deviation of an image from the mean image; None likewise.
    near: mean cosine of the word's direction with those of its NEAREST images.
    nearest: their indices, the nearest first.
    """

    text: str
    images: int
    expected: int
    auc: float | None
    low: float | None
    high: float | None
    agrees: float | None
    visible: float | None
    near: float
    nearest: list[int]

    @property
    def state(self) -> str:
        """Return in a word how well the CLIP tells it apart."""
        if self.auc is None or self.high is None:
            return "unverified"
        if self.images < FEW:
            return "too few"
        if self.auc >= KNOWN:
            return "known"
        return "weak" if self.auc >= UNKNOWN else "not known"


def area_under_curve(scores: Tensor, shown: Tensor) -> tuple[float, float, float]:
    """Return the area under the ROC curve of scores (N,) for `shown` (N,) bool, with an interval.

    It is the probability that a shown one has the higher score (Mann & Whitney 1947). The interval
    of 95 % has the standard error of Hanley & McNeil 1982. Some are shown, and some are not.
    """
    m, n = int(shown.sum()), int((~shown).sum())
    ranks = torch.from_numpy(rankdata(scores.double().numpy()))
    area = (float(ranks[shown].sum()) - m * (m + 1) / 2) / (m * n)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)
    reach = 1.96 * math.sqrt(max(variance, 0.0) / (m * n))
    return area, max(0.0, area - reach), min(1.0, area + reach)


def measure_words(
    images: Tensor,
    shown: Mapping[str, Tensor],
    texts: Tensor,
    middle: Tensor,
    total: int,
    seen: tuple[Tensor, Tensor],
) -> list[Word]:
    """Measure each word on images, in the order of `shown`.

    Args:
        images: (N, D) of unit length.
        shown: word -> (N,) bool, the images whose captions state it.
        texts: (T, D), the embedding of each word.
        middle: (D,), mean of texts in general; some images are near to all texts.
        total: training images, for the number that is expected of each word.
        seen: rows (M,) of images whose pixels are known, and these, (M, P) of any kind.
    """
    directions = F.normalize(texts, dim=1) - middle
    scores = images @ directions.T  # (N, T)
    around = F.normalize(images - images.mean(dim=0), dim=1) @ F.normalize(directions, dim=1).T
    found = []
    for t, (text, said) in enumerate(shown.items()):
        count, best = int(said.sum()), around[:, t].topk(min(NEAREST, len(images)))
        auc, low, high, agrees = None, None, None, None
        if 0 < count < len(images):
            auc, low, high = area_under_curve(scores[:, t], said)
            theirs = images[said].mean(dim=0) - images.mean(dim=0)
            agrees = float(F.cosine_similarity(theirs, directions[t], dim=0))
        found.append(
            Word(
                text=text,
                images=count,
                expected=round(total * count / len(images)),
                auc=auc,
                low=low,
                high=high,
                agrees=agrees,
                visible=mean_difference(seen[1], said[seen[0]]),
                near=float(best.values.mean()),
                nearest=best.indices.tolist(),
            )
        )
    return found


def mean_difference(x: Tensor, shown: Tensor) -> float | None:
    """Return the distance between the means of x (N, P) with and without `shown` (N,) bool.

    It is relative to the root mean square distance from the mean. What few rows add to it by
    chance is subtracted. None if all are shown, or none.
    """
    m, n = int(shown.sum()), int((~shown).sum())
    if not m or not n:
        return None
    variance = float((x - x.mean(dim=0)).square().sum(dim=1).mean())
    distance = float((x[shown].mean(dim=0) - x[~shown].mean(dim=0)).square().sum())
    return math.sqrt(max(0.0, distance - variance * (1 / m + 1 / n)) / max(variance, 1e-12))


def embed_said(words: Sequence[str], pool: Mapping[str, Tensor], clip: ClipEncoder) -> Tensor:
    """Return an embedding for each word of captions, (T, D).

    It is the mean of the captions of `pool` (caption -> embedding, of unit length) that say the
    word; a word that none of them says is embedded as it is.
    """
    said = {text: terms_in(text) for text in pool}
    texts = [[pool[text] for text, terms in said.items() if word in terms] for word in words]
    alone = [word for word, holding in zip(words, texts, strict=True) if not holding]
    own = iter(F.normalize(clip.encode_texts(alone), dim=1)) if alone else iter(())
    return torch.stack([torch.stack(part).mean(dim=0) if part else next(own) for part in texts])


def find_captions(
    images: Tensor, captions: Sequence[Sequence[str]], pool: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Say how often an image's first caption is the nearest one of `pool`, in percent.

    images: (N, D). captions: of each; images whose first one is not in the pool do not count.
    Returns what `retrieval` does, with `captions`, the size of the pool.
    """
    place = {text: i for i, text in enumerate(pool)}
    rows = [i for i, lines in enumerate(captions) if lines and lines[0] in place]
    own = torch.tensor([place[captions[i][0]] for i in rows])
    found = retrieval(images[rows], torch.stack(list(pool.values())), own)
    return {**found, "captions": len(pool)}
