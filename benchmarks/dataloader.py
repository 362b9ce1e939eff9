"""Training batches a second: ours beside per-sample reads through a torch DataLoader with workers.

    python benchmarks/dataloader.py --out docs/benchmarks/dataloader.json

Both deliver latents (4, 32, 32), perturbed embeddings (512) and dropped conditions in shuffled
batches. The plain way opens the database in each worker, reads sample after sample and perturbs it
with NumPy; ours reads a batch at once and perturbs it on the device. Databases are synthetic.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import lmdb
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Timing, add_arguments, compare, report, start
from models.perturbation import perturb
from utils.config import HelpFormatter
from utils.latent_dataset import LatentDataset
from utils.latent_lmdb import LMDBWriter
from utils.training_data import DataOrder, training_batches

DIM = 512
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


class PlainDataset(Dataset):
    """A sample at a time from the two databases, as published code reads them."""

    def __init__(self, folder: Path, length: int):
        self.folder, self.length, self.opened = folder, length, None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self.opened is None:  # in each worker
            self.opened = [
                lmdb.open(str(self.folder / name), readonly=True, lock=False, readahead=False)
                for name in ("z", "y")
            ]
        latents, embeddings = self.opened
        with latents.begin() as transaction:
            z = np.frombuffer(transaction.get(f"z-{index}".encode()), np.float32)
        with embeddings.begin() as transaction:
            y = np.frombuffer(transaction.get(f"y-{index}-0".encode()), np.float32)
        noise = np.random.randn(DIM).astype(np.float32)
        y = y / np.linalg.norm(y) + np.random.randn() * 1.2 * noise / np.linalg.norm(noise)
        y = y / np.linalg.norm(y) * (np.random.rand() >= 0.1)
        return z.reshape(4, 32, 32).copy(), y.astype(np.float32)


def plain_batches(folder: Path, length: int, workers: int, batch: int) -> Batches:
    loader = DataLoader(
        PlainDataset(folder, length),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def our_batches(folder: Path, in_memory: bool, batch: int) -> Batches:
    data = LatentDataset(folder / "z", folder / "y", in_memory=in_memory)
    order, generator = DataOrder(data.length, seed=0), torch.Generator()
    for z, y in training_batches(data, order, 0, batch):
        turned = perturb(y, "gaussian", 1.2, generator=generator)
        yield z, turned * (torch.rand(batch, 1, generator=generator) >= 0.1)


def make_database(folder: Path, length: int, kind: str) -> None:
    """Random latents, or their moments, and embeddings."""
    rng, channels = np.random.default_rng(0), 8 if kind == "moments" else 4
    with LMDBWriter(folder / "z", "z", {"z_holds": kind}, length) as writer:
        for first in range(0, length, 1000):
            count = min(1000, length - first)
            writer.append(rng.standard_normal((count, channels, 32, 32), np.float32))
    with LMDBWriter(folder / "y", "y", {}, length) as writer:
        for first in range(0, length, 1000):
            count = min(1000, length - first)
            writer.append(rng.standard_normal((count, 1, DIM), np.float32))


def reader(batches: Callable[[int], Batches], batch: int, count: int) -> Callable[[], None]:
    """Work that reads the next `count` batches."""
    stream = batches(batch)

    def work() -> None:
        for _ in islice(stream, count):
            pass

    return work


def rate(timing: Timing, batch: int, batches: int) -> float:
    return batch * batches / timing.median


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--lengths", default="1000,10000", help="images in the database")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--batches", type=int, default=40, help="batches in a repetition")
    parser.add_argument("--workers", default="0,2", help="of the plain DataLoader")
    add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start(args)
    rows = []
    for length in map(int, args.lengths.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folders = {kind: Path(temporary) / kind for kind in ("sample", "moments")}
            for kind, folder in folders.items():
                make_database(folder, length, kind)
            plain, moments = folders["sample"], folders["moments"]
            setups = {
                f"plain, {workers} workers": partial(plain_batches, plain, length, workers)
                for workers in map(int, args.workers.split(","))
            } | {
                "ours, from disk": partial(our_batches, plain, False),
                "ours, in memory": partial(our_batches, plain, True),
                "ours, in memory, fresh latents": partial(our_batches, moments, True),
            }
            setups = {n: partial(reader, s, args.batch, args.batches) for n, s in setups.items()}
            timings = compare(setups, args.repeats)
        best = max(
            rate(t, args.batch, args.batches) for n, t in timings.items() if n.startswith("plain")
        )
        for name, timing in timings.items():
            samples = rate(timing, args.batch, args.batches)
            ratio = f"{samples / best:.2f}"
            rows.append(
                {"images": length, "reader": name, "samples/s": samples, "x best plain": ratio}
            )
    notes = [
        f"Batches of {args.batch}. 'Fresh latents' draws them from stored moments in every epoch.",
        "The database lies in the page cache, so this is the cost of the code, not of a disk.",
    ]
    report(args.out, "Reading training data", rows, notes)


if __name__ == "__main__":
    main()
