"""Names of files: which count, which are left out and why, and when two are the same name."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from utils.base.errors import note

# Folders and files that storage devices and desktops keep beside images, above all thumbnails.
SYSTEM_NAMES = {
    "@eadir", "@recycle", "#recycle", "@recently-snapshot", "#snapshot", "~snapshot", "__macosx",
    "lost+found", "recycler", "$recycle.bin", "system volume information", "thumbs.db",
    "ehthumbs.db", "desktop.ini",
}  # fmt: skip
HIDDEN, SYSTEM, NO_SUFFIX = "hidden", "of the system (thumbnails and the like)", "without suffix"
NO_FILE, BROKEN_LINK = "no regular file(s)", "broken link(s)"
LISTED_ALREADY = "link(s) to a folder that is listed already"
MOST_REASONS = 8  # in a note
HEIF = dict.fromkeys([".heic", ".heif"], " (read where the package pillow-heif is installed)")


def nfc(name: str) -> str:
    """Return a name in Unicode's form NFC: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def find_names(names: Collection[str], wanted: Iterable[str]) -> list[str | None]:
    """Return for each wanted name the one of `names` that is it, or else the only one in NFC."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(nfc(name), []).append(name)
    found = []
    for name in wanted:
        others = alike.get(nfc(name), [])
        found.append(name if name in others else others[0] if len(others) == 1 else None)
    return found


def numbered(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return each name in NFC, with the number of equal ones before it: `a.jpg` and `a.png`."""
    seen: Counter[str] = Counter()
    found = []
    for name in map(nfc, names):
        found.append((name, seen[name]))
        seen[name] += 1
    return found


class LeftOut:
    """Files of a folder that do not count, by reason, for one note."""

    def __init__(self, suffixes: Collection[str], beside: Collection[str] = ()) -> None:
        """`suffixes`: of the files that count; `beside`: of those that may lie among them."""
        self.suffixes, self.beside = suffixes, beside
        self.by_reason: dict[str, set[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Leave out a file or folder."""
        self.by_reason.setdefault(reason, set()).add(name)

    def take_back(self, name: str) -> None:
        """Leave out a file or folder no longer."""
        for names in self.by_reason.values():
            names.discard(name)
        self.by_reason = {reason: names for reason, names in self.by_reason.items() if names}

    def is_wanted(self, name: str) -> bool:
        """Return True if a file counts by its path below the folder; leave it out otherwise."""
        if self.is_foreign(name):
            return False
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in self.suffixes and suffix not in self.beside:
            self.add(f"{suffix}{HEIF.get(suffix, '')}" if suffix else NO_SUFFIX, name)
        return suffix in self.suffixes

    def is_foreign(self, name: str) -> bool:
        """Leave out what is hidden, of the system, or in such a folder; return True for it."""
        parts = name.split("/")
        for i, part in enumerate(parts, 1):
            if part.startswith(".") or part.lower() in SYSTEM_NAMES:
                self.add(HIDDEN if part.startswith(".") else SYSTEM, "/".join(parts[:i]))
                return True
        return False

    def say(self, folder: Path, found: Sequence[str], what: str) -> None:
        """Print one note about what counts and what was left out, once for each folder.

        A folder whose files all count, and are of one kind, needs no word.
        """
        kinds = Counter(PurePosixPath(name).suffix.lower() for name in sorted(found)).most_common()
        if not self.by_reason and len(kinds) < 2:
            return
        counts = sorted(((len(n), reason) for reason, n in self.by_reason.items()), reverse=True)
        reasons = [f"{count:,} {reason}" for count, reason in counts]
        if len(reasons) > MOST_REASONS:
            others = sum(count for count, _ in counts[MOST_REASONS - 1 :])
            reasons = [*reasons[: MOST_REASONS - 1], f"{others:,} others"]
        kept = ", ".join(f"{count:,} {suffix}" for suffix, count in kinds) or "none"
        rest = f"; left out: {', '.join(reasons)}" if reasons else ""
        _say(f"{folder}: {what} files: {kept}{rest}")


@cache
def _say(message: str) -> None:
    """Print a note once, however often a script lists the same folder."""
    note(message)
