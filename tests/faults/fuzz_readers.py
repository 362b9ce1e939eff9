"""Damages valid files at random and reads them; readers may raise a user's error only.

python tests/faults/fuzz_readers.py --seconds 600          # one reader after another
python tests/faults/fuzz_readers.py --only checkpoint --seed 7

Prints the seed of each fault and keeps the file. A fault is any other exception, a crash of the
process, or a message of more than one line. Exits with code 1 if there was a fault.
"""

from __future__ import annotations

import io
import pickle
import random
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

from conftest import crude_face
from image_files import icc_profile
from tiny import make_tiny_checkpoint, make_tiny_config

from models.weights import read_tensors
from utils.base.errors import UserError
from utils.config.command_line import ArgumentParser
from utils.config.load import load_config
from utils.data.embeddings import read_image_mean
from utils.data.images import load_image
from utils.data.name_lists import read_names
from utils.evaluation.references import load_stats
from utils.pretrained.denoisers import export_safetensors, load_denoiser

IMAGES = {
    "png": "PNG", "jpg": "JPEG", "mpo": "MPO", "webp": "WEBP", "tif": "TIFF", "gif": "GIF",
    "bmp": "BMP", "avif": "AVIF", "jp2": "JPEG2000",
}  # fmt: skip
HEAD = 1500  # bytes of an image in which most of what is beside the pixels stands
IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"II*", b"GIF", b"BM", b"\0\0\0")
MEMORY = 8 << 30  # bytes that a reader may take
TOKENS = [
    b"\x00", b"\xff", b"\n", b"\xc2\x85", b"\xe2\x80\xa8", b"'", b'"', b"|", b"%", b"R.", b"None",
    b": ", b"- ", b"&a ", b"*a", b"<<: 1\n", b"[", b"{", b"}", b"]", b"? [a]\n: b\n", b"[" * 3000,
    b"2001-99-99", b"1e999", b".nan", b"9" * 5000, b"0x" + b"f" * 5000, b"!!int x", b"!!binary x",
    b"!!python/name:os.system ", b"cos\nsystem\n", b"data:", b"train:", b"model:", b"None",
    b"[" * 3000,
]  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the content with bytes changed, removed, repeated or added, or with its end cut."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 4, 16, 200])
        match rng.randrange(6):
            case 0:
                data[at : at + length] = rng.randbytes(min(length, len(data) - at))
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * rng.choice([1, 2, 50])
            case 3:
                data[at:at] = rng.choice(TOKENS)
            case 4 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 5 if rng.random() < 0.2:
                del data[at:]
    return bytes(data)


def damaged_head(content: bytes, rng: random.Random) -> bytes:
    """Return the content with a few bytes of its head changed."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(min(len(data), HEAD))
        data[at] = rng.choice([0, 255, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
    return bytes(data)


def damaged_inside(content: bytes, rng: random.Random) -> bytes:
    """Return a valid zip archive in which one member is damaged."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        # Small members, above all the pickle, describe the others: damage there reaches more code.
        small = sorted(old.infolist(), key=lambda entry: entry.file_size)
        target = rng.choice([*(e for e in small if e.filename.endswith(".pkl"))] * 20 + small)
        for entry in old.infolist():
            member = old.read(entry)
            new.writestr(entry.filename, damaged(member, rng) if entry is target else member)
    return out.getvalue()


def damaged_file(content: bytes, rng: random.Random) -> bytes:
    """Return the content damaged anywhere; of zip archives more often inside one member."""
    if content.startswith(IMAGE_STARTS) and rng.random() < 0.7:
        return damaged_head(content, rng)
    is_zip = zipfile.is_zipfile(io.BytesIO(content))
    return (damaged_inside if is_zip and rng.random() < 0.7 else damaged)(content, rng)


def write_images(folder: Path) -> None:
    """Write `face` in every format, with all that may stand beside the pixels."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker" * 4, 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    xmp = b'<rdf:Description xmlns:tiff="t" tiff:Orientation="6"/>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
    text.add(b"gAMA", (100_000).to_bytes(4, "big"))
    more = {"exif": exif, "icc_profile": icc_profile("Display P3"), "xmp": xmp, "pnginfo": text}
    frames = {"save_all": True, "append_images": [crude_face(4, 24)]}
    for suffix, form in IMAGES.items():
        options = more | (frames if form in ("MPO", "GIF") else {}) | {"comment": "a face"}
        crude_face(3, 24).save(folder / f"face.{suffix}", form, **options)


def make_readers(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object], type[Exception]]]:
    """Write valid files; return name -> (file, function that reads it, error that it may raise)."""
    config = make_tiny_config(folder)
    (folder / "config.yaml").write_text(config.to_yaml())
    make_tiny_checkpoint(folder / "0000100.pt", config)
    export_safetensors(folder / "0000100.pt", folder / "model.safetensors")
    torch.save({"state_dict": {"a": torch.ones(3), "b": torch.ones(2, 2)}}, folder / "weights.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), folder / "archive.pt")
    np.savez(folder / "ref.npz", mu=np.zeros(4), sigma=np.eye(4), n=5, network="x", resolution=8)
    np.save(folder / "mean.npy", np.ones(16, np.float32))
    (folder / "names.pickle").write_bytes(pickle.dumps(["1.jpg", "2.jpg", "3.jpg"] * 3, 2))
    (folder / "names.json").write_text('["1.jpg", "2.jpg"]')
    (folder / "names.txt").write_text("1.jpg\n2.jpg\n")
    write_images(folder)
    published = ROOT / "configs" / "main_config" / "train" / "celeb_t2f_gaus1.2.yaml"
    return {
        "config": (folder / "config.yaml", load_config, UserError),
        "published config": (published, load_config, UserError),
        "checkpoint": (folder / "0000100.pt", load_denoiser, UserError),
        "safetensors": (folder / "model.safetensors", load_denoiser, UserError),
        "torch file": (folder / "weights.pth", read_tensors, ValueError),
        "archive": (folder / "archive.pt", read_tensors, ValueError),
        "statistics": (folder / "ref.npz", load_stats, UserError),
        "image mean": (folder / "mean.npy", lambda path: read_image_mean(path, 16), UserError),
        "pickled names": (folder / "names.pickle", read_names, UserError),
        "JSON names": (folder / "names.json", read_names, UserError),
        "names": (folder / "names.txt", read_names, UserError),
        **{suffix: (folder / f"face.{suffix}", load_image, UserError) for suffix in IMAGES},
    }


def fault_of(read: Callable[[Path], object], path: Path, allowed: type[Exception]) -> str | None:
    """Return a description of the fault; None if the file is read, or refused properly."""
    try:
        read(path)
    except allowed as error:
        lines = str(error).splitlines()
        if not lines or (allowed is UserError and any(len(line) > 1000 for line in lines)):
            return f"a message of {len(lines)} lines, {len(str(error))} characters"
        # A config has a line for each of its faults, and every line names the file.
        if len(lines) > 1 and not all(str(path) in line for line in lines):
            return f"a line that does not name the file: {error}"
    except Exception:  # noqa: BLE001 - any other exception is a fault
        return traceback.format_exc()
    return None


def fuzz(names: list[str], seconds: float, first_seed: int, folder: Path) -> tuple[int, int]:
    """Read damaged files for `seconds`; return the number of files and the number of faults.

    `names`: readers to try (all if empty).
    """
    readers = make_readers(folder)
    deadline, tried, faults = time.monotonic() + seconds, 0, 0
    while time.monotonic() < deadline:
        for name in names or readers:
            seed = first_seed + tried // len(names or readers)
            original, read, allowed = readers[name]
            path = folder / f"fuzz-{seed}-{name.replace(' ', '-')}{original.suffix}"
            path.write_bytes(damaged_file(original.read_bytes(), random.Random(f"{seed}/{name}")))
            print(f"{name} --seed {seed}", file=sys.stderr, flush=True)
            tried += 1
            if fault := fault_of(read, path, allowed):
                faults += 1
                print(f"FAULT: --only {name!r} --seed {seed} ({path}): {fault}", flush=True)
            else:
                path.unlink()
    return tried, faults


def main() -> None:
    """Read damaged files in limited memory; exit with code 1 if there was a fault."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="time limit")
    parser.add_argument("--seed", type=int, help="first seed; None = a random one, printed")
    parser.add_argument("--only", action="append", default=[], help="name of a reader; repeatable")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    if unknown := set(args.only) - make_readers(folder).keys():
        parser.error(f"--only {unknown.pop()}: should be among {', '.join(make_readers(folder))}")
    seed = random.SystemRandom().randrange(10**9) if args.seed is None else args.seed
    print(f"--seed {seed}", flush=True)
    tried, faults = fuzz(args.only, args.seconds, seed, folder)
    print(f"{tried} files, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
