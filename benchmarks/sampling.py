"""Time the sampling of images: the presets `fast` and `paper`, and each change between them.

    python benchmarks/sampling.py                       # the shipped network, 16 images at once
    python benchmarks/sampling.py --student X.safetensors  # a distilled network too
    python benchmarks/sampling.py --network DiT-S/2     # random weights, 256x256 pixels, SD's VAE
    python benchmarks/sampling.py --network DiT-S/2 --only_decoding   # and a tiny autoencoder
    python benchmarks/sampling.py --freedom 0.7         # with the prior (docs/freedom.md)

All variants sample with guidance (both halves in one batch) from seeds to pixels, decoded.
`paper` is the baseline: 40 Heun steps of the eager network in float32. One row decodes alone.
Processor seconds count all threads, and are those of the last repetition.
research/sampling_quality/compare.py measures the quality of the images.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import timing
from models.autoencoder import Autoencoder
from models.edm import EDMPrecond, build_denoiser
from models.embedding_prior import EmbeddingPrior
from models.encoder_files import LDM_SCALE_FACTOR
from models.samplers import nfe
from models.tiny_autoencoder import TinyNetwork, tiny_with
from models.vae_network import VaeConfig, VaeNetwork
from utils.config.command_line import ArgumentParser
from utils.config.sampling_sections import Sampling
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import read_config
from utils.pretrained.encoders import load_config_autoencoder
from utils.pretrained.priors import read_prior
from utils.sampling.generate import generate, latent_shape, sampler_settings

SHIPPED = "assets/demo/dit.safetensors"
DECODING = "decoding alone, bf16"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VARIANTS = {
    "`paper`: 40 Heun steps, float32": Sampling(preset="paper", cfg_scale=2.0),
    "40 Heun steps, bf16": Sampling(preset="paper", amp="bf16", cfg_scale=2.0),
    "`fast` in float32": Sampling(preset="fast", amp="no", cfg_scale=2.0),
    "`fast`": Sampling(preset="fast", cfg_scale=2.0),
}


PREVIEW = "decoding alone, bf16, a tiny autoencoder of TAESD's size"


def taesd() -> TinyNetwork:
    """Return a tiny autoencoder of the published size, with random weights."""
    # Imported here: slow, and only a preview needs it.
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    return tiny_with(AutoencoderTiny().state_dict(), {}, "random weights")


def sd_vae() -> VaeNetwork:
    """Return Stable Diffusion's VAE at its full size, with random weights."""
    return VaeNetwork(VaeConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2))


def setup_decoding(network: str, count: int, is_preview: bool = False) -> timing.Work:
    """Return work that decodes `count` latents in bf16; decode once to warm up."""
    denoiser, vae, _ = load(network)
    if is_preview:
        vae = Autoencoder(taesd(), 1.0, torch.device(DEVICE), torch.float32)
    latents = torch.randn(count, *latent_shape(denoiser), device=DEVICE)

    def decode() -> float:
        started = time.process_time()
        with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
            assert vae.decode(latents).float().std() > 0
        return time.process_time() - started

    decode()
    return decode


def load(network: str) -> tuple[EDMPrecond, Autoencoder, EmbeddingPrior | None]:
    """Load the shipped networks, or make random ones of a size for latents of 4x32x32."""
    if Path(network).is_file():
        denoiser, config = load_denoiser(network, DEVICE)
        path = config.encoders.prior
        prior = None if path is None else read_prior(path)[0].to(DEVICE)
        return denoiser, load_config_autoencoder(config, DEVICE), prior
    torch.manual_seed(0)
    denoiser = build_denoiser(network, 32, 4, 512).to(DEVICE).eval().requires_grad_(False)
    vae = Autoencoder(sd_vae(), LDM_SCALE_FACTOR, torch.device(DEVICE), torch.float32)
    return denoiser, vae, None


def setup(network: str, sampling: Sampling, count: int) -> timing.Work:
    """Return work that generates `count` images in one batch; run one step to warm up."""
    denoiser, vae, prior = load(network)
    conds = torch.nn.functional.normalize(torch.randn(count, denoiser.model.cond_dim), dim=1)

    def run(sampling: Sampling) -> float:
        started = time.process_time()
        batches = generate(
            denoiser,
            vae,
            conds,
            range(count),
            sampling,
            prior=prior,
            batch_size=count,
        )
        for _, images in batches:
            assert images.float().std() > 0
        return time.process_time() - started

    run(sampling if sampling.sigmas else sampling.model_copy(update={"num_steps": 1}))
    return partial(run, sampling)


def main() -> None:
    """Time all variants and report the table."""
    parser = ArgumentParser(description=__doc__)
    timing.add_arguments(parser)
    parser.add_argument("--network", default=SHIPPED, help="shipped weights, or a size (DiT-S/2)")
    parser.add_argument(
        "--student", action="append", default=[], help="a distilled network too; may be repeated"
    )
    parser.add_argument(
        "--freedom", type=float, default=0.0, help="above 0: sample with the shipped prior"
    )
    parser.add_argument("--count", type=int, default=16, help="images of a batch")
    parser.add_argument(
        "--only_decoding", action="store_true", help="time the VAE and a tiny autoencoder alone"
    )
    args = parser.parse_args()
    timing.start(args)
    variants = VARIANTS
    if args.network != SHIPPED:
        variants = {name: VARIANTS[name] for name in (next(iter(VARIANTS)), "`fast`")}
    if args.only_decoding:
        variants = {}
    freely = {"freedom": args.freedom}
    variants = {name: sampling.model_copy(update=freely) for name, sampling in variants.items()}
    setups = {name: partial(setup, args.network, s, args.count) for name, s in variants.items()}
    for file in args.student:
        sampling = read_config(file).sampling.model_copy(update=freely)
        name = f"student of {sampling.num_steps} evaluations"
        variants = {**variants, name: sampling}
        setups[name] = partial(setup, file, sampling, args.count)
    setups[DECODING] = partial(setup_decoding, args.network, args.count)
    if args.only_decoding:
        setups[PREVIEW] = partial(setup_decoding, args.network, args.count, True)
    timings = timing.compare(setups, args.repeats, warmup=0)
    baseline = next(iter(timings.values())).median
    rows = [
        {
            "sampler": name,
            "network evaluations": nfe(sampler_settings(variants[name])) if name in variants else 0,
            "s/image": timings[name].median / args.count,
            "processor s/image": timings[name].result / args.count,
            "times as fast": baseline / timings[name].median,
            "peak memory, GB": timings[name].peak / 1e9,
        }
        for name in setups
    ]
    what = "the shipped network, 128×128 pixels"
    if args.network != SHIPPED:
        what = f"{args.network} with decoder, random weights, 256×256 pixels, SD's VAE"
    title = f"Sampling with guidance: {what}, {args.count} at once"
    if args.freedom:
        title += f", freedom {args.freedom:g}"
    notes = ["A network evaluation with guidance is one batch of both halves."]
    timing.report(args.out, title, rows, notes)


if __name__ == "__main__":
    main()
