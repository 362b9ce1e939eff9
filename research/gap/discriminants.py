"""A linear probe: it names groups of image embeddings, and learns without a training."""

from __future__ import annotations

import torch
from torch import Tensor

SHRINKAGE = 0.3  # of the covariance; held-out faces and photographs chose it, and 0.1 is as good


class Discriminants:
    """Linear discriminants of groups of image embeddings (Fisher 1936), for few images of each.

    The covariance that all groups have in common is shrunk towards its mean variance.
    """

    def __init__(self, images: Tensor, groups: Tensor) -> None:
        """`images`: (N, D). `groups`: (N, G) bool, the images of each group.

        A group without images is taken for the mean of all.
        """
        self.mean = images.mean(dim=0)
        offset = (images - self.mean).double()
        covariance = offset.T @ offset / len(images)
        variance = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.double)
        means = groups.double().T @ offset / groups.sum(dim=0)[:, None].clamp_min(1)  # (G, D)
        self.weights = torch.linalg.solve(covariance.lerp(variance, SHRINKAGE), means.T)  # (D, G)
        self.bias = (self.weights * means.T).sum(dim=0) / 2

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Return how much likelier than the mean of all images a group is: (…, D) -> (…, G)."""
        return (embeddings - self.mean).double() @ self.weights - self.bias
