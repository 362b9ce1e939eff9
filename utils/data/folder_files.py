"""Files below a folder on disk: each real folder once, and an error for what cannot be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from utils.base.errors import UserError
from utils.data.file_names import BROKEN_LINK, LISTED_ALREADY, NO_FILE, LeftOut


def natural(text: str) -> tuple[list[str | int], str]:
    """Return a sort key: texts and numbers alternate, then the text itself (`1` is not `01`)."""
    parts = re.split("([0-9]+)", text)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], text


def list_folder(root: Path, left_out: LeftOut) -> dict[str, Path]:
    """List the files below a folder that count: path below the folder -> path.

    Links to folders are followed in natural order, after all real folders: what two paths lead to
    keeps the name without a link. Raises a UserError for a folder that may not be read.
    """
    found: dict[str, Path] = {}
    listed: set[str] = set()
    folders: list[Path] = [root]
    links: list[Path] = []
    while folders or links:
        is_link = not folders
        if is_link:
            links.sort(key=lambda path: natural(path.as_posix()))
            folders.append(links.pop(0))
        folder = folders.pop()
        real = os.path.realpath(folder)
        # A link upwards leads round in a circle.
        if real in listed or (is_link and _is_around(real, folder, root)):
            left_out.add(LISTED_ALREADY, str(folder))
            continue
        listed.add(real)
        for entry in _entries(folder, root):
            path = folder / entry.name
            name = path.relative_to(root).as_posix()
            kind = _kind(entry, root)
            if kind == "folder":
                if not left_out.is_foreign(name):
                    (links if entry.is_symlink() else folders).append(path)
            elif kind == "file":
                if left_out.is_wanted(name):
                    found[name] = path
            elif not left_out.is_foreign(name):
                left_out.add(kind, name)
    return found


def _kind(entry: os.DirEntry[str], root: Path) -> str:
    """Return "folder" or "file", after links, or the reason why it is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except PermissionError as error:
        raise _unreadable(entry.path, root, error) from error
    except OSError:  # links in a circle
        return BROKEN_LINK
    return BROKEN_LINK if entry.is_symlink() else NO_FILE


def _is_around(real: str, link: Path, root: Path) -> bool:
    """Return True if a real folder holds the link that leads to it, or the whole root."""
    inside = (os.path.realpath(link.parent), os.path.realpath(root))
    return any(Path(place).is_relative_to(real) for place in inside)


def _entries(folder: Path, root: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what lies in a folder; raise a UserError if it may not be read or entered."""
    try:
        os.stat(os.path.join(folder, "."))  # a folder may be readable, but not to be entered
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise _unreadable(folder, root, error) from error


def _unreadable(path: str | Path, root: Path, error: OSError) -> UserError:
    advice = "give yourself the right to read it"
    if Path(path) != root:
        advice += f", or move it out of {root}"
    return UserError(f"{path}: cannot be read ({error.strerror}); {advice}")
