"""What an unfinished evaluation has on disk: one safetensors file for each batch of judged images.

All processes write here, each its own batches, so that a kill costs at most the batches in hand;
when all are there, one process reads them in order. Its figures are then the same for any number
of processes and after any number of kills, and no process holds more than a batch in memory.
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
DRAWN = "drawn-{}.txt"  # of a process: how many images each batch was begun with, a line each
Rows = dict[str, torch.Tensor]  # what networks say of a batch of images, a row for each image


class FeatureBlocks:
    """The judged batches of one evaluation of `count` images, in a folder of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def check(self) -> tuple[list[int], float]:
        """Positions that are still to be judged, and the seconds that the others took.

        Files that are not whole are named and deleted. Call it in one process.
        """
        there, seconds = np.zeros(self.count, bool), 0.0
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                rows, took = _read(path)
            except (SafetensorError, OSError, ValueError, KeyError) as fault:
                reason = " ".join(str(fault).split())
                note(f"{path}: damaged ({reason}); thrown away, its images are drawn again")
                path.unlink()
                continue
            there[rows[POSITIONS].numpy()] = True
            seconds += took
        return np.flatnonzero(~there).tolist(), seconds

    def begin(self, size: int, process: int = 0) -> None:
        """Note that a batch of `size` images is about to be drawn by a process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / DRAWN.format(process), "a") as file:
            file.write(f"{size}\n")

    def add(
        self, positions: Sequence[int], rows: Mapping[str, torch.Tensor], took: float = 0.0
    ) -> None:
        """Keep a batch: `rows` of the images at `positions`, judged in `took` seconds."""
        tensors = {name: row.contiguous().cpu() for name, row in rows.items()}
        tensors[POSITIONS] = torch.tensor(list(positions))
        metadata = {"seconds": repr(took), "crc": str(_checksum(tensors))}
        content = save(tensors, metadata)
        path = self.folder / f"{positions[0]:08d}.safetensors"
        write_whole(path, lambda temporary: temporary.write_bytes(content))

    @property
    def images_drawn(self) -> int:
        """Images that were begun, those lost in kills included."""
        files = self.folder.glob(DRAWN.format("*"))
        return sum(int(size) for file in files for size in file.read_text().split())

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Rows]]:
        """Positions (B,) and their rows, batch by batch in order; may be done more than once."""
        for path in sorted(self.folder.glob("*.safetensors")):
            rows, _ = _read(path)
            yield rows.pop(POSITIONS), rows


def _read(path: Path) -> tuple[Rows, float]:
    """The tensors of a file and its seconds; raises ValueError if they are not those written."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    if not about or int(about["crc"]) != _checksum(tensors):
        raise ValueError("its checksum is wrong")
    return tensors, float(about["seconds"])


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].numpy().tobytes(), zlib.crc32(name.encode(), total))
    return total
