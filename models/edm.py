"""EDM preconditioning and loss (Karras et al. 2022) with the masked loss of MaskDiT (2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import Architecture, Backbone
from models.backbones import MODEL_SIZES, backbone_of
from models.batch_random import WHOLE_BATCH, BatchRandom
from models.token_mask import TokenMask, random_mask


class EDMPrecond(nn.Module):
    """Denoiser D(x; sigma, cond) built round a network F (Karras 2022, equation 7 and table 1).

    sigma_data: standard deviation of the clean latents. The network's input and target have unit
        variance if it is right.
    distilled_sigmas: the noise levels for which the network was distilled; see
        models/distillation.py. None = it denoises at any sigma.
    adapters: names of the adapters that its weights hold.
    """

    def __init__(
        self,
        model: Backbone,
        sigma_data: float = 0.5,
        distilled_sigmas: Sequence[float] | None = None,
    ):
        super().__init__()
        self.model = model
        self.sigma_data = sigma_data
        self.distilled_sigmas = None if distilled_sigmas is None else tuple(distilled_sigmas)
        self.adapters: tuple[str, ...] = ()

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        cond: Tensor | None = None,
        mask: TokenMask | None = None,
        **options: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Denoise x (N, C, H, W), noised by sigma (N,) or scalar -> (N, C, H, W) float32.

        cond: (N, cond_width); a row of zeros, or None for all rows, means "no condition".
        options: `summary`, `cond_noise` and `tokens_after` of Backbone.forward; with the last one,
            the tokens are returned too.
        Autocast applies to the network F alone; the preconditioning stays in float32.
        Raises ValueError if the condition has another width than the network expects.
        """
        x, sigma = self._prepare(x, sigma, cond)
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        prediction = self.model(*self._network_input(x, sigma, cond), mask, **options)
        if options.get("tokens_after"):
            prediction, tokens = prediction
            return c_skip * x + c_out * prediction.float(), tokens
        return c_skip * x + c_out * prediction.float()

    def summary(self, x: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Return the encoder's summary (N, D) of x, for self_cond; arguments as in `forward`."""
        x, sigma = self._prepare(x, sigma, cond)
        return self.model.summary(*self._network_input(x, sigma, cond))

    def _prepare(
        self, x: Tensor, sigma: Tensor | float, cond: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return x in float32, and sigma (N, 1, 1, 1)."""
        if cond is not None and cond.shape[1] != self.model.cond_width:
            raise ValueError(
                f"the condition has {cond.shape[1]} features, the network {self.model.cond_width}"
            )
        if isinstance(sigma, Tensor):
            sigma = sigma.to(x.device, torch.float32)
        else:  # filled there: a copy from the host would wait for the device
            sigma = torch.full((), sigma, dtype=torch.float32, device=x.device)
        return x.float(), sigma.flatten().expand(x.shape[0])[:, None, None, None]

    def _network_input(
        self, x: Tensor, sigma: Tensor, cond: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return c_in x, c_noise and the condition (Karras 2022, table 1)."""
        c_in = 1 / (sigma**2 + self.sigma_data**2).sqrt()
        return c_in * x, sigma.flatten().log() / 4, None if cond is None else cond.float()


def build_denoiser(
    model_type: str,
    in_size: int,
    in_channels: int,
    cond_dim: int,
    sigma_data: float = 0.5,
    distilled_sigmas: Sequence[float] | None = None,
    **options: Any,
) -> EDMPrecond:
    """Build a denoiser of a size from MODEL_SIZES, for latents (in_channels, in_size, in_size).

    sigma_data, distilled_sigmas: see EDMPrecond.
    options: fields of Architecture. depth, hidden_size, patch_size and num_heads replace those of
        the named size. None leaves a field at its default.
    Raises ValueError for an unknown name, and for options that Architecture refuses.
    """
    backbone = backbone_of(model_type)
    given = {name: value for name, value in options.items() if value is not None}
    size = MODEL_SIZES[model_type]._asdict()
    architecture = Architecture(in_size, in_channels, cond_dim, **(size | given))
    return EDMPrecond(backbone(architecture), sigma_data, distilled_sigmas)


@dataclass(frozen=True)
class LossRandom:
    """Random numbers of one training loss; `random_for_loss` makes them.

    normal: (N, 1, 1, 1), unit normal; gives the noise levels.
    noise: (N, C, H, W), unit normal.
    mask: hides tokens; None = the encoder sees all of them.
    directions: (N, cond_dim) of the learned perturbation; None = it does not perturb.
    """

    normal: Tensor
    noise: Tensor
    mask: TokenMask | None = None
    directions: Tensor | None = None


def random_for_loss(
    denoiser: nn.Module,
    clean: Tensor,
    cond: Tensor | None,
    mask_ratio: float = 0.0,
    rng: BatchRandom = WHOLE_BATCH,
) -> LossRandom:
    """Return the random numbers of the loss of `clean` (N, C, H, W) and `cond`, on its device.

    The order is that of LossRandom's fields.
    """
    n, device, network = len(clean), clean.device, unwrapped(denoiser).model
    normal = rng.randn((n, 1, 1, 1), device)
    noise = rng.randn(clean.shape, device)
    mask = directions = None
    if mask_ratio > 0:
        mask = random_mask(n, network.num_patches, mask_ratio, device, rng)
    if cond is not None and network.architecture.perturbation and network.training:
        directions = rng.randn((n, network.cond_dim), device)
    return LossRandom(normal, noise, mask, directions)


def unwrapped(denoiser: nn.Module) -> EDMPrecond:
    """Return the network inside a DistributedDataParallel, AlignedDenoiser, both, or none."""
    inner = getattr(denoiser, "module", denoiser)
    inner = getattr(inner, "denoiser", inner)
    assert isinstance(inner, EDMPrecond)
    return inner


def edm_loss(
    denoiser: nn.Module,
    clean: Tensor,
    cond: Tensor | None,
    random: LossRandom,
    *,
    mae_loss_coef: float = 0.0,
    P_mean: float = -1.2,
    P_std: float = 1.2,
    encoder: EDMPrecond | None = None,
    features: Tensor | None = None,
) -> Tensor:
    """Compute the training loss of each image -> (N,) float32.

    An AlignedDenoiser also gives the alignment loss of each image -> (2, N).

    denoiser: an EDMPrecond or AlignedDenoiser, possibly wrapped for several processes.
    clean: (N, C, H, W) scaled latents. cond: (N, cond_width), or None.
    P_mean, P_std: ln(sigma) ~ N(P_mean, P_std²). Errors are weighted by lambda(sigma) (Karras 2022,
        table 1).
    mae_loss_coef: with a mask, the denoising error counts over kept patches. The hidden ones add
        this multiple of the reconstruction error (MaskDiT, section 3.3).
    encoder: gives the summaries for self_cond (the EMA network, as published); None = the denoiser.
    features: (N, F, G, G), for an AlignedDenoiser; None = it does not align.
    """
    inner = unwrapped(denoiser)
    patch_size, sigma_data = inner.model.patch_size, inner.sigma_data
    mask = None if random.mask is None or random.mask.hides_nothing else random.mask
    sigma = (P_mean + P_std * random.normal).exp()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    noised = clean + sigma * random.noise
    options = {} if random.directions is None else {"cond_noise": random.directions}
    if features is not None:
        options["features"] = features
    if inner.model.architecture.self_cond and encoder is not None:
        with torch.no_grad():
            options["summary"] = encoder.summary(noised, sigma, cond)
    output = denoiser(noised, sigma.flatten(), cond, mask, **options)
    denoised, *alignment = output if isinstance(output, tuple) else (output,)
    error = weight * (denoised - clean) ** 2  # (N, C, H, W)
    if mask is None:
        loss = error.flatten(1).mean(dim=1)
        return torch.stack([loss, *alignment]) if alignment else loss

    patch_error = patchify(error, patch_size).mean(dim=2)  # (N, L)
    loss = masked_mean(patch_error, 1 - mask.mask)
    if mae_loss_coef > 0:
        target = normalised_patches(noised, patch_size)
        patch_error = ((patchify(denoised, patch_size) - target) ** 2).mean(dim=2)
        loss = loss + mae_loss_coef * masked_mean(patch_error, mask.mask)
    return torch.stack([loss, *alignment]) if alignment else loss


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Cut (N, C, H, W) into patches (N, L, C * p * p), in row-major order."""
    return F.unfold(x, patch_size, stride=patch_size).transpose(1, 2)


def normalised_patches(x: Tensor, patch_size: int) -> Tensor:
    """Cut x into patches, each less its own mean and divided by its own standard deviation."""
    patches = patchify(x, patch_size)
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Average values (N, L) over the tokens where weights (N, L) is 1 -> (N,)."""
    return (values * weights).sum(dim=1) / weights.sum(dim=1)
