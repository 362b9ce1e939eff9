"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.base.text import printable


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, flush it to disk, then rename it to `path`.

    At no moment does `path` name an unfinished file. After an error the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors writes for the owner only
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(PermissionError):  # Windows opens no folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name is on disk too
        finally:
            os.close(folder)


def write_folder_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder, flush its files to disk, then rename it to `path`.

    `path` must not exist, or be an empty folder. After an error the temporary folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        write(temporary)
        mode = temporary.stat().st_mode & 0o666
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(mode)  # safetensors writes for the owner only
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; see `printable`."""
    write_whole(path, lambda temporary: temporary.write_bytes(printable(text).encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, whole or not at all."""
    write_text(path, json_text(value, indent=2, ensure_ascii=False) + "\n")


def json_text(value: Any, **options: Any) -> str:
    """Return plain values as JSON, which has no NaN or infinite numbers: they become null."""
    return json.dumps(json_values(value), allow_nan=False, **options)


def json_values(value: Any) -> Any:
    """Return plain values with None in place of NaN and infinite numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: json_values(inner) for key, inner in value.items()}
    return [json_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_json_lines(
    path: Path, report: Callable[[str], object] = lambda _: None
) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file, none if it is not there.

    A line that is no whole record, as a full disk or a power cut leave it, is reported and skipped.
    """
    records = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(json_values(record))
        else:
            report(f"{path}:{number}: not a whole record, skipped")
    return records


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a line for each record and a column for each key, whole or not at all."""
    columns = list(dict.fromkeys(key for record in records for key in record))

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(records)

    write_whole(path, write)
