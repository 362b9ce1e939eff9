"""Rates of preprocessing, in images a second: ours beside one image after the other in float32.

    python benchmarks/preprocess.py                    # full-size encoders with random weights
    python benchmarks/preprocess.py --only decoding

The images are those of the demo, enlarged to JPEGs of 512x512. Every rate includes reading them.
The baseline does the work of a plain script: decode one image, then run the library's network on it
in float32. Deviations are from the baseline's results.
"""

from __future__ import annotations

import copy
import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch
from PIL import Image

from benchmarks import timing
from benchmarks.sampling import sd_vae
from models.autoencoder import Autoencoder
from models.encoder_files import LDM_SCALE_FACTOR
from utils.config.command_line import ArgumentParser
from utils.data.image_batches import iterate_batches
from utils.data.images import list_images, to_uint8_array

if TYPE_CHECKING:
    from models.clip import ClipEncoder

SIZE = 256  # pixels
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16


def make_jpegs(source: Path, folder: Path, count: int) -> list[Path]:
    """Write the first `count` images of `source` enlarged to 512x512; return their paths."""
    if not source.is_dir():
        raise UserError(f"{source} is not there; make the faces: python demo/make_faces.py")
    paths = []
    for i, (_, path) in enumerate(list_images(source)[:count]):
        paths.append(folder / f"{i}.jpg")
        large = Image.open(path).convert("RGB").resize((512, 512), Image.Resampling.BICUBIC)
        large.save(paths[-1], quality=90)
    return paths


def cosine_deviation(a: torch.Tensor, b: torch.Tensor) -> str:
    """Return the largest 1 - cosine between the rows of (N, D) and (N, D)."""
    return f"1 − cosine ≤ {(1 - torch.cosine_similarity(a.double(), b.double())).max():.1g}"


def relative_deviation(a: torch.Tensor, b: torch.Tensor) -> str:
    """Return the root mean square of `a` - `b`, relative to that of `b`."""
    return f"{100 * (a - b).square().mean().sqrt() / b.square().mean().sqrt():.2g} % (rms)"


def rows_of(
    variants: Mapping[str, timing.Work],
    count: int,
    unit: str,
    deviation: Callable[[torch.Tensor, torch.Tensor], str] | None,
    repeats: int,
) -> list[dict]:
    """Time variants that each do `count` units, the first being the baseline; return a row each."""
    timings = timing.interleaved(variants, repeats)
    baseline = next(iter(timings.values()))
    rows = []
    for name, taken in timings.items():
        row = {
            "variant": name,
            f"{unit}/s": count / taken.median,
            "times as fast": baseline.median / taken.median,
        }
        if deviation:
            row["deviation"] = deviation(taken.result, baseline.result)
        rows.append(row)
    return rows


@torch.inference_mode()
def images_with_clip(paths: list[Path], repeats: int) -> list[dict]:
    """Time the embedding of images by ViT-B/32 with random weights, the library's and ours."""
    import open_clip  # imported here, as the next two: --help need not wait for them
    from torchvision import transforms

    from models.clip import ClipEncoder

    torch.manual_seed(0)
    plain = open_clip.create_model("ViT-B-32").eval().requires_grad_(False).to(DEVICE)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    ours = {
        dtype: ClipEncoder(copy.deepcopy(plain), tokenizer, DEVICE, dtype)
        for dtype in (torch.float32, HALF)
    }
    to_tensor = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )

    def one_by_one() -> torch.Tensor:
        images = (Image.fromarray(to_uint8_array(path, SIZE)) for path in paths)
        return torch.cat(
            [plain.encode_image(to_tensor(image)[None].to(DEVICE)).cpu() for image in images]
        )

    def batched(clip: ClipEncoder) -> torch.Tensor:
        return torch.cat([clip.encode_images(batch) for batch in iterate_batches(paths, SIZE, 64)])

    variants: dict[str, timing.Work] = {
        "one by one, float32": one_by_one,
        "batches of 64, float32": partial(batched, ours[torch.float32]),
        "batches of 64, bf16": partial(batched, ours[HALF]),
    }
    return rows_of(variants, len(paths), "images", cosine_deviation, repeats)


@torch.inference_mode()
def latents(paths: list[Path], repeats: int) -> list[dict]:
    """Time the encoding of images into latents."""
    torch.manual_seed(0)
    plain = sd_vae().eval().requires_grad_(False).to(DEVICE)
    ours = {
        dtype: Autoencoder(copy.deepcopy(plain), LDM_SCALE_FACTOR, DEVICE, dtype)
        for dtype in (torch.float32, HALF)
    }

    def one_by_one() -> torch.Tensor:
        found = []
        for path in paths:
            image = torch.tensor(to_uint8_array(path, SIZE)).permute(2, 0, 1)[None].to(DEVICE)
            mean, _ = plain.encode(image.float() / 127.5 - 1).chunk(2, dim=1)
            found.append(mean.cpu() * LDM_SCALE_FACTOR)
        return torch.cat(found)

    def batched(vae: Autoencoder) -> torch.Tensor:
        batches = iterate_batches(paths, SIZE, 8)
        return torch.cat(
            [vae.mean_latents(vae.encode_moments(b.float() / 127.5 - 1)).cpu() for b in batches]
        )

    variants: dict[str, timing.Work] = {
        "one by one, float32": one_by_one,
        "batches of 8, float32": partial(batched, ours[torch.float32]),
        "batches of 8, bf16": partial(batched, ours[HALF]),
    }
    return rows_of(variants, len(paths), "images", relative_deviation, repeats)


def decoding(paths: list[Path], repeats: int) -> list[dict]:
    """Time reading, decoding and cropping alone; processes include the transfer of pixels."""

    def threads(count: int, draft: bool = False) -> None:
        assert sum(map(len, iterate_batches(paths, SIZE, 64, count, draft=draft))) == len(paths)

    with ProcessPoolExecutor(2) as pool:

        def processes() -> None:
            arrays = pool.map(partial(to_uint8_array, size=SIZE), paths, chunksize=8)
            while batch := list(itertools.islice(arrays, 64)):
                torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()

        variants: dict[str, timing.Work] = {
            "one thread": partial(threads, 1),
            "two threads": partial(threads, 2),
            "two processes": processes,
            "two threads, --jpeg_draft": partial(threads, 2, True),
        }
        return rows_of(variants, len(paths), "images", None, repeats)


# Name → title, measurement, number of images.
TABLES: dict[str, tuple[str, Callable[[list[Path], int], list[dict]], int]] = {
    "clip": (
        "CLIP ViT-B/32, images of 512×512 read, cropped to 256×256 and embedded",
        images_with_clip,
        64,
    ),
    "vae": ("Stable Diffusion's VAE, images to latents of 4×32×32", latents, 8),
    "decoding": ("JPEGs of 512×512 to 256×256 pixels, no network", decoding, 256),
}


@one_line_errors
def main() -> None:
    """Measure the tables that are asked for, and report them."""
    parser = ArgumentParser(description=__doc__)
    timing.add_arguments(parser)
    parser.add_argument("--only", choices=tuple(TABLES), help="table to measure; None = all")
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="folder that make_faces.py wrote"
    )
    args = parser.parse_args()
    timing.start(args)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_jpegs(args.data / "test" / "images", Path(folder), 256)
        for name in [args.only] if args.only else TABLES:
            title, measure, count = TABLES[name]
            rows = measure(paths[:count], args.repeats)
            out = args.out and args.out.with_name(f"{args.out.stem}_{name}{args.out.suffix}")
            timing.report(out, f"Preprocessing: {title}", rows)


if __name__ == "__main__":
    main()
