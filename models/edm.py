"""EDM preconditioning and loss (Karras et al. 2022) with the masked loss of MaskDiT (2023)."""

import difflib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.maskdit import MODEL_SIZES, MaskDiT, TokenMask, random_mask


class EDMPrecond(nn.Module):
    """Denoiser D(x; sigma, cond) built round a network F (Karras 2022, equation 7 and table 1)."""

    def __init__(self, model: MaskDiT, sigma_data: float = 0.5):
        super().__init__()
        self.model = model
        self.sigma_data = sigma_data

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        cond: Tensor | None = None,
        mask: TokenMask | None = None,
        **options: Tensor | None,
    ) -> Tensor:
        """x (N, C, H, W) noised by sigma (N,) or scalar -> denoised (N, C, H, W) float32.

        cond: (N, cond_width); a row of zeros, or None for all rows, means "no condition".
        options: `summary` and `cond_noise` of MaskDiT.forward.
        Only the network itself is subject to autocast; its surroundings stay in float32.
        Raises ValueError if the condition has another width than the network expects.
        """
        x, sigma = self._prepare(x, sigma, cond)
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        prediction = self.model(*self._network_input(x, sigma, cond), mask, **options)
        return c_skip * x + c_out * prediction.float()

    def summary(self, x: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """The encoder's summary (N, D) of x, for self_cond; arguments as of `forward`."""
        x, sigma = self._prepare(x, sigma, cond)
        return self.model.summary(*self._network_input(x, sigma, cond))

    def _prepare(
        self, x: Tensor, sigma: Tensor | float, cond: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x in float32, and sigma (N, 1, 1, 1)."""
        if cond is not None and cond.shape[1] != self.model.cond_width:
            raise ValueError(
                f"the condition has {cond.shape[1]} features, the network {self.model.cond_width}"
            )
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
        return x.float(), sigma.flatten().expand(x.shape[0])[:, None, None, None]

    def _network_input(
        self, x: Tensor, sigma: Tensor, cond: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """c_in x, c_noise and the condition (Karras 2022, table 1)."""
        c_in = 1 / (sigma**2 + self.sigma_data**2).sqrt()
        return c_in * x, sigma.flatten().log() / 4, None if cond is None else cond.float()


def build_denoiser(
    model_type: str, in_size: int, in_channels: int, cond_dim: int, **options: Any
) -> EDMPrecond:
    """Denoiser of a named size from MODEL_SIZES, for latents (in_channels, in_size, in_size).

    options: keyword arguments of MaskDiT. depth, hidden_size, patch_size and num_heads replace
    those of the named size; None leaves them. Raises ValueError for an unknown name.
    """
    if model_type not in MODEL_SIZES:
        close = difflib.get_close_matches(model_type, MODEL_SIZES, n=1, cutoff=0.0)
        raise ValueError(f"unknown model type '{model_type}'; did you mean '{close[0]}'?")
    names = ("depth", "hidden_size", "patch_size", "num_heads")
    size = dict(zip(names, MODEL_SIZES[model_type], strict=True))
    options = {name: value for name, value in options.items() if value is not None}
    return EDMPrecond(MaskDiT(in_size, in_channels, cond_dim, **(size | options)))


def edm_loss(
    denoiser: EDMPrecond,
    clean: Tensor,
    cond: Tensor | None,
    *,
    mask_ratio: float = 0.0,
    mae_loss_coef: float = 0.0,
    P_mean: float = -1.2,
    P_std: float = 1.2,
    generator: torch.Generator | None = None,
    rnd_normal: Tensor | None = None,
    noise: Tensor | None = None,
    mask: TokenMask | None = None,
    cond_noise: Tensor | None = None,
    encoder: EDMPrecond | None = None,
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """Training loss of each image -> (N,) float32.

    clean: (N, C, H, W) scaled latents. Noise levels are drawn by ln(sigma) ~ N(P_mean, P_std²) and
    errors weighted by lambda(sigma) (Karras 2022, table 1). At mask_ratio > 0 (or with `mask`) the
    denoising error counts over kept patches, and the hidden ones add mae_loss_coef times the
    reconstruction error (MaskDiT, section 3.3).
    rnd_normal (N, 1, 1, 1), noise (N, C, H, W), mask, and for a learned perturbation in train mode
    cond_noise (N, cond_dim), replace what would be drawn, in this order, from `generator` (on the
    device of `clean`).
    encoder: gives the summaries for self_cond, the EMA network as published; None = the denoiser.
    first, total: `clean` are the images from `first` on of a batch of `total`, for all of which is
    drawn; processes that share a batch draw what one would, if their generators agree.
    """
    n, total = clean.shape[0], total or clean.shape[0]
    own = slice(first, first + n)
    inner = getattr(denoiser, "module", denoiser)  # what DistributedDataParallel wraps
    patch_size, sigma_data = inner.model.patch_size, inner.sigma_data
    draw = {"device": clean.device, "generator": generator}
    if rnd_normal is None:
        rnd_normal = torch.randn(total, 1, 1, 1, **draw)[own]
    if noise is None:
        noise = torch.randn(total, *clean.shape[1:], **draw)[own]
    if mask is None and mask_ratio > 0:
        mask = random_mask(total, inner.model.num_patches, mask_ratio, **draw).of(own)
    if cond_noise is None and cond is not None and inner.model.perturbation and inner.training:
        cond_noise = torch.randn(total, inner.model.cond_dim, **draw)[own]

    sigma = (P_mean + P_std * rnd_normal).exp()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    noised = clean + sigma * noise
    options = {} if cond_noise is None else {"cond_noise": cond_noise}
    if inner.model.self_cond and encoder is not None:
        with torch.no_grad():
            options["summary"] = encoder.summary(noised, sigma, cond)
    denoised = denoiser(noised, sigma.flatten(), cond, mask, **options)
    error = weight * (denoised - clean) ** 2  # (N, C, H, W)
    if mask is None:
        return error.flatten(1).mean(dim=1)

    patch_error = patchify(error, patch_size).mean(dim=2)  # (N, L)
    loss = masked_mean(patch_error, 1 - mask.mask)
    if mae_loss_coef > 0:
        target = normalised_patches(noised, patch_size)
        patch_error = ((patchify(denoised, patch_size) - target) ** 2).mean(dim=2)
        loss = loss + mae_loss_coef * masked_mean(patch_error, mask.mask)
    return loss


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """(N, C, H, W) -> (N, L, C * p * p), patches in row-major order."""
    return F.unfold(x, patch_size, stride=patch_size).transpose(1, 2)


def normalised_patches(x: Tensor, patch_size: int) -> Tensor:
    """Patches of x, each with its own mean removed and divided by its own standard deviation."""
    patches = patchify(x, patch_size)
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values (N, L) over the tokens where weights (N, L) is 1 -> (N,)."""
    return (values * weights).sum(dim=1) / weights.sum(dim=1)
