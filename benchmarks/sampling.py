"""Time of a picture: the presets `fast` and `paper`, and what each switch of `fast` gives.

    python benchmarks/sampling.py                       # the shipped network, 16 pictures at once
    python benchmarks/sampling.py --network DiT-S/2     # random weights, 256x256 pixels, SD's VAE

All draw with guidance (both halves in one batch) from seeds to pixels, decoding included. `paper`
is the baseline: 40 Heun steps of the eager network in float32. What the pictures are worth is
measured by benchmarks/sampling_quality.py.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import AutoencoderKL

from benchmarks import timing
from models.autoencoder import LDM_SCALE_FACTOR, Autoencoder
from models.edm import EDMPrecond, build_denoiser
from models.samplers import nfe
from utils.config.command_line import HelpFormatter
from utils.config.sections import Sampling
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoders import load_config_autoencoder
from utils.sampling.generate import generate, sampler_settings

SHIPPED = "assets/demo/dit.safetensors"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VARIANTS = {
    "`paper`: 40 Heun steps, float32": {"preset": "paper"},
    "40 Heun steps, bf16": {"preset": "paper", "amp": "bf16"},
    "`fast` in float32": {"preset": "fast", "amp": "no"},
    "`fast`": {"preset": "fast"},
}


def sd_vae() -> AutoencoderKL:
    """Stable Diffusion's VAE at its full size, with random weights."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )


def load(network: str) -> tuple[EDMPrecond, Autoencoder]:
    """The shipped networks, or random ones of the named size for latents of 4x32x32."""
    if network == SHIPPED:
        denoiser, config = load_denoiser(network, DEVICE)
        return denoiser, load_config_autoencoder(config, DEVICE)
    torch.manual_seed(0)
    denoiser = build_denoiser(network, 32, 4, 512).to(DEVICE).eval().requires_grad_(False)
    vae = Autoencoder(sd_vae(), LDM_SCALE_FACTOR, torch.device(DEVICE), torch.float32)
    return denoiser, vae


def setup(network: str, sampling: Sampling, count: int) -> timing.Work:
    """Draws `count` pictures in one batch; one step is run for warming up."""
    denoiser, vae = load(network)
    conds = torch.nn.functional.normalize(torch.randn(count, denoiser.model.cond_dim), dim=1)

    def draw(sampling: Sampling) -> None:
        batches = generate(
            denoiser,
            vae,
            conds,
            range(count),
            sampler_settings(sampling),
            cfg_scale=2.0,
            interval=sampling.guidance_interval,
            batch_size=count,
            device=DEVICE,
            amp=sampling.amp,
        )
        for _, images in batches:
            assert images.float().std() > 0

    draw(sampling.model_copy(update={"num_steps": 1}))
    return partial(draw, sampling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    timing.add_arguments(parser)
    parser.add_argument("--network", default=SHIPPED, help="a size such as DiT-S/2; or the shipped")
    parser.add_argument("--count", type=int, default=16, help="pictures of a batch")
    args = parser.parse_args()
    timing.start(args)
    settings = {name: Sampling(**values) for name, values in VARIANTS.items()}
    if args.network != SHIPPED:
        settings = {name: settings[name] for name in (next(iter(VARIANTS)), "`fast`")}
    setups = {name: partial(setup, args.network, s, args.count) for name, s in settings.items()}
    timings = timing.compare(setups, args.repeats, warmup=0)
    baseline = next(iter(timings.values())).median
    rows = [
        {
            "sampler": name,
            "network evaluations": nfe(sampler_settings(settings[name])),
            "s/picture": timings[name].median / args.count,
            "times as fast": baseline / timings[name].median,
            "peak memory, GB": timings[name].peak / 1e9,
        }
        for name in settings
    ]
    what = "the shipped network, 128×128 pixels"
    if args.network != SHIPPED:
        what = f"{args.network} with decoder, random weights, 256×256 pixels, SD's VAE"
    title = f"Sampling with guidance: {what}, {args.count} at once"
    notes = ["A network evaluation with guidance is one batch of both halves."]
    timing.report(args.out, title, rows, notes)


if __name__ == "__main__":
    main()
