"""Measure how exactly inversion returns an image, by solver and evaluations of the network.

    python research/editing/inversion.py

Inverts held-out rendered faces under their own embeddings, samples them again, and compares with
what the VAE alone returns. Both sides count their evaluations.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
import torch

from benchmarks.timing import add_arguments, report, start
from models.choices import Solver
from models.samplers import SamplerSettings, guided, invert, nfe, sample
from research.editing.compare import rms, spelled
from research.editing.faces import faces_of
from research.editing.methods import Editor
from utils.config.command_line import ArgumentParser

TRIED: list[tuple[Solver, int]] = [
    ("dpmpp_2m", 5),
    ("dpmpp_2m", 10),
    ("dpmpp_2m", 20),
    ("heun", 6),
    ("heun", 10),
]


@one_line_errors
def main() -> None:
    """Invert, sample again, print and write the table."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="network")
    add("--faces", type=int, default=12, help="faces")
    add_arguments(parser)
    args = parser.parse_args()
    start(args)
    editor, rows = Editor(args.ckpt), []
    faces = faces_of("round glasses", 20, args.faces)
    with torch.inference_mode():
        own, clean = editor.embed(faces.images), editor.encode(faces.images)
        by_vae = editor.decode(clean)
        denoise = guided(editor.model.denoiser, own)
        for solver, steps in TRIED:
            settings = SamplerSettings(solver, steps)
            with torch.autocast("cpu", editor.amp):
                noise = invert(denoise, clean, settings)
                images = editor.decode(sample(denoise, noise, settings))
            cells = {
                title: spelled([psnr(images, other).tolist()], 1)
                for title, other in (("to the VAE's image", by_vae), ("to the image", faces.images))
            }
            # The way back evaluates no last step: it begins at sigma_min.
            back = nfe(settings) - (2 if solver == "heun" else 1)
            rows.append({"solver": solver, "evaluations": f"{back} + {nfe(settings)}", **cells})
    vae = spelled([psnr(by_vae, faces.images).tolist()], 1)
    rows.append(
        {
            "solver": "the VAE alone",
            "evaluations": "",
            "to the VAE's image": "",
            "to the image": vae,
        }
    )
    report(args.out, "PSNR of inversion, dB", rows)


def psnr(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of images (N, 3, H, W) uint8, dB (N,)."""
    return 20 * (255 / rms(x, y)).log10()


if __name__ == "__main__":
    main()
