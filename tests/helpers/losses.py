"""The training loss for tests that inject no draws."""

import torch

from models.draws import BatchDraws
from models.edm import draw_for_loss, edm_loss


def loss_of(denoiser, clean, cond, mask_ratio=0.0, generator=None, **options) -> torch.Tensor:
    """Draw from `generator` and return the loss of each image (N,); `options` go to edm_loss."""
    draws = draw_for_loss(denoiser, clean, cond, mask_ratio, BatchDraws(generator))
    return edm_loss(denoiser, clean, cond, draws, **options)
