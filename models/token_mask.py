"""Tokens of an image that are hidden from a network in training (MaskDiT, Zheng et al. 2023)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.batch_random import WHOLE_BATCH, BatchRandom


@dataclass(frozen=True)
class TokenMask:
    """Tokens of each image that are hidden from the encoder.

    mask: (N, L) float32, 1 = hidden, 0 = kept.
    ids_keep: (N, K) int64, positions of the kept tokens in the order the encoder sees them.
    ids_restore: (N, L) int64, where each position lies in the row "kept tokens, then hidden ones".
    """

    mask: Tensor
    ids_keep: Tensor
    ids_restore: Tensor

    @property
    def hides_nothing(self) -> bool:
        """Return True if all tokens are kept."""
        return self.ids_keep.shape[1] == self.mask.shape[1]


def kept_tokens(length: int, ratio: float) -> int:
    """Return how many of `length` tokens a mask of this ratio keeps."""
    return int(length * (1 - ratio))


def random_mask(
    n: int,
    length: int,
    ratio: float,
    device: torch.device | str = "cpu",
    rng: BatchRandom = WHOLE_BATCH,
) -> TokenMask:
    """Hide a random fraction `ratio` of `length` tokens, another one for each of `n` images.

    The first `kept_tokens` of a random permutation are kept.
    Raises ValueError if that would leave none.
    """
    kept = kept_tokens(length, ratio)
    if not 0 < kept <= length:
        raise ValueError(f"mask ratio {ratio} keeps {kept} of {length} tokens; use 0 <= ratio < 1")
    order = rng.rand((n, length), device).argsort(dim=1)
    ids_restore = order.argsort(dim=1)
    return TokenMask((ids_restore >= kept).float(), order[:, :kept], ids_restore)


def restore(x: Tensor, filler: Tensor | None, mask: TokenMask) -> Tensor:
    """Put kept tokens x (N, K, D) back in place, `filler` (D) or zeros in the gaps -> (N, L, D)."""
    n, kept, width = x.shape
    filler = x.new_zeros(1) if filler is None else filler.to(x.dtype)
    gaps = filler.expand(n, mask.ids_restore.shape[1] - kept, width)
    row = torch.cat([x, gaps], dim=1)
    return row.gather(1, mask.ids_restore[:, :, None].expand(-1, -1, width))
