"""Work that the main process does for all processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from accelerate.utils import broadcast_object_list

from utils.base.processes import is_main_process

T = TypeVar("T")


def main_process_only(compute: Callable[[], T]) -> T:
    """Return to all processes what `compute` returns in the main process; all call this."""
    result: T = broadcast_object_list([compute() if is_main_process() else None])[0]
    return result


@contextmanager
def shared_folder(beside: Path | None = None) -> Iterator[Path]:
    """Make an empty folder that all processes see, and delete it at the end; all call this.

    `beside`: a file next to which the folder is made. If it is None, the folder is made in the
    system's temporary folder, or, on several nodes, in the working directory.
    """

    def make() -> str:
        one_node = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
        parent = beside.parent if beside else Path(tempfile.gettempdir() if one_node else ".")
        parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix=".evaluation-", dir=parent.resolve())

    folder = Path(main_process_only(make))
    try:
        yield folder
    finally:  # in each process: if one of them fails, the others are killed
        shutil.rmtree(folder, ignore_errors=True)
