"""Compare ways to make the inside of a mask anew: is the trait there, and is there a seam?

    python research/editing/masks.py

Three edits have a rectangle each. `denoiser`: the denoiser returns the known image outside, as
`t2f.py --mask` does. `noised`: known and noised latents replace the sampler's before each step
(Song 2020, appendix I.2). `resampled`: so that each step is taken three times, from noise that is
added again (RePaint, Lugmayr 2022). The start is fresh noise or the image's own (`kept`). The seam
is the mean step of pixels across the rectangle's border, relative to that of the true result; it is
measured before pixels are blended.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
import torch
from torch import Tensor

from benchmarks.timing import add_arguments, report, start
from models.editing import keeping
from models.samplers import Denoise, SamplerSettings, SeededNoise, guided, sample
from research.attributes.classifier import add_classifier_arguments, classify, load_classifier
from research.editing.compare import spelled
from research.editing.faces import EDITS, Faces, faces_of
from research.editing.methods import METHODS, Editor
from utils.config.command_line import ArgumentParser
from utils.sampling.generate import latent_shape

# Edit -> top, bottom, left, right of its rectangle, of the 16 x 16 latents.
RECTANGLES = {"hat": (0, 8, 0, 16), "round glasses": (4, 9, 3, 13), "smiling": (4, 11, 4, 12)}
REPEATS = 3
Inpaint = Callable[[Denoise, Tensor, Tensor, Tensor, SamplerSettings], Tensor]


def by_denoiser(
    denoise: Denoise, clean: Tensor, mask: Tensor, noise: Tensor, settings: SamplerSettings
) -> Tensor:
    """Sample with `keeping`."""
    return sample(keeping(denoise, clean, mask), noise, settings)


def by_steps(repeats: int, known: bool) -> Inpaint:
    """Return a sampler of first-order steps, each taken `repeats` times.

    known: the denoiser knows the image outside; else its noised latents are replaced.
    """

    def solve(
        denoise: Denoise, clean: Tensor, mask: Tensor, noise: Tensor, settings: SamplerSettings
    ) -> Tensor:
        generator = torch.Generator().manual_seed(0)

        def randn() -> Tensor:
            return torch.randn(noise.shape, generator=generator, dtype=torch.float64)

        sigmas = settings.formulation().t_steps
        inside = keeping(denoise, clean, mask) if known else denoise
        x = noise.double() * sigmas[0]
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
            for repeat in range(repeats):
                if not known:
                    x = (clean + now * randn()).lerp(x, mask.double())
                denoised = inside(x.float(), now).double()
                x = denoised + then / now * (x - denoised)
                if repeat + 1 < repeats:
                    x = x + (now**2 - then**2) ** 0.5 * randn()
        return x if known else clean.double().lerp(x, mask.double())

    return solve


WAYS: dict[str, tuple[Inpaint, int]] = {  # with the factor of evaluations
    "denoiser": (by_denoiser, 1),
    "denoiser, 3 times the steps": (by_denoiser, REPEATS),
    "noised": (by_steps(1, known=False), 1),
    "resampled": (by_steps(REPEATS, known=False), 1),
    "denoiser, resampled": (by_steps(REPEATS, known=True), 1),
}


def seam(images: Tensor, rectangle: tuple[int, int, int, int], cell: int) -> Tensor:
    """Return the mean step of pixels across a rectangle's border, (N,)."""
    x, (top, bottom, left, right) = images.float(), (cell * side for side in rectangle)
    size = x.shape[2]
    steps = [
        (x[:, :, y, left:right] - x[:, :, y - 1, left:right]) for y in (top, bottom) if 0 < y < size
    ]
    steps += [
        (x[:, :, top:bottom, c] - x[:, :, top:bottom, c - 1]) for c in (left, right) if 0 < c < size
    ]
    return torch.cat([step.abs().flatten(1) for step in steps], dim=1).mean(dim=1)


@torch.inference_mode()
def inpainted(
    editor: Editor, name: str, faces: Faces, way: str, words: bool, fresh: bool
) -> Tensor:
    """Make the inside of an edit's rectangle anew: (N, 3, H, W) uint8, before blending.

    words: the image's own embedding is moved; else a sentence replaces it.
    """
    own, clean, inverted = editor.known(faces)
    if words:
        y = METHODS["words"](editor, name, faces, own, 1.0)
    else:
        y = editor.sentences([EDITS[name].after] * len(own))
    top, bottom, left, right = RECTANGLES[name]
    mask = torch.zeros(1, *clean.shape[2:])
    mask[:, top:bottom, left:right] = 1
    solve, factor = WAYS[way]
    settings = SamplerSettings(editor.settings.solver, factor * editor.settings.num_steps)
    config = editor.model.config.sampling
    denoise = guided(editor.model.denoiser, y, config.cfg_scale, editor.interval)
    noise = SeededNoise(range(len(y))).randn(latent_shape(editor.model.denoiser))
    with torch.autocast("cpu", editor.amp):
        latents = solve(denoise, clean, mask, noise if fresh else inverted, settings)
        return editor.decode(latents)


@one_line_errors
def main() -> None:
    """Make, measure, print and write the table."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="network")
    add("--first", type=int, default=20, help="first face of each edit")
    add("--faces", type=int, default=16, help="faces of each edit")
    add_classifier_arguments(parser)
    add_arguments(parser)
    args = parser.parse_args()
    start(args)
    editor, rows = Editor(args.ckpt), []
    classifier = load_classifier(args.classifier, args.data / "train")
    groups = {name: faces_of(name, args.first, args.faces) for name in RECTANGLES}
    tried = [(way, True, True) for way in WAYS]
    tried += [("denoiser", True, False), ("denoiser", False, True)]
    for way, words, fresh in tried:
        found: dict[str, list[list[float]]] = {"shown": [], "kept": [], "seam": []}
        for name, faces in groups.items():
            images = inpainted(editor, name, faces, way, words, fresh)
            with torch.inference_mode():
                true = editor.decode(editor.encode(faces.targets))
            codes, cell = classify(classifier, images), images.shape[2] // 16
            steps, usual = (seam(x, RECTANGLES[name], cell) for x in (images, true))
            found["shown"].append((100 * faces.shown(codes).float()).tolist())
            found["kept"].append((100 * faces.kept(codes)).tolist())
            found["seam"].append((steps / usual.mean()).tolist())
        cells = {key: spelled(values, 2 if key == "seam" else 1) for key, values in found.items()}
        condition = "own, moved" if words else "sentence"
        rows.append(
            {"method": way, "condition": condition, "start": "fresh" if fresh else "kept", **cells}
        )
        print(rows[-1], flush=True)
    report(args.out, "Inside of a mask: mean of three edits", rows)


if __name__ == "__main__":
    main()
