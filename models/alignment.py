"""Alignment of a denoiser's tokens to patch features of a frozen image network, in training alone.

Tokens after some block of the encoder are mapped to the features of the clean image. The loss adds
how far they are apart (REPA, Yu et al. 2025, arXiv 2410.06940, equation 8). The features are those
of models/patch_features.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.edm import EDMPrecond
from models.token_mask import TokenMask


def cosine_distance(tokens: Tensor, features: Tensor) -> Tensor:
    """Return the mean of 1 - cosine over the tokens of each image: (N, T, F) twice -> (N,)."""
    tokens, features = tokens.float(), features.float()
    # cosine_similarity of PyTorch divides whole tensors, which takes twice the time.
    lengths = torch.linalg.vector_norm(tokens, dim=2) * torch.linalg.vector_norm(features, dim=2)
    cosine = (tokens * features).sum(dim=2) / lengths.clamp_min(1e-8)
    return 1 - cosine.mean(dim=1)


class AlignmentHead(nn.Module):
    """The map from tokens to features, and their distance.

    Two linear layers see each token by itself. A 3x3 convolution (iREPA) sees gaps where tokens are
    hidden; with it the demo's network learned less, at dearer steps.
    """

    def __init__(self, width: int, features: int) -> None:
        """width: of a token. features: of a patch."""
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, features), nn.SiLU(), nn.Linear(features, features)
        )

    def forward(self, tokens: Tensor, features: Tensor | None, mask: TokenMask | None) -> Tensor:
        """Return the distance of each image -> (N,) float32.

        tokens: (N, L, D), or the kept ones (N, K, D) of `mask`. features: (N, F, G, G), L = G * G;
        None = the distance is 0, and so is its gradient.
        """
        if features is None:  # DistributedDataParallel wants a gradient of each weight
            return torch.stack([0 * p.sum() for p in self.parameters()]).sum().expand(len(tokens))
        features = features.flatten(2).transpose(1, 2)  # (N, L, F)
        if mask is not None:
            kept = mask.ids_keep[:, :, None].expand(-1, -1, features.shape[2])
            features = features.gather(1, kept)  # (N, K, F)
        return cosine_distance(self.mlp(tokens), features)


class AlignedDenoiser(nn.Module):
    """A denoiser with the head that aligns its tokens: what the steps of a training run.

    depth: the block of the encoder, from 1, whose tokens are aligned.
    The denoiser itself has no further weights, and is used without the head.
    """

    def __init__(self, denoiser: EDMPrecond, features: int, depth: int) -> None:
        """features: width of the features of a patch."""
        super().__init__()
        self.denoiser, self.depth = denoiser, depth
        self.head = AlignmentHead(denoiser.model.architecture.hidden_size, features)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        cond: Tensor | None = None,
        mask: TokenMask | None = None,
        *,
        features: Tensor | None = None,
        **options: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Denoise as EDMPrecond does -> (N, C, H, W), and the distance of each image (N,).

        features: (N, F, G, G) of the clean images; None = the distance is 0.
        """
        denoised, tokens = self.denoiser(x, sigma, cond, mask, tokens_after=self.depth, **options)
        return denoised, self.head(tokens, features, mask)
