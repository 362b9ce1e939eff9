"""From seeds and conditions to images, in batches.

An image depends only on its seed, its condition, the weights and the `sampling` section of the
config. CPUs and GPUs round sums of another batch size differently, by at most 1 of 255 in float32;
docs/use.md states the bounds. In half precision a CPU samples blocks of a fixed size, so that the
batch changes nothing. Each seed has its own generator, which gives the latent first, then what the
caller asks for, then the noise of the prior if there is one, then the churn noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import chain
from typing import TYPE_CHECKING

import torch

from models.editing import Prior
from models.edm import EDMPrecond
from models.finite import is_finite
from models.samplers import Denoise, SamplerSettings, SeededNoise, guided, sample
from utils.base.errors import UserError, note
from utils.base.finite import OVERFLOW
from utils.base.out_of_memory import OomBatchSplitter
from utils.base.read_ahead import read_ahead
from utils.config.sampling_sections import Sampling

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder

# (denoiser with its guidance, unit normal latents, settings) -> images, all (B, C, h, w).
Solve = Callable[[Denoise, torch.Tensor, SamplerSettings], torch.Tensor]
# A CPU rounds half-precision products of few rows differently, by up to 55 of 255 in an image. So
# many tokens at once cost it little time, and one image of the demo waits for three others.
CPU_TOKENS = 256
AMP_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sampler_settings(
    sampling: Sampling, distilled_sigmas: tuple[float, ...] | None = None
) -> SamplerSettings:
    """Return the sampler of a config's `sampling` section.

    distilled_sigmas: `distill.sigmas` of the network, which is a student then; None = it is none.
    Raises UserError if values do not go together, or if a student would be sampled with other
    settings than it was distilled for.
    """
    try:
        settings = SamplerSettings(
            **{f.name: getattr(sampling, f.name) for f in fields(SamplerSettings)}
        )
    except ValueError as fault:
        raise UserError(f"sampling: {fault}") from fault
    is_euler = settings.solver == "euler" and not settings.S_churn
    fits = is_euler and settings.sigmas == distilled_sigmas and sampling.cfg_scale in (None, 1)
    if distilled_sigmas is not None and not fits:
        listed = ",".join(f"{sigma:g}" for sigma in distilled_sigmas)
        raise UserError(
            f"sampling: the network is a student, distilled for Euler steps at sigmas=[{listed}] "
            "without further guidance; use preset instant and cfg_scale None"
        )
    return settings


def latent_shape(denoiser: EDMPrecond) -> tuple[int, int, int]:
    """Return the shape (C, h, w) of one latent of a denoiser."""
    model = denoiser.model
    return model.in_channels, model.img_size, model.img_size


def block_size(denoiser: EDMPrecond, sampling: Sampling) -> int | None:
    """Return the images that a CPU samples together, or None if that may be any number."""
    if sampling.amp == "no" or next(denoiser.parameters()).device.type != "cpu":
        return None
    return max(1, CPU_TOKENS // denoiser.model.num_patches)


def in_blocks(count: int, size: int | None) -> list[list[int]]:
    """Cut 0 … count - 1 into blocks of `size`; the last number fills up the last block.

    None = one block of them all.
    """
    size = size or max(count, 1)
    filled = [*range(count), *[count - 1] * (-count % size)]
    return [filled[start : start + size] for start in range(0, len(filled), size)]


@torch.inference_mode()
def sample_images(
    denoiser: EDMPrecond,
    autoencoder: Autoencoder,
    noise: SeededNoise,
    latents: torch.Tensor,
    conds: torch.Tensor | None,
    sampling: Sampling,
    prior: Prior | None = None,
    solve: Solve | None = None,
) -> torch.Tensor:
    """Sample and decode one batch of images: (B, H, W, 3) uint8 on the CPU.

    noise: generators of the seeds, which go on from where they are: first the noise of the prior,
        then the churn noise.
    latents: (B, C, h, w) unit normal.
    conds: (B, D), or None for a model without condition. External features, if the network reads
        them, are the last columns.
    sampling: sampler, guidance and precision. `amp` is the precision of the network, and bf16 also
        that of the decoder. The sampler's state stays in float64.
    prior: samples another condition for each seed, with `sampling.freedom`; None = none does.
    solve: replaces the sampler, e.g. by a scheduler of diffusers.

    Raises UserError if values of `sampling` do not go together, or an image is not finite.
    """
    settings, amp = sampler_settings(sampling, denoiser.distilled_sigmas), sampling.amp
    if sampling.freedom and conds is not None:
        if prior is None:
            raise ValueError("sampling.freedom needs the prior of load_config_prior")
        if isinstance(sampling.freedom, str):
            raise ValueError("sampling.freedom needs the number of with_proposed_freedom")
        conds = prior.sample(
            conds,
            noise.randn(conds.shape[1:]),
            sampling.freedom,
            candidates=sampling.prior_candidates,
        )
    denoise = guided(
        denoiser, conds, sampling.cfg_scale, sampling.guidance_interval, denoiser.model.cond_dim
    )
    with torch.autocast(latents.device.type, AMP_DTYPES[amp], enabled=amp != "no"):
        if solve is None:
            x = sample(denoise, latents, settings, randn=lambda like: noise.randn(like.shape[1:]))
        else:
            x = solve(denoise, latents, settings)
    rescued = autoencoder.rescued
    with _decoding(autoencoder, amp):
        pixels = autoencoder.decode(x.float())  # (B, 3, H, W) in [-1, 1]
    if autoencoder.rescued > rescued == 0:  # once
        note(
            "the VAE overflows in half precision; such images are decoded again in float32, which "
            "takes longer; encoders.precision=float32 and sampling.amp=no decode all of them so"
        )
    images = (pixels * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    images = images.permute(0, 2, 3, 1).cpu()
    if not is_finite(pixels):  # asked after the images came: it costs no further wait
        raise UserError(f"sampling: {_cause(conds, x.float(), sampling, denoiser.adapters)}")
    return images


def _decoding(autoencoder: Autoencoder, amp: str) -> torch.autocast:
    """Return the precision of the decoder: bfloat16 if the network's is, else its weights'.

    Stable Diffusion's VAEs overflow in float16. A CPU normalises no bfloat16 with weights of
    float16, which `encoders.precision=fp16` asks for.
    """
    device, is_half = autoencoder.device.type, autoencoder.dtype == torch.float16
    enabled = amp == "bf16" and not (is_half and device == "cpu")
    return torch.autocast(device, torch.bfloat16, enabled=enabled)


def _cause(
    conds: torch.Tensor | None, latents: torch.Tensor, sampling: Sampling, adapters: Sequence[str]
) -> str:
    """Return why images are not finite, and what to change."""
    if conds is not None and not is_finite(conds):
        return (
            "the condition holds NaN or infinite numbers; make the embeddings again, and the prior "
            f"(encoders.prior) if sampling.freedom is above 0; {OVERFLOW}"
        )
    if is_finite(latents):
        return f"the VAE gave NaN or infinite pixels; {OVERFLOW}"
    adapted = f"bring the weight of {', '.join(adapters)} nearer to 0; else " if adapters else ""
    return (
        f"the network gave NaN or infinite latents; {adapted}bring sampling.cfg_scale "
        f"({sampling.cfg_scale}) nearer to 1, or set sampling.amp=no"
    )


def generate(
    denoiser: EDMPrecond,
    autoencoder: Autoencoder,
    conds: torch.Tensor | None,
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    prior: Prior | None = None,
    batch_size: int = 16,
    solve: Solve | None = None,
) -> Iterator[tuple[range, torch.Tensor]]:
    """Yield finished batches: positions in `seeds`, and their images (B, H, W, 3) uint8 on the CPU.

    conds: (N, D), one for each seed, or None for a model without condition.
    prior: of utils.pretrained.priors.load_config_prior.
    sampling, solve: see `sample_images`.
    batch_size: images; a CPU in half precision samples whole blocks of `block_size`.
    A batch that does not fit into memory is sampled in halves.

    Raises UserError if values of `sampling` do not go together.
    """
    in_memory, device = OomBatchSplitter("sampling"), next(denoiser.parameters()).device
    block = block_size(denoiser, sampling)

    def sample_block(positions: list[int]) -> torch.Tensor:
        noise = SeededNoise([seeds[p] for p in positions], device)
        latents = noise.randn(latent_shape(denoiser))
        batch = None if conds is None else conds[positions].to(device)
        return sample_images(denoiser, autoencoder, noise, latents, batch, sampling, prior, solve)

    def sample_batch(positions: range) -> torch.Tensor:
        blocks = in_blocks(len(positions), block)
        parts = [in_memory(sample_block, [positions[row] for row in rows]) for rows in blocks]
        return torch.cat(list(chain(*parts)))[: len(positions)]

    everything, size = range(len(seeds)), -(-batch_size // (block or 1)) * (block or 1)
    batches = [everything[start : start + size] for start in everything[::size]]
    # A thread samples the next batch while the caller saves or evaluates this one.
    yield from zip(batches, read_ahead(sample_batch, batches, threads=1, ahead=1), strict=True)
