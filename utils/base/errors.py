"""A user's mistake ends with one line on stderr and exit code 2; a bug keeps its traceback."""

import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from utils.base.processes import is_main_process

# Exit codes of a training beside 0, 2 (a user's mistake) and 128 + the number of a signal.
DIVERGED = 3  # too many steps in a row without a finite loss and gradient
NOT_SAVED = 4  # the training is over, but its last checkpoint could not be written
LOST_PROCESS = 5  # another process is gone or does not answer


class UserError(Exception):
    """A user's mistake: each line says where it is, what is wrong and how to mend it."""

    code = 2  # with which a script ends


class LostProcessError(UserError):
    """Another process of the job is gone or does not answer; the same command may help."""

    code = LOST_PROCESS


def fail(message: str, code: int = UserError.code) -> NoReturn:
    """End the process with `error: message` on stderr, and this exit code."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


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


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Make a UserError, `message (reason)`, of all that reading a damaged or hostile file raises.

    Libraries that parse files raise exceptions of any type on them.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as fault:
        raise UserError(f"{message} ({one_line(fault)})") from fault
