"""A user's mistake ends with one line on stderr and exit code 2; a bug keeps its traceback."""

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, ParamSpec, TypeVar

# Exit codes of a training beside 0, 2 (a user's mistake) and 128 + the number of a signal.
DIVERGED = 3  # too many steps in a row without a finite loss and gradient
NOT_SAVED = 4  # it is over, and its last checkpoint could not be written
LOST_PROCESS = 5  # another process is gone or does not answer
P = ParamSpec("P")
R = TypeVar("R")

# Faults of a place rather than of the program, and what to do about them.
PLACE_FAULTS = {
    errno.ENOSPC: "make room on the disk and start again",
    errno.EDQUOT: "make room on the disk and start again",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you have the rights to",
    errno.EPERM: "choose a place that you have the rights to",
}


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one clear line (one line per fault)."""


def fail(message: str) -> NoReturn:
    """End the process as a user's mistake does: `error: …` on stderr, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def note(message: str) -> None:
    """Tell the user something on stderr, once even when several processes run the same line."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {message}", file=sys.stderr)


def one_line(fault: BaseException, limit: int = 300) -> str:
    """An exception's message in one line of bounded length; its type if it has none."""
    text = " ".join(str(fault).split()) or type(fault).__name__
    return text if len(text) <= limit else f"{text[:limit]}…"


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Whatever reading a damaged or hostile file raises becomes a UserError, `message (reason)`.

    For the libraries that parse files: what they raise then is not theirs to choose.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as fault:
        raise UserError(f"{message} ({one_line(fault)})") from fault


def one_line_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Decorator for a script's `main()`: what is no bug ends it without a traceback.

    That is a UserError, Ctrl-C, and a disk that is full or may not be written.
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
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapper
