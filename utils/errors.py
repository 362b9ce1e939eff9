"""A user's mistake ends with one line on stderr and exit code 2; a bug keeps its traceback."""

import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

# Exit codes of a training beside 0, 2 (a user's mistake) and 128 + the number of a signal.
DIVERGED = 3  # too many steps in a row without a finite loss and gradient
NOT_SAVED = 4  # it is over, and its last checkpoint could not be written
LOST_PROCESS = 5  # another process is gone or does not answer

P = ParamSpec("P")
R = TypeVar("R")


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


def one_line_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Decorator for a script's `main()`: a UserError or Ctrl-C ends it without a traceback."""

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapper
