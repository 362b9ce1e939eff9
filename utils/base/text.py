"""Text as people write it: lines, what shows nothing, characters that no encoding has; tables."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from utils.base.errors import UserError

LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines also cuts at form feeds, U+2028 and others
BOM = "\ufeff"  # byte order mark, which stands within a text after `cat a.txt b.txt`
# Control characters, formats such as the zero-width space, and all kinds of spaces.
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that show something, without white space and BOMs at their ends.

    A line ends with CR, LF or both, and with nothing else.
    """
    lines = [line.strip().strip(BOM).strip() for line in LINE_END.split(text)]
    return [line for line in lines if is_visible(line)]


def is_visible(text: str) -> bool:
    """Return True if a text shows anything: more than spaces, BOMs and zero-width characters."""
    return any(unicodedata.category(character) not in INVISIBLE for character in text)


def decoded(content: bytes, file: Path) -> str:
    """Return the text of a user's file; raise UserError with its name if it is not UTF-8."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text; save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without a byte order mark may pass as UTF-8
        raise UserError(f"{file}: is not text, it holds NUL bytes; save it as UTF-8")
    return text


def printable(text: str) -> str:
    r"""Return a text that UTF-8 can hold: bytes of a file name that are none become `\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def aligned(rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Return a table in plain text, with a rule below its first row.

    The first `left` columns are aligned to the left, all others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
