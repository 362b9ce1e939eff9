"""Train the demo's VAE on rendered faces (about an hour on 2 cores).

    python research/demo_weights/train_vae.py    # writes assets/demo/vae, resumes if interrupted
    python research/demo_weights/train_vae.py --steps 200 --out /tmp/vae

The VAE is a `diffusers.AutoencoderKL`, 8× down, 4 channels: 128×128 pixels become 4×16×16. The loss
is L1 + L2, with more weight on the face, whose eyes and mouth are a few pixels wide, plus a very
small KL divergence. Prints the held-out PSNR at the end.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch
from torch import Tensor

from demo.make_faces import make_face, render
from models.autoencoder import load_autoencoder
from research.demo_weights.face_groups import render_all
from research.demo_weights.resumable import resume, save, set_lr
from utils.base.progress import progress
from utils.config.command_line import ArgumentParser

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL

CHANNELS = (16, 32, 64, 128)

# The part of the image with eyes and mouth (rows, columns of 128), and its weight in the loss.
FACE = (slice(40, 88), slice(38, 90))
FACE_WEIGHT = 2.0

# Brightness and two colour differences, from RGB. They show small differences in colour alone, e.g.
# between grey hair and a pale green wall.
OPPONENT = torch.tensor([[1, 1, 1], [2, -2, 0], [-1, -1, 2]]) / torch.tensor([[3.0], [2.0], [2.0]])
KL_WEIGHT = 1e-6


def build_vae() -> AutoencoderKL:
    """Return the untrained VAE."""
    from diffusers.models import AutoencoderKL  # imported here: --help need not wait for it

    vae: AutoencoderKL = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        # Groups of one channel would remove the overall colour in every layer.
        norm_num_groups=4,
        latent_channels=4,
        sample_size=128,
        mid_block_add_attention=False,
    )
    return vae


def loss_of(vae: AutoencoderKL, pixels: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted L1 + L2 in brightness and colour, plus the KL divergence.

    pixels: (N, 3, 128, 128) in [-1, 1]. weight: (128, 128), of mean 1.
    """
    posterior = vae.encode(pixels).latent_dist
    error = (vae.decode(posterior.sample()).sample - pixels).float()
    with torch.autocast("cpu", enabled=False):
        error = torch.einsum("oc,nchw->nohw", OPPONENT, error)
    reconstruction = ((error.abs() + error.square()) * weight).mean()
    loss: Tensor = reconstruction + KL_WEIGHT * posterior.kl().mean()
    return loss


def face_weight() -> Tensor:
    """Return the weight of each pixel in the loss, (128, 128), of mean 1."""
    weight = torch.ones(128, 128)
    weight[FACE] = FACE_WEIGHT
    return weight / weight.mean()


def random_pixels(faces: np.ndarray, seed: int, count: int) -> Tensor:
    """Choose some of the faces (N, 128, 128, 3) uint8; return (count, 3, 128, 128) in [-1, 1]."""
    picked = np.sort(np.random.default_rng(seed).choice(len(faces), count, replace=False))
    pixels = torch.from_numpy(faces[picked]).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).contiguous()


@torch.no_grad()
def held_out_psnr(folder: Path, count: int = 500) -> float:
    """Return the mean PSNR in dB over `count` held-out faces, decoded from mean latents."""
    vae = load_autoencoder(folder)
    images = np.stack([np.asarray(render(make_face("test", i, 1)[0])) for i in range(count)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    psnr = []
    for part in pixels.split(50):
        decoded = vae.decode(vae.mean_latents(vae.encode_moments(part)))
        mse = ((decoded - part) / 2).square().flatten(1).mean(1)
        psnr.append(-10 * mse.log10())
    return torch.cat(psnr).mean().item()


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Return 1 / standard deviation of the latents, so that scaled latents have variance 1.

    pixels: (N, 3, 128, 128) in [-1, 1].
    """
    latents: Tensor = vae.encode(pixels).latent_dist.mean
    return 1 / latents.std().item()


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("assets/demo/vae"), help="folder of the VAE"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("results/vae"), help="folder of its checkpoint"
    )
    parser.add_argument(
        "--faces", type=Path, default=Path("results/clip/groups.npy"), help="file of cached faces"
    )
    parser.add_argument("--groups", type=int, default=8000, help="groups of 4 faces")
    parser.add_argument("--steps", type=int, default=7600, help="training steps")
    parser.add_argument("--batch", type=int, default=8, help="faces a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = all")
    return parser.parse_args()


@one_line_errors
def main() -> None:
    """Train the VAE, write it, and print its held-out PSNR."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)

    faces = render_all(args.faces, args.groups)
    faces = faces.reshape(-1, *faces.shape[2:])
    vae = build_vae()
    print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters")
    weight = face_weight()
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4
    )
    checkpoint = args.work / "checkpoint.pt"
    first = resume(checkpoint, vae, optimizer)

    started = time.time()
    steps = progress(range(first, args.steps), desc="VAE", total=args.steps - first, unit="step")
    for step in steps:
        set_lr(optimizer, args.lr, step, args.steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(vae, random_pixels(faces, step, args.batch), weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            pace = (time.time() - started) / (step + 1 - first)
            print(f"step {step + 1} loss {loss.item():.4f} {pace:.2f} s/step", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            save(checkpoint, vae, optimizer, step + 1)
    factor = scaling_factor(vae, random_pixels(faces, 0, 256))
    vae.register_to_config(scaling_factor=round(factor, 5))
    vae.half().save_pretrained(args.out)
    print(f"held-out PSNR over 500 faces: {held_out_psnr(args.out):.2f} dB")


if __name__ == "__main__":
    main()
