"""The training loss for tests that inject no random numbers."""

import torch

from models.batch_random import BatchRandom
from models.edm import edm_loss, random_for_loss


def loss_of(denoiser, clean, cond, mask_ratio=0.0, generator=None, **options) -> torch.Tensor:
    """Use `generator` and return the loss of each image (N,); `options` go to edm_loss."""
    random = random_for_loss(denoiser, clean, cond, mask_ratio, BatchRandom(generator))
    return edm_loss(denoiser, clean, cond, random, **options)
