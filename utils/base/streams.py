"""Console output that costs no work: a reader that is gone, a full disk, a closed descriptor."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any


class _Console(io.FileIO):
    """Descriptor of a script's output. What it does not take is dropped, and said once."""

    _failed = False

    def write(self, data: Any) -> int:
        """Write what the descriptor takes; never fail."""
        try:
            written = super().write(data)
        except OSError as fault:
            self._say(fault)
            written = None
        return len(data) if written is None else written

    def _say(self, fault: OSError) -> None:
        """Print one line about the first fault, unless a reader, as `| head`, has read enough."""
        if not self._failed and fault.errno != errno.EPIPE:
            with contextlib.suppress(OSError):
                os.write(2, f"note: output is lost, the work goes on: {fault.strerror}\n".encode())
        self._failed = True


def keep_streams() -> None:
    """Let no print of this script fail, whatever its console takes; call it before other imports.

    Characters that the console lacks are printed as escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _open_nothing(number)  # else the next file, e.g. a log, would get this number
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper) and _is_descriptor(stream):
            console = _Console(stream.fileno(), "wb", closefd=False)
            is_unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
            text = io.TextIOWrapper(
                console if is_unbuffered else io.BufferedWriter(console),
                stream.encoding,
                "backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, text)


def _is_descriptor(stream: io.TextIOWrapper) -> bool:
    """Return False for a stream that writes into memory, as those of tests and notebooks do."""
    return isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO)


def _open_nothing(number: int) -> None:
    """Open /dev/null under the number of a descriptor that is closed."""
    try:
        os.fstat(number)
    except OSError:
        nothing = os.open(os.devnull, os.O_RDWR)
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)
