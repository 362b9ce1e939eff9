"""Features of an unfinished evaluation on disk: one safetensors file for each batch of images.

Each process writes its batches, so that a kill costs at most the batches in hand. When all are
there, one process reads them in order. The metrics therefore do not depend on the number of
processes or of kills, and memory holds one batch at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from utils.base.errors import note
from utils.base.files import write_whole

POSITIONS = "positions"  # of the images in the evaluation, (B,) int64
BEGUN = "begun-{}.txt"  # of a process: a line for each batch that it began, the number of images
Rows = dict[str, torch.Tensor]  # outputs of the networks for a batch, a row for each image


class FeatureBlocks:
    """Evaluated batches of one evaluation of `count` images, in a folder of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def clear(self) -> None:
        """Delete all batches."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink()

    def check(self) -> tuple[list[int], float]:
        """Return the positions that are missing, and the seconds that the others took.

        Damaged files are named in a note and deleted. Call it in one process only.
        """
        there, seconds = np.zeros(self.count, bool), 0.0
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                rows, took = _read(path)
            except (SafetensorError, OSError, ValueError, KeyError) as fault:
                reason = " ".join(str(fault).split())
                note(f"{path}: damaged ({reason}); deleted, its images are evaluated again")
                path.unlink()
                continue
            there[rows[POSITIONS].numpy()] = True
            seconds += took
        return np.flatnonzero(~there).tolist(), seconds

    def begin(self, size: int, process: int = 0) -> None:
        """Note that a process is about to generate a batch of `size` images."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / BEGUN.format(process), "a", encoding="utf-8") as file:
            file.write(f"{size}\n")

    def add(
        self, positions: Sequence[int], rows: Mapping[str, torch.Tensor], took: float = 0.0
    ) -> None:
        """Write a batch: `rows` of the images at `positions`, which took `took` seconds."""
        tensors = {name: row.contiguous().cpu() for name, row in rows.items()}
        tensors[POSITIONS] = torch.tensor(list(positions))
        metadata = {"seconds": repr(took), "crc": str(_checksum(tensors))}
        path = self.folder / f"{positions[0]:08d}.safetensors"
        content = save(tensors, metadata)  # save_file has no OSError if the disk is full
        write_whole(path, lambda temporary: temporary.write_bytes(content))

    @property
    def images_generated(self) -> int:
        """Images of all batches that were begun, including those lost in kills."""
        files = self.folder.glob("*-*.txt")  # also drawn-*.txt of old evaluations
        return sum(int(size) for file in files for size in file.read_text(encoding="utf-8").split())

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Rows]]:
        """Yield positions (B,) and rows of each batch, in order of the positions."""
        for path in sorted(self.folder.glob("*.safetensors")):
            rows, _ = _read(path)
            yield rows.pop(POSITIONS), rows


def batches_of_process(
    positions: Sequence[int], size: int, process: int, processes: int
) -> list[list[int]]:
    """Cut positions into batches of `size`, and return every `processes`-th, those of one process.

    The batches do not depend on the number of processes.
    """
    batches = [list(positions[i : i + size]) for i in range(0, len(positions), size)]
    return batches[process::processes]


def _read(path: Path) -> tuple[Rows, float]:
    """Read the tensors of a file and its seconds; raise ValueError if the checksum is wrong."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    if not about or int(about["crc"]) != _checksum(tensors):
        raise ValueError("its checksum is wrong")
    return tensors, float(about["seconds"])


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the CRC-32 of all names and values."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].numpy().tobytes(), zlib.crc32(name.encode(), total))
    return total
