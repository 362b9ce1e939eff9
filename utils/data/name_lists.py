"""Lists of image names as text, JSON or pickle, e.g. MM-CelebA-HQ's train and test splits.

A pickle is a program: loading one may run any code. MM-CelebA-HQ's splits are pickled lists of
strings, so a pickle is read here only if each of its instructions builds a list or a string.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.base.errors import UserError
from utils.base.text import LINE_END
from utils.data.file_names import nfc

STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
LISTS = {"EMPTY_LIST", "LIST", "MARK", "APPEND", "APPENDS"}

# Instructions on the memo, where a pickle keeps objects that it may mention again.
MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"}
ADMITTED = STRINGS | LISTS | MEMO | {"BINUNICODE8", "PROTO", "FRAME", "STOP"}


def read_names(file: Path) -> list[str]:
    """Read a list of image names: text with one name a line, or a JSON or pickled list of strings.

    The suffix decides: .json, .pickle or .pkl; any other means text. Raises a UserError if the file
    cannot be read, is empty, or holds anything but a list of strings.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        if file.suffix.lower() in (".pickle", ".pkl"):
            names = load_pickled_strings(content)
        elif file.suffix.lower() == ".json":
            names = json.loads(content)
        else:
            names = LINE_END.split(content.decode("utf-8-sig"))
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: {error}") from error
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8
        raise UserError(f"{file}: not a list of names in text, JSON or pickle ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: should hold one list of strings, the names of images")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UserError(f"{file}: holds no name")
    return names


def load_pickled_strings(content: bytes) -> Any:
    """Load a pickle of lists and strings; raise pickle.UnpicklingError for any other."""
    try:
        for opcode, value, position in pickletools.genops(content):
            if opcode.name not in ADMITTED:
                raise pickle.UnpicklingError(
                    f"is not a pickled list of strings ({opcode.name} at byte {position}), "
                    "and may run code when loaded; it was not loaded"
                )
            # A made-up place in the memo would take memory up to there.
            if opcode.name == "LONG_BINPUT" and (value is None or value > len(content)):
                raise pickle.UnpicklingError("is a damaged pickle")
        # MM-CelebA-HQ's lists were written by Python 2, whose strings are bytes.
        return _ListsAndStrings(io.BytesIO(content), encoding="utf-8").load()
    except (ValueError, IndexError, KeyError, AttributeError, TypeError, EOFError) as error:
        raise pickle.UnpicklingError(f"is a damaged pickle ({error})") from error


class _ListsAndStrings(pickle.Unpickler):
    """An unpickler that refuses classes and functions."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which may run code")


def choose(files: Sequence[str], wanted: Sequence[str], source: Path) -> list[int]:
    """Return the positions in `files` of the wanted images, in the order of `files`.

    `files` are relative paths. A wanted name is such a path, or its last parts, or a longer path
    that ends with it. It may lack the suffix, or have another one. Names compare in NFC. Raises a
    UserError that names `source`, the list's file, if a wanted name fits no image or several.
    """
    whole, stems = _Ends(files), _Ends([os.path.splitext(file)[0] for file in files])

    def find(name: str) -> int | None:
        """Return the position of the one image that a wanted name fits."""
        for ends, candidate in ((whole, name), (stems, name), (stems, os.path.splitext(name)[0])):
            if places := ends.find(candidate):
                return places[0] if len(places) == 1 else None
        return None

    found = {name: find(name) for name in wanted}
    if missing := [name for name in wanted if found[name] is None]:
        raise UserError(
            f"{source}: {len(missing)} of its {len(wanted)} names fit no image, or several "
            f"({missing[0]}, …); images are called {files[0]}, …"
        )
    return sorted({i for i in found.values() if i is not None})


class _Ends:
    """Relative paths, found by their ends."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.as_written = paths
        self.whole: dict[str, list[int]] = {}
        self.tails: dict[str, list[int]] = {}
        for i, path in enumerate(map(nfc, paths)):
            self.whole.setdefault(path, []).append(i)
            for tail in _tails(path):
                self.tails.setdefault(tail, []).append(i)

    def find(self, wanted: str) -> list[int]:
        """Return the places of the paths that fit best: as written, in NFC, or by their ends."""
        path = nfc(wanted)
        if same := self.whole.get(path):
            return [i for i in same if self.as_written[i] == wanted] or same
        longer = self.tails.get(path, [])
        return longer + [i for tail in _tails(path) for i in self.whole.get(tail, [])]


def _tails(path: str) -> list[str]:
    """Return the ends of a path that begin after a slash: `b/c` and `c` of `a/b/c`."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]
