"""A user's mistake ends with one line on stderr and exit code 2; a bug keeps its traceback.

Ctrl-C ends a script with one line too, and exit code 130, from the moment this module is imported.
"""

import errno
import functools
import os
import reprlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn, ParamSpec, TypeVar

from utils.base.processes import is_main_process

# Exit codes of a training beside 0, 2 (a user's mistake) and 128 + the number of a signal.
DIVERGED = 3  # too many steps in a row without a finite loss and gradient
NOT_SAVED = 4  # the training is over, but its last checkpoint could not be written
LOST_PROCESS = 5  # another process is gone or does not answer
P = ParamSpec("P")
R = TypeVar("R")

# Faults of a place rather than of the program, and how the user mends them.
PLACE_FAULTS = {
    errno.ENOSPC: "make room on the disk and start again",
    errno.EDQUOT: "make room on the disk and start again",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you have the rights to",
    errno.EPERM: "choose a place that you have the rights to",
}


class UserError(Exception):
    """A user's mistake: each line says where it is, what is wrong and how to mend it."""


def fail(message: str) -> NoReturn:
    """End the process with `error: message` on stderr and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def note(message: str) -> None:
    """Print `note: message` on stderr, in the main process only."""
    if is_main_process():
        print(f"note: {message}", file=sys.stderr)


def one_line(fault: BaseException, limit: int = 300) -> str:
    """Return an exception's message in one line of bounded length, or its type if it has none."""
    text = " ".join(str(fault).split()) or type(fault).__name__
    return text if len(text) <= limit else f"{text[:limit]}…"


def short_repr(value: object) -> str:
    """Return `repr(value)` cut to a bounded length, also if its parts refer to each other."""
    bounded = reprlib.Repr()
    bounded.maxlevel, bounded.maxlist, bounded.maxdict = 2, 3, 3
    bounded.maxstring, bounded.maxother = 80, 80
    try:
        return bounded.repr(value)
    except ValueError:  # Python refuses to print an integer of thousands of digits
        return "a number of too many digits"


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


if __name__ == "utils.base.errors":  # no copy inside somebody else's program
    sys.excepthook, sys.unraisablehook = _end_by_exception, _end_lost_interrupt


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Turn all that reading a damaged or hostile file raises into a UserError, `message (reason)`.

    Libraries that parse files raise exceptions of any type on them.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as fault:
        raise UserError(f"{message} ({one_line(fault)})") from fault


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
