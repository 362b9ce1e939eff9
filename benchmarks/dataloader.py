"""Rates of reading training data: ours beside a torch DataLoader that reads sample by sample.

    python benchmarks/dataloader.py --out docs/benchmarks/dataloader.json

Both yield shuffled batches of latents and perturbed conditions, some of them dropped, on the CPU.
The plain reader reads one sample after the other and perturbs it with NumPy. Ours is the code of
train_latent_t2f.py. The databases hold random numbers. Each variant is started anew for its turn,
so that none reads ahead while another is timed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import lmdb
import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import add_arguments, compare, report, start
from models.batch_random import BatchRandom, Share
from utils.config.command_line import HelpFormatter
from utils.config.load import config_from_dict
from utils.data.latent_dataset import LatentDataset
from utils.data.lmdb_writer import LMDBWriter
from utils.training.batches import DataOrder, make_condition, training_batches

DIM, EMBEDDINGS, SCALE, DROPOUT = 512, 1, 1.2, 0.1  # EMBEDDINGS of each image
CHUNK = 1000  # samples written at once
CONFIG = {
    "model": {"num_classes": DIM, "class_dropout_prob": DROPOUT},
    "train": {"perturbation": SCALE},
}
Batches = Iterator[tuple[torch.Tensor, torch.Tensor | None]]


class PlainDataset(Dataset):
    """A reader of single samples from the two databases, like that of the published code."""

    def __init__(self, folder: Path, length: int, side: int) -> None:
        self.folder, self.length, self.side = folder, length, side
        self.opened: list[lmdb.Environment] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not self.opened:  # each worker opens them anew
            self.opened = [
                lmdb.open(str(self.folder / name), readonly=True, lock=False, readahead=False)
                for name in ("z", "y")
            ]
        latents, embeddings = self.opened
        with latents.begin() as transaction:
            z = np.frombuffer(transaction.get(f"z-{index}".encode(), b""), np.float32)
        with embeddings.begin() as transaction:
            key = f"y-{index}-{random.randrange(EMBEDDINGS)}"
            y = np.frombuffer(transaction.get(key.encode(), b""), np.float32)
        noise = np.random.randn(DIM).astype(np.float32)
        y = y / np.linalg.norm(y) + np.random.randn() * SCALE * noise / np.linalg.norm(noise)
        y = y / np.linalg.norm(y) * (np.random.rand() >= DROPOUT)
        return z.reshape(4, self.side, self.side).copy(), y.astype(np.float32)


def plain_batches(folder: Path, length: int, side: int, workers: int, batch: int) -> Batches:
    """Yield batches of a DataLoader with worker processes, without end."""
    loader = DataLoader(
        PlainDataset(folder, length, side),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def our_batches(
    folder: Path, in_memory: bool, perturbed: bool, threads: int, batch: int
) -> Batches:
    """Yield batches of this project's reader, without end."""
    config, rng = config_from_dict(CONFIG, "benchmark"), BatchRandom(torch.Generator())
    data = LatentDataset(folder / "z", folder / "y", in_memory=in_memory)
    order = DataOrder(data.length, seed=0)
    for z, y in training_batches(data, order, 0, Share.whole(batch), threads=threads):
        yield z, make_condition(y, config, rng) if perturbed else y


def make_database(folder: Path, length: int, side: int, kind: str) -> None:
    """Write random latents, as `kind` 'sample' or 'moments', and random embeddings."""
    rng, channels = np.random.default_rng(0), 8 if kind == "moments" else 4
    latents = rng.standard_normal((CHUNK, channels, side, side), np.float32)
    embeddings = rng.standard_normal((CHUNK, EMBEDDINGS, DIM), np.float32)
    with (
        LMDBWriter(folder / "z", "z", {"z_holds": kind}, length) as z,
        LMDBWriter(folder / "y", "y", {}, length) as y,
    ):
        for first in range(0, length, CHUNK):
            z.append(latents[: length - first])
            y.append(embeddings[: length - first])


def sustained(
    batches: Callable[[int], Batches], batch: int, fewest: int, seconds: float
) -> Callable[[], tuple[float, float]]:
    """Return work that reads for `seconds`: its result is samples/s, and CPU seconds per 1,000.

    It reads at least `fewest` batches, so that the few that were read ahead before do not matter.
    """
    stream = batches(batch)

    def work() -> tuple[float, float]:
        used, started, samples = cpu_seconds(), time.perf_counter(), 0
        while samples < fewest * batch or time.perf_counter() - started < seconds:
            samples += len(next(stream)[0])
        rate = samples / (time.perf_counter() - started)
        return rate, 1000 * (cpu_seconds() - used) / samples

    return work


def cpu_seconds() -> float:
    """Return the CPU time of this process, its threads and its running children."""
    own = psutil.Process(os.getpid())
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def measure(folder: Path, length: int, args: argparse.Namespace) -> list[dict]:
    """Make databases of `length` images in `folder`; return a row for each variant."""
    plain, moments = folder / "sample", folder / "moments"
    make_database(plain, length, args.side, "sample")
    variants = {
        f"plain, {workers} workers": partial(plain_batches, plain, length, args.side, workers)
        for workers in map(int, args.workers.split(","))
    } | {
        "ours, from disk": partial(our_batches, plain, False, True, 1),
        "ours, in memory": partial(our_batches, plain, True, True, 1),
        "ours, in memory, not perturbed": partial(our_batches, plain, True, False, 1),
        "ours, same with 2 threads": partial(our_batches, plain, True, False, 2),
    }
    if args.moments:
        make_database(moments, length, args.side, "moments")
        variants["ours, in memory, fresh latents"] = partial(our_batches, moments, True, True, 1)
    setups = {
        name: partial(sustained, batches, args.batch, args.batches, args.seconds)
        for name, batches in variants.items()
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in setups}
    for _ in range(args.repeats):
        for name, timing in compare(setups, repeats=1, rounds=1).items():
            results[name].append(timing.result)
    medians = {
        name: [statistics.median(values) for values in zip(*pairs, strict=True)]
        for name, pairs in results.items()
    }
    best = max(rate for name, (rate, _) in medians.items() if name.startswith("plain"))
    return [
        {
            "latents": f"4x{args.side}x{args.side}",
            "images": length,
            "reader": name,
            "samples/s": rate,
            "CPU seconds of 1,000": used,
            "x best plain": f"{rate / best:.2f}",
        }
        for name, (rate, used) in medians.items()
    ]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--lengths", default="1000,10000,100000", help="images in the database")
    parser.add_argument("--side", type=int, default=32, help="height and width of the latents")
    parser.add_argument(
        "--moments", action="store_true", help="also measure latents drawn from stored moments"
    )
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--batches", type=int, default=200, help="batches timed at once, at least")
    parser.add_argument("--seconds", type=float, default=2, help="seconds timed at once, at least")
    parser.add_argument(
        "--workers", default="0,2", help="numbers of worker processes of the plain DataLoader"
    )
    parser.add_argument("--title", default="Reading training data", help="title of the table")
    add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Measure databases of all lengths, and report one table."""
    args = parse_args()
    start(args)
    torch.set_num_threads(1)  # in each process: workers and reading threads need the cores
    rows = []
    for length in map(int, args.lengths.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            rows += measure(Path(temporary), length, args)
    notes = [
        f"Batches of {args.batch} on {args.threads} cores, one thread for tensors in each process. "
        "CPU seconds are those of all cores together.",
        "The database lies in the page cache, so this is the cost of the code, not of a disk.",
        "'Not perturbed' is the processor's part if a GPU perturbs; the plain readers perturb on "
        "the processor always. 2 threads: train.num_workers=2.",
    ]
    if args.moments:
        notes.append("'Fresh latents' samples them from stored moments in every epoch.")
    report(args.out, args.title, rows, notes)


if __name__ == "__main__":
    main()
