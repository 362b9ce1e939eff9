"""Generate faces on a machine without PyTorch; this folder, numpy and onnxruntime are all it needs.

python generate.py "a man in a turban" "a woman with a green hat" --seeds 0 1 2 3 --out faces
"""

import argparse
import struct
import time
import zlib
from pathlib import Path

import numpy as np
from sampler import Sampler

BATCH = 8  # images


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as a PNG; no image library is needed for this."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)  # 0 = the line is not filtered
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def seed_of(text: str) -> int:
    """Return a seed; argparse refuses other texts, and seeds of 2^32 and above."""
    if not text.isdecimal() or len(text) > 10 or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text}: should be a whole number below 2^32")
    return int(text)


def main() -> None:
    """Generate every prompt with every seed: <number of prompt>_<seed>.png, and prompts.txt."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # a mistake is one line
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", nargs="+", help="what to show")
    parser.add_argument("--seeds", nargs="+", type=seed_of, default=[0], help="default: 0")
    parser.add_argument("--out", type=Path, default=Path("faces"), help="folder; default: faces")
    args = parser.parse_args()
    started = time.perf_counter()
    sampler = Sampler(Path(__file__).resolve().parent)
    jobs = [(number, seed) for number in range(len(args.prompts)) for seed in args.seeds]
    args.out.mkdir(parents=True, exist_ok=True)
    about = args.out / "prompts.txt"  # tells this run's faces from those of another one
    content = "".join(f"{prompt}\n" for prompt in args.prompts).encode("utf-8", "backslashreplace")
    if any(args.out.glob("*.png")) and not (about.exists() and about.read_bytes() == content):
        parser.error(f"{args.out} holds faces of other prompts; name another folder with --out")
    about.write_bytes(content)
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        prompts, seeds = [args.prompts[n] for n, _ in batch], [seed for _, seed in batch]
        for (number, seed), image in zip(batch, sampler.generate(prompts, seeds), strict=True):
            save_png(args.out / f"{number:02d}_{seed:03d}.png", image)
    print(f"{len(jobs)} images in {time.perf_counter() - started:.1f} s: {args.out}")


if __name__ == "__main__":
    main()
