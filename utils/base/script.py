"""How a script ends, prints and uses threads; only scripts import this, and first of all.

From then on Ctrl-C ends the script with one line and exit code 130, and no print fails. A notebook
or program that imports this keeps its own hooks and streams.
"""

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, ParamSpec, TypeVar

from utils.base.errors import UserError, fail, one_line
from utils.base.processes import launch_fault
from utils.base.streams import keep_streams
from utils.base.threads import prepare_threads

P = ParamSpec("P")
R = TypeVar("R")

PROJECT = Path(__file__).resolve().parents[2]

# Faults of a place rather than of the program, and how the user mends them.
PLACE_FAULTS = {
    errno.ENOSPC: "make room on the disk and start again",
    errno.EDQUOT: "make room on the disk and start again",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you have the rights to",
    errno.EPERM: "choose a place that you have the rights to",
    errno.ENOTDIR: "a file is in the place of a folder: choose another place",
    errno.EEXIST: "a file is in the place of a folder: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def is_script() -> bool:
    """Return True if the program is a script of the project, not one that imports from it."""
    file = Path(getattr(sys.modules["__main__"], "__file__", None) or "-")
    is_own = file.suffix == ".py" and file.resolve().is_relative_to(PROJECT)
    return is_own and "site-packages" not in file.resolve().parts


def _end_interrupted() -> NoReturn:
    """End the process with `interrupted` on stderr and exit code 130 (128 + SIGINT)."""
    print("interrupted", file=sys.stderr)
    sys.exit(130)


def _end_by_exception(
    kind: type[BaseException], fault: BaseException, trace: TracebackType | None
) -> None:
    """Python calls this for an exception that nothing catches, e.g. Ctrl-C during the imports."""
    if issubclass(kind, KeyboardInterrupt):
        _end_interrupted()
    sys.__excepthook__(kind, fault, trace)


def _end_lost_interrupt(lost: "sys.UnraisableHookArgs") -> None:
    """Python calls this for an exception in a destructor, which it can only print.

    Ctrl-C at that moment would be lost. Every script continues after a kill, so it ends here.
    """
    if issubclass(lost.exc_type, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    sys.__unraisablehook__(lost)


if is_script():
    prepare_threads()
    sys.excepthook, sys.unraisablehook = _end_by_exception, _end_lost_interrupt
    keep_streams()


def _flush_denormals() -> None:
    """Let the processor take numbers below 1e-38 as zero, in all threads that torch will start.

    A trained network's GELU computes so many of them that a step takes half as long again
    (benchmarks/denormals.py). Scripts load torch before their `main()`.
    """
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(True)


def one_line_errors(main: Callable[P, R], several: bool = False) -> Callable[P, R]:
    """Decorate a script's `main()`: faults that are no bugs end it without a traceback.

    They are a UserError, Ctrl-C, a disk that is full or must not be written to, and variables of a
    launcher that do not say which process this is. several: a launcher may start several processes.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if fault := launch_fault(several):
            fail(fault)
        if is_script():
            _flush_denormals()
        try:
            return main(*args, **kwargs)
        except UserError as error:
            fail(str(error), error.code)
        except OSError as error:
            if error.errno not in PLACE_FAULTS:
                raise
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror}; {PLACE_FAULTS[error.errno]}")
        except KeyboardInterrupt:
            _end_interrupted()
        except Exception as error:
            if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise
            fail(_compiler_advice(error))

    return wrapper


def _compiler_advice(fault: Exception) -> str:
    """Return the line for a fault of torch.compile; its cache on disk may be damaged."""
    from torch._inductor.runtime.runtime_utils import cache_dir  # many scripts need no torch

    return (
        f"torch.compile failed ({one_line(fault)}); if it worked before, its cache is damaged: "
        f"rm -r {cache_dir()}; or set train.compile=false or sampling.compile=false"
    )


def one_line_errors_of_each(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate the `main()` of a script of which a launcher may start several processes."""
    return one_line_errors(main, several=True)
