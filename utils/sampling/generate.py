"""From seeds and conditions to images, in batches.

An image depends on its seed, its condition, the weights and the sampler's settings only: each seed
has a generator of its own (first the latent, then whatever the caller draws, then churn noise).
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields

import torch

from models.autoencoder import Autoencoder
from models.edm import EDMPrecond
from models.samplers import SamplerSettings, SeededNoise, guided, sample
from utils.base.errors import UserError
from utils.base.out_of_memory import Halving
from utils.base.read_ahead import read_ahead
from utils.config.sections import Sampling

AMP_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sampler_settings(sampling: Sampling) -> SamplerSettings:
    """The sampler that a config's `sampling` section describes; UserError if there is none such."""
    try:
        return SamplerSettings(
            **{f.name: getattr(sampling, f.name) for f in fields(SamplerSettings)}
        )
    except ValueError as fault:
        raise UserError(f"sampling: {fault}") from fault


def latent_shape(denoiser: EDMPrecond) -> tuple[int, int, int]:
    """(C, H, W) of the latents that a denoiser takes."""
    model = denoiser.model
    return model.in_channels, model.img_size, model.img_size


@torch.inference_mode()
def draw_images(
    denoiser: EDMPrecond,
    autoencoder: Autoencoder,
    noise: SeededNoise,
    latents: torch.Tensor,
    conds: torch.Tensor | None,
    settings: SamplerSettings,
    *,
    cfg_scale: float | None = None,
    interval: tuple[float, float] | None = None,
    amp: str = "no",
) -> torch.Tensor:
    """One batch: (B, C, h, w) unit normal latents and (B, D) conditions -> (B, H, W, 3) uint8, CPU.

    External features, if the network takes such, are the last columns of `conds`.
    `noise` gives the churn noise and goes on from where its seeds' generators are.
    `cfg_scale`, `interval`: see models.samplers.guided. `amp`: precision of the network, 'no'
    (float32), 'bf16' or 'fp16', and with 'bf16' of the decoder; the sampler's state keeps its own.
    """
    denoise = guided(denoiser, conds, cfg_scale, interval, denoiser.model.cond_dim)
    with torch.autocast(latents.device.type, AMP_DTYPES[amp], enabled=amp != "no"):
        x = sample(denoise, latents, settings, randn=lambda like: noise.randn(like.shape[1:]))
    # Published VAEs overflow in float16.
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=amp == "bf16"):
        pixels = autoencoder.decode(x.float())  # (B, 3, H, W) in [-1, 1]
    pixels = (pixels * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu()


def generate(
    denoiser: EDMPrecond,
    autoencoder: Autoencoder,
    conds: torch.Tensor | None,
    seeds: Sequence[int],
    settings: SamplerSettings,
    *,
    cfg_scale: float | None = None,
    interval: tuple[float, float] | None = None,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    amp: str = "no",
) -> Iterator[tuple[range, torch.Tensor]]:
    """Yield finished batches: positions in `seeds`, and their images (B, H, W, 3) uint8 on the CPU.

    `conds`: (N, D), one for each seed, or None for an unconditional model. See draw_images.
    A batch that does not fit into memory is drawn in halves.
    """
    batches = [
        range(start, min(start + batch_size, len(seeds)))
        for start in range(0, len(seeds), batch_size)
    ]

    in_memory = Halving("sampling")

    def draw(positions: range) -> torch.Tensor:
        parts = in_memory(lambda a, b: draw_part(positions[a:b]), len(positions))
        return torch.cat(parts)

    def draw_part(positions: range) -> torch.Tensor:
        noise = SeededNoise([seeds[p] for p in positions], device)
        latents = noise.randn(latent_shape(denoiser))
        batch = None if conds is None else conds[positions.start : positions.stop].to(device)
        return draw_images(
            denoiser,
            autoencoder,
            noise,
            latents,
            batch,
            settings,
            cfg_scale=cfg_scale,
            interval=interval,
            amp=amp,
        )

    # A thread draws the next batch while the caller saves or judges this one.
    yield from zip(batches, read_ahead(draw, batches, threads=1, ahead=1), strict=True)
