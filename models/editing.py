"""Edits of an image by a network that was trained on images alone.

A trait is the difference between two sentences: "a person" and "a person with round glasses". The
prior samples embeddings of images for both, and the linear map that carries the first samples to
the second ones with the least change says what becomes of one image: it moves to where images with
the trait are, in all that the trait decides, and stays in all else. unCLIP moves each image along
the difference of the sentences' own embeddings, by an amount that a user finds by trying (Ramesh
2022, section 3.3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.edm import EDMPrecond
from models.embedding_prior import EmbeddingPrior
from models.samplers import Denoise

SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity, to tell images apart
STIFFNESS = 3.0  # the same of the map: the more, the less it depends on the image


class Trait(NamedTuple):
    """The difference between two sentences, as a map of image embeddings.

    before, after: (D,), means of images that lack it, and of images that have it.
    matrix: (D, D), what the map makes of an image's offset from the mean before.
    weights: (D,), of Fisher's discriminant (1936) between images of both sentences.
    border: its value halfway between images of both sentences.
    level: its value for images of the second sentence.
    """

    before: Tensor
    after: Tensor
    matrix: Tensor
    weights: Tensor
    border: Tensor
    level: Tensor


def trait_between(before: Tensor, after: Tensor) -> Trait:
    """Return the trait that embeddings (N, D) of one sentence lack and those of another have.

    Both are samples of a prior, of unit length. Samples that look like those of the other sentence
    do not count: "a person" may have a beard. The map is that of optimal transport between normal
    distributions (Dowson & Landau 1982).
    """
    weights = torch.linalg.solve(
        (_covariance(before, SHRINKAGE) + _covariance(after, SHRINKAGE)) / 2,
        after.mean(dim=0) - before.mean(dim=0),
    )
    scores, wanted = before @ weights, after @ weights
    border, level = (scores.mean() + wanted.mean()) / 2, wanted.median()
    before, after = before[scores <= border], after[wanted >= border]
    narrow, wide = (_covariance(y, STIFFNESS).double() for y in (after, before))
    root, inverse = _power(wide, 0.5), _power(wide, -0.5)
    matrix = inverse @ _power(root @ narrow @ root, 0.5) @ inverse
    return Trait(before.mean(dim=0), after.mean(dim=0), matrix.to(before), weights, border, level)


def _covariance(y: Tensor, shrinkage: float) -> Tensor:
    """Return the covariance of embeddings (N, D), shrunk towards its mean variance."""
    covariance = y.T.cov(correction=0)
    covariance.diagonal().add_(shrinkage * covariance.diagonal().mean())
    return covariance


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Return a power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(1e-12) ** exponent @ vectors.T


def with_trait(y: Tensor, trait: Trait, amount: float = 1.0) -> Tensor:
    """Move embeddings (N, D) of unit length to where images show a trait -> (N, D).

    Those that show it already stay where they are. amount: of the way there.
    """
    there = trait.after + (y - trait.before) @ trait.matrix  # the matrix is symmetric
    shown = (y @ trait.weights >= trait.level)[:, None]
    return torch.where(shown, y, F.normalize(y.lerp(there, amount), dim=1))


def unlike(y: Tensor, trait: Trait) -> Tensor:
    """Move embeddings (N, D) that look like the first sentence to where the second one's are."""
    rows = y.split(1)  # so that the rounding of a row does not depend on the others
    return torch.cat(
        [with_trait(row, trait) if row[0] @ trait.weights < trait.border else row for row in rows]
    )


class PriorUnlike(NamedTuple):
    """A prior whose embeddings do not look like images of a trait's first sentence."""

    prior: EmbeddingPrior
    trait: Trait

    def sample(self, y: Tensor, noise: Tensor, freedom: float, candidates: int = 1) -> Tensor:
        """Sample an image embedding for each condition y (N, D); see EmbeddingPrior."""
        return unlike(self.prior.sample(y, noise, freedom, candidates=candidates), self.trait)


Prior = EmbeddingPrior | PriorUnlike


def keeping(denoise: Denoise, clean: Tensor, mask: Tensor) -> Denoise:
    """Return a denoiser that returns the known image outside of a mask.

    So every solver leads there to the known latents. Song 2020 ("Score-Based
    Generative Modeling", appendix I.2) and RePaint replace the noised images instead.

    clean: (C, H, W). mask: (1, H, W), 1 = new, 0 = known, or in between.
    """

    def denoise_inside(x: Tensor, sigma: float) -> Tensor:
        return clean.lerp(denoise(x, sigma), mask)

    return denoise_inside


class AgainstCondition(EDMPrecond):
    """A denoiser whose guidance leads away from a condition instead of from none.

    Rows of zeros, which mean "no condition", get it.
    """

    negative: Tensor

    def __init__(self, denoiser: EDMPrecond, negative: Tensor) -> None:
        """negative: (D,). Both denoisers share one network."""
        super().__init__(denoiser.model, denoiser.sigma_data, denoiser.distilled_sigmas)
        self.adapters = denoiser.adapters
        self.register_buffer("negative", negative, persistent=False)

    def forward(
        self, x: Tensor, sigma: Tensor | float, cond: Tensor | None = None, *rest: Any, **more: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Denoise x (N, C, H, W); see EDMPrecond."""
        if cond is not None:
            empty = (cond == 0).all(dim=1, keepdim=True)
            cond = torch.where(empty, self.negative.to(cond), cond)
        return super().forward(x, sigma, cond, *rest, **more)
