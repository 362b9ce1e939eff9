"""Files of a data set: in a folder, in an archive, or in the shards of a folder.

A path through an archive names a file in it: `faces.zip/a/1.jpg`, `shards/007.tar/1.txt`. Nothing
is unpacked to disk. An archive counts as a folder, and so does a folder inside it (`faces.zip/a`).
A folder whose files lie in archives only is one folder cut into shards (webdataset): a sample's
name does not contain the archive's. Each read opens the archive anew, so threads and processes may
read at once.
"""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from utils.base.errors import UserError, refusing

ARCHIVES = {".zip", ".tar"}
COMPRESSED_TARS = {".tgz", ".gz", ".bz2", ".xz", ".zst"}  # cannot be read from the middle
MOST_BYTES = 1 << 30  # size of the largest file that is read from an archive
ZIP_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, lengths of its name and extras


class Member(NamedTuple):
    """Place and form of a file's bytes in its archive."""

    offset: int  # of its header in a zip, of its content in a tar
    stored: int  # bytes in the archive
    size: int  # bytes of content
    is_deflated: bool
    crc: int | None  # of the content; tars have none


def list_files(folder: str | Path, suffixes: Collection[str], what: str) -> dict[str, Path]:
    """List the files below `folder` with one of the `suffixes` (lower case): name -> path.

    A name is the path below the folder, or below its shard. Hidden files are left out. `what` names
    the kind of folder in messages. Raises a UserError if there is no folder, if an archive is
    damaged, or if two shards hold a file of the same name.
    """
    folder = Path(folder)
    if archive := archive_of(folder):
        inside = folder.relative_to(archive).as_posix()
        return _list_archive(archive, suffixes, "" if inside == "." else f"{inside}/")
    if not folder.is_dir():
        hint = ""
        if COMPRESSED_TARS & set(folder.suffixes) and folder.is_file():
            hint = "; decompress it to a plain .tar"
        raise UserError(f"{folder}: there is no {what} folder, .zip or .tar{hint}")
    return _list_folder(folder, suffixes) or _list_shards(folder, suffixes)


def _list_folder(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in files if _is_wanted(name, suffixes)]
        found |= {path.relative_to(folder).as_posix(): path for path in paths}
    return found


def _list_shards(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for archive in sorted(folder.iterdir()):
        if archive_of(archive) != archive or archive.name.startswith("."):
            continue
        members = _list_archive(archive, suffixes, "")
        if twice := found.keys() & members.keys():
            name = min(twice)
            raise UserError(
                f"{archive}: holds {name}, and so does {found[name].parents[name.count('/')]}; "
                "names should differ between the shards of a data set"
            )
        found |= members
    return found


def _list_archive(archive: Path, suffixes: Collection[str], inside: str) -> dict[str, Path]:
    return {
        name.removeprefix(inside): archive / name
        for name in _members(archive)
        if name.startswith(inside) and _is_wanted(name, suffixes)
    }


def _is_wanted(name: str, suffixes: Collection[str]) -> bool:
    """Return True if a file has one of the suffixes and no part of its path is hidden."""
    parts = name.split("/")
    is_hidden = any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX"
    return not is_hidden and PurePosixPath(name).suffix.lower() in suffixes


def archive_of(path: Path) -> Path | None:
    """Return the archive that `path` is or leads through, if any."""
    for candidate in (*reversed(path.parents), path):
        if candidate.suffix.lower() in ARCHIVES and candidate.is_file():
            return candidate
    return None


def read_bytes(path: Path) -> bytes:
    """Read a file on disk or in an archive; raise OSError if it is missing, damaged or huge."""
    archive = archive_of(path)
    if archive is None or archive == path:
        return path.read_bytes()
    member = _members(archive).get(path.relative_to(archive).as_posix())
    if member is None:
        raise FileNotFoundError(f"not in {archive.name}")
    if member.size > MOST_BYTES:
        raise OSError(f"{archive.name} states {member.size / 1e9:.1f} GB for it")
    with open(archive, "rb") as file:
        file.seek(member.offset)
        if member.crc is not None:
            signature, name_length, extra_length = ZIP_HEADER.unpack(file.read(ZIP_HEADER.size))
            if signature != b"PK\x03\x04":
                raise OSError(f"{archive.name} is damaged")
            file.seek(name_length + extra_length, os.SEEK_CUR)
        content = file.read(member.stored)
    if member.is_deflated:
        try:
            content = zlib.decompressobj(-15).decompress(content, member.size)
        except zlib.error as error:
            raise OSError(f"{archive.name} is damaged there") from error
    if len(content) != member.size or member.crc not in (None, zlib.crc32(content)):
        raise OSError(f"{archive.name} is damaged there")
    return content


def _members(archive: Path) -> dict[str, Member]:
    state = archive.stat()
    return _read_index(archive, state.st_size, state.st_mtime_ns)


@cache
def _read_index(archive: Path, size: int, changed: int) -> dict[str, Member]:
    """List the files of an archive; `size` and `changed` make the cache miss when it changes."""
    kind = archive.suffix[1:].lower()
    with refusing(f"{archive}: not a readable {kind} archive; copy or download it again"):
        members = (_read_zip if kind == "zip" else _read_tar)(archive)
    if unsafe := [name for name in members if ".." in name.split("/")]:
        raise UserError(f"{archive}: holds {unsafe[0]!r}, a name that leads out of the archive")
    return members


def _read_zip(archive: Path) -> dict[str, Member]:
    members = {}
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir():
                continue
            deflated = info.compress_type == zipfile.ZIP_DEFLATED
            if info.flag_bits & 1 or not (deflated or info.compress_type == zipfile.ZIP_STORED):
                raise UserError(
                    f"{archive}: {info.filename} is encrypted, or compressed by another method "
                    "than deflate; make the archive again, stored or deflated"
                )
            members[_plain(info.filename)] = Member(
                info.header_offset, info.compress_size, info.file_size, deflated, info.CRC
            )
    return members


def _read_tar(archive: Path) -> dict[str, Member]:
    with tarfile.open(archive, "r:") as file:
        return {
            _plain(info.name): Member(info.offset_data, info.size, info.size, False, None)
            for info in file
            if info.isreg()
        }


def _plain(name: str) -> str:
    """Normalise a member's name: `./a//b` and `/a/b` become `a/b`."""
    return PurePosixPath(name).as_posix().lstrip("/")
