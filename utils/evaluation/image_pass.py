"""One pass over images to draw and judge, shared by all processes and continued after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable

from accelerate import PartialState

from utils.base.errors import UserError
from utils.base.progress import progress
from utils.base.read_ahead import read_ahead
from utils.evaluation.collective import main_process_only
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.feature_store import FeatureBlocks, Rows, batches_of_process
from utils.evaluation.generated import CPU_GROUP, Generated, generates_ahead


def fill_blocks(
    blocks: FeatureBlocks,
    draw: Callable[[list[int]], Generated],
    features: Callable[[list[int], Generated], Rows],
    evaluator: Evaluator,
    batch_size: int,
    desc: str,
) -> float:
    """Draw and judge the images that the blocks lack; return the seconds that the others took.

    All processes call this: each does its share, and afterwards all blocks are there.

    Args:
        draw: draws the images at some positions.
        features: returns the rows to store, from the positions and their images.
        batch_size: images; a CPU draws whole groups of CPU_GROUP.
    """
    missing, before = main_process_only(blocks.check)
    processes = PartialState()
    if evaluator.device.type == "cpu":
        batch_size = -(-batch_size // CPU_GROUP) * CPU_GROUP
    own = batches_of_process(missing, batch_size, processes.process_index, processes.num_processes)

    def begin(positions: list[int]) -> Generated:
        blocks.begin(len(positions), processes.process_index)
        return draw(positions)

    done = blocks.count - len(missing)
    with progress(desc=desc, total=blocks.count, unit="image", initial=done) as bar:
        last = time.perf_counter()
        draws = (
            read_ahead(begin, own, ahead=1)
            if generates_ahead(evaluator.device)
            else map(begin, own)
        )
        for positions, generated in zip(own, draws, strict=True):
            rows = features(positions, generated)
            now = time.perf_counter()
            blocks.add(positions, rows, (now - last) / processes.num_processes)
            bar.update(len(positions) * processes.num_processes)
            last = now
    processes.wait_for_everyone()
    return before


def require_whole(blocks: FeatureBlocks) -> None:
    """Raise UserError if images are missing after `fill_blocks`; call it in the main process."""
    if lost := blocks.check()[0]:
        raise UserError(
            f"{blocks.folder}: {len(lost)} of {blocks.count} images are not there; all nodes "
            "should share this folder, and only one evaluation should write to it at a time"
        )
