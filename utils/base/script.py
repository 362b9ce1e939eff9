"""How a script ends, and how it prints; only scripts import this, and first of all.

From then on Ctrl-C ends the script with one line and exit code 130, and no print fails: characters
that the console lacks are printed as escapes. A notebook or program that imports this keeps its own
hooks and streams.
"""

import errno
import functools
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, ParamSpec, TypeVar

from utils.base.errors import UserError, fail

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
}


def _is_running() -> bool:
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


if _is_running():
    sys.excepthook, sys.unraisablehook = _end_by_exception, _end_lost_interrupt
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def one_line_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a script's `main()`: faults that are no bugs end it without a traceback.

    They are a UserError, Ctrl-C, and a disk that is full or must not be written to.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            fail(str(error))
        except OSError as error:
            if error.errno not in PLACE_FAULTS:
                raise
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror}; {PLACE_FAULTS[error.errno]}")
        except KeyboardInterrupt:
            _end_interrupted()

    return wrapper
