"""The losses of the demo's CLIP, and the teacher that both towers learn from."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo.make_faces import ATTRIBUTES
from models.perturbation import Perturbation, perturb
from research.attributes.classifier import SIZES, attribute_loss

PERTURBATIONS = (Perturbation("gaussian", 1.0), Perturbation("gaussian", 2.0))
HEAD_SCALE = 10.0  # factor on the unit-length embeddings that the attribute layer reads
# Weights of the naming loss: attributes that a plain mean leaves behind get more.
NAMING = {
    "expression": 12.0,
    "hair_color": 2.0,
    "clothes": 1.5,
    "clothes_color": 1.5,
    "headwear_color": 1.5,
    "eyes": 1.5,
}


class AttributeTeacher(nn.Module):
    """A perfect reader of captions, and a layer that names attributes. Neither is kept.

    Each value of each attribute has a vector. The embedding of a caption is the sum of the vectors
    of what it states. The image tower learns to match these sums. Then the vectors are fitted to
    the image embeddings, and the text tower learns to write the sums.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.values = nn.Embedding(sum(SIZES), dim)
        self.head = nn.Linear(dim, sum(SIZES))
        self.register_buffer("common", torch.zeros(dim))
        self.register_buffer("first", torch.tensor([0, *np.cumsum(SIZES)[:-1]]), persistent=False)
        weights = torch.tensor([NAMING.get(name, 1.0) for name in ATTRIBUTES])
        self.register_buffer("weights", weights / weights.mean(), persistent=False)
        self.common: Tensor
        self.first: Tensor
        self.weights: Tensor

    def embed(self, codes: Tensor) -> Tensor:
        """Return the embedding of stated attributes: (N, A) int64, −1 = not stated → (N, D)."""
        stated = (codes >= 0).unsqueeze(2)
        vectors = self.values(codes.clamp(min=0) + self.first)  # (N, A, D)
        return F.normalize(self.common + (vectors * stated).sum(1), dim=1)

    @torch.no_grad()
    def fit(self, image: Tensor, codes: Tensor) -> None:
        """Fit the vectors to image embeddings, as a sum over the attributes (least squares).

        An attribute that a caption leaves out then counts with its mean over all faces, so that a
        caption's embedding is about the mean of the images that it is true of.

        image: (N, D) of unit length.
        codes: (N, A) int64, the attributes that the faces show; −1 = hidden.
        """
        shown = [F.one_hot(column.clamp(min=0), size) * (column >= 0).unsqueeze(1)
                 for column, size in zip(codes.T, SIZES, strict=True)]  # fmt: skip
        values = torch.cat(shown, dim=1).float()  # (N, all values)
        inputs = torch.cat([values, torch.ones(len(codes), 1)], dim=1)
        # The values of an attribute add up to one, so that a little ridge makes the fit unique.
        gram = inputs.T @ inputs + 1e-3 * torch.eye(inputs.shape[1])
        fitted = torch.linalg.solve(gram, inputs.T @ image)[:-1]
        means = (values.mean(0).unsqueeze(1) * fitted).split(SIZES)
        mean = torch.cat(
            [part.sum(0).expand(size, -1) for part, size in zip(means, SIZES, strict=True)]
        )
        self.values.weight.copy_(fitted - mean)
        self.common.copy_(image.mean(0))

    def naming_loss(self, y: Tensor, codes: Tensor) -> Tensor:
        """Return the loss of naming attributes from embeddings and from perturbed embeddings.

        y: (N, D) of unit length.
        codes: (N, A) int64, −1 does not count.
        """
        inputs = [y, *(perturb(y, one) for one in PERTURBATIONS)]
        losses = [attribute_loss(self.head(HEAD_SCALE * x), codes, self.weights) for x in inputs]
        return torch.stack(losses).mean()


def truth(codes: np.ndarray, stated: np.ndarray) -> Tensor:
    """Return for each caption and each face whether the caption is true of the face.

    Args:
        codes: (N, A) int, the attributes of face i, which caption i is about.
        stated: (N, A) bool, the attributes that caption i states.

    Returns:
        (N captions, N faces) bool
    """
    agree = codes[:, None, :] == codes[None, :, :]
    return torch.from_numpy((agree | ~stated[:, None, :]).all(axis=2))


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """Return CLIP's symmetric cross-entropy (Radford 2021) with all true partners as targets.

    Args:
        image, text: (N, D) of unit length.
        scale: inverse temperature.
        true: (N captions, N faces) bool.
    """
    logits = scale * text @ image.T
    to_image = true.float() / true.sum(1, keepdim=True)
    to_text = true.T.float() / true.T.sum(1, keepdim=True)
    return (F.cross_entropy(logits, to_image) + F.cross_entropy(logits.T, to_text)) / 2
