"""Files of a data set: in a folder, in an archive, or in the shards of a folder.

A path through an archive names a file in it: `faces.zip/a/1.jpg`, `shards/007.tar/1.txt`. Nothing
is unpacked to disk. An archive counts as a folder, and so does a folder inside it (`faces.zip/a`).
A folder whose files lie in archives only is one folder cut into shards (webdataset): a sample's
name does not contain the archive's. Each read opens the archive anew, so threads and processes may
read at once.
"""

from __future__ import annotations

import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from utils.base.errors import UserError, refusing
from utils.data.file_names import BROKEN_LINK, LISTED_ALREADY, NO_FILE, LeftOut, nfc
from utils.data.folder_files import list_folder

ARCHIVES = {".zip", ".tar"}
COMPRESSED_TARS = {".tgz", ".gz", ".bz2", ".xz", ".zst"}  # cannot be read from the middle
MOST_BYTES = 1 << 30  # size of the largest file that is read from an archive
MOST_LINKS = 40  # from one to the next, as Linux follows them
MOST_PATH = 4096  # bytes of a link's target
SPECIAL_FILES = {stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}
ZIP_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, lengths of its name and extras
SPARSE = "sparse file(s), as tar -S writes them"


class Member(NamedTuple):
    """Place and form of a file's bytes in its archive."""

    offset: int  # of its header in a zip, of its content in a tar
    stored: int  # bytes in the archive
    size: int  # bytes of content
    is_deflated: bool
    crc: int | None  # of the content; tars have none


def list_files(
    folder: str | Path, suffixes: Collection[str], what: str, beside: Collection[str] = ()
) -> dict[str, Path]:
    """List the files below `folder` with one of the `suffixes` (lower case): name -> path.

    A name is the path below the folder, or below its shard. `what` names the kind of folder in
    messages. A note says what is left out and why; files with a suffix of `beside` may lie among
    the others, and need no word. Raises a UserError if there is no folder, if a folder in it cannot
    be read, if an archive is damaged, or if two shards hold a file of the same name.
    """
    folder, left_out = Path(folder), LeftOut(suffixes, beside)
    if archive := archive_of(folder):
        inside = folder.relative_to(archive).as_posix()
        found = _list_archive(archive, "" if inside == "." else inside, left_out)
    elif not folder.is_dir():
        hint = ""
        if COMPRESSED_TARS & set(folder.suffixes) and folder.is_file():
            hint = "; decompress it to a plain .tar"
        raise UserError(f"{folder}: there is no {what} folder, .zip or .tar{hint}")
    else:
        found = list_folder(folder, left_out)
        if not found:
            found = _list_shards(folder, left_out)
    left_out.say(folder, list(found), what)
    return found


def _list_shards(folder: Path, left_out: LeftOut) -> dict[str, Path]:
    """List the files in the archives of a folder, which were all left out so far."""
    found: dict[str, Path] = {}
    for archive in sorted(folder.iterdir()):
        if archive_of(archive) != archive or archive.name.startswith("."):
            continue
        left_out.take_back(archive.name)
        members = _list_archive(archive, "", left_out)
        if twice := found.keys() & members.keys():
            name = min(twice)
            raise UserError(
                f"{archive}: holds {name}, and so does {found[name].parents[name.count('/')]}; "
                "names should differ between the shards of a data set"
            )
        found |= members
    return found


def _list_archive(archive: Path, inside: str, left_out: LeftOut) -> dict[str, Path]:
    """List the files of an archive below the folder `inside`; "" = all of them."""
    index, depth = _members(archive), len(PurePosixPath(inside).parts)

    def below(name: str) -> str:
        """Return a member's path below the folder; "" if it lies elsewhere."""
        parts = name.split("/")
        is_inside = nfc("/".join(parts[:depth])) == nfc(inside)
        return "/".join(parts[depth:]) if is_inside else ""

    for name, reason in index.others.items():
        if (inner := below(name)) and not left_out.is_foreign(inner):
            left_out.add(reason, f"{archive.name}/{name}")
    names = ((below(name), name) for name in index.members)
    return {inner: archive / name for inner, name in names if inner and left_out.is_wanted(inner)}


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
    member = _members(archive).members.get(path.relative_to(archive).as_posix())
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


class Index(NamedTuple):
    """Members of an archive."""

    members: dict[str, Member]  # its files
    others: dict[str, str]  # what is no file, though a folder lists it as one -> reason


def _members(archive: Path) -> Index:
    state = archive.stat()
    return _read_index(archive, state.st_size, state.st_mtime_ns)


@cache
def _read_index(archive: Path, size: int, changed: int) -> Index:
    """List the files of an archive; `size` and `changed` make the cache miss when it changes."""
    kind = archive.suffix[1:].lower()
    members: dict[str, Member] = {}
    links: dict[str, str] = {}  # name -> name that it leads to
    others: dict[str, str] = {}
    with refusing(f"{archive}: not a readable {kind} archive; copy or download it again"):
        (_read_zip if kind == "zip" else _read_tar)(archive, members, links, others)
    if unsafe := [name for name in (*members, *links) if ".." in name.split("/")]:
        raise UserError(f"{archive}: holds {unsafe[0]!r}, a name that leads out of the archive")
    folders = {parent.as_posix() for name in members for parent in PurePosixPath(name).parents}
    for name in links:
        target = _follow(name, links, members)
        if target in members:
            members[name] = members[target]
        else:
            others[name] = LISTED_ALREADY if target in folders else BROKEN_LINK
    return Index(members, others)


def _follow(name: str, links: dict[str, str], members: dict[str, Member]) -> str:
    """Return the name to which a name leads, through links of files and of folders."""
    for _ in range(MOST_LINKS):
        parts = name.split("/")
        heads = ("/".join(parts[:i]) for i in range(1, len(parts) + 1))
        head = next((head for head in heads if head in links and head not in members), None)
        if head is None:
            return name
        name = posixpath.normpath(links[head] + name.removeprefix(head))
    return name


def _read_zip(
    archive: Path, members: dict[str, Member], links: dict[str, str], others: dict[str, str]
) -> None:
    """Add the files, links and other members of a zip."""
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            name, mode = _plain(info.filename), info.external_attr >> 16
            if info.is_dir():
                continue
            if stat.S_ISLNK(mode) and info.file_size <= MOST_PATH:
                links[name] = _target(name, os.fsdecode(file.read(info)))
                continue
            if stat.S_IFMT(mode) in SPECIAL_FILES:
                others[name] = NO_FILE
                continue
            deflated = info.compress_type == zipfile.ZIP_DEFLATED
            if info.flag_bits & 1 or not (deflated or info.compress_type == zipfile.ZIP_STORED):
                raise UserError(
                    f"{archive}: {info.filename} is encrypted, or compressed by another method "
                    "than deflate; make the archive again, stored or deflated"
                )
            members[name] = Member(
                info.header_offset, info.compress_size, info.file_size, deflated, info.CRC
            )


def _read_tar(
    archive: Path, members: dict[str, Member], links: dict[str, str], others: dict[str, str]
) -> None:
    """Add the files, links and other members of a tar."""
    with tarfile.open(archive, "r:") as file:
        for info in file:
            name = _plain(info.name)
            if info.issym():
                links[name] = _target(name, info.linkname)
            elif info.islnk():
                links[name] = _plain(info.linkname)
            elif info.issparse():  # its content has holes
                others[name] = SPARSE
            elif info.isreg():
                members[name] = Member(info.offset_data, info.size, info.size, False, None)
            elif not info.isdir():
                others[name] = NO_FILE


def _target(name: str, link: str) -> str:
    """Return where a link inside an archive leads: a member's name if it stays inside."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def _plain(name: str) -> str:
    """Normalise a member's name: `./a//b` and `/a/b` become `a/b`."""
    return PurePosixPath(name).as_posix().lstrip("/")
