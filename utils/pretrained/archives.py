"""Extract one file from a zip or tar archive that comes from elsewhere.

Only the wanted file is written. An archive is refused if a member is a link or a device, or would
be written outside of the folder that it is unpacked in.
"""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from utils.base.errors import UserError
from utils.base.files import write_whole
from utils.base.progress import progress

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
CHUNK = 1 << 20  # bytes


def is_archive(name: str) -> bool:
    """Return True if a file's name is that of an archive."""
    return name.lower().endswith(ARCHIVES)


def extract_file(archive: Path, target: Path) -> None:
    """Write the member of an archive that has the target's name to `target`, whole or not at all.

    If several members have that name, the one below a folder `train` is taken. Raises UserError if
    the archive is damaged or hostile, or does not hold exactly one such member.
    """
    is_zip = archive.suffix.lower() == ".zip"
    try:
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as source:
            member, size = _choose(dict(_members(source, archive)), target.name, archive)
            write_whole(target, lambda temporary: _extract(source, member, temporary, size))
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        gzip.BadGzipFile,
        EOFError,
        NotImplementedError,  # a zip method that Python does not know
        RuntimeError,  # an encrypted zip
    ) as fault:
        raise UserError(
            f"{archive}: is damaged or not an archive ({fault}); delete it to fetch it again"
        ) from fault
    except OSError as fault:
        raise UserError(f"{target}: cannot be written ({fault.strerror or fault})") from fault


def _members(source: zipfile.ZipFile | tarfile.TarFile, archive: Path) -> Iterator[tuple[str, int]]:
    """Yield name and size in bytes of an archive's files; raise UserError if it is hostile."""
    if isinstance(source, zipfile.ZipFile):
        found = [
            (m.filename, m.file_size, m.is_dir(), stat.S_IFMT(m.external_attr >> 16))
            for m in source.infolist()
        ]
        kinds = (0, stat.S_IFREG, stat.S_IFDIR)
        entries = [(name, size, folder, kind in kinds) for name, size, folder, kind in found]
    else:
        entries = [(m.name, m.size, m.isdir(), m.isreg() or m.isdir()) for m in source]
    for name, size, is_folder, is_plain in entries:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
            raise UserError(f"{archive}: refused, {name!r} would be written outside of its folder")
        if not is_plain:
            raise UserError(f"{archive}: refused, {name!r} is a link or a device")
        if not is_folder:
            yield name, size


def _choose(members: dict[str, int], name: str, archive: Path) -> tuple[str, int]:
    """Return the member called `name` in whatever folder, and its size in bytes."""
    found = [m for m in members if PurePosixPath(m).name == name]
    if len(found) > 1:
        found = [m for m in found if "train" in PurePosixPath(m).parts] or found
    if len(found) != 1:
        what = "does not hold" if not found else f"holds {len(found)} files named"
        raise UserError(f"{archive}: {what} {name}")
    return found[0], members[found[0]]


def _extract(
    source: zipfile.ZipFile | tarfile.TarFile, member: str, temporary: Path, size: int
) -> None:
    """Write a member of `size` bytes to a file; raise EOFError if it ends early."""
    # A zip compares the member's checksum at its end.
    stream = (
        source.open(member) if isinstance(source, zipfile.ZipFile) else source.extractfile(member)
    )
    assert stream is not None  # _members admits plain files only
    name = PurePosixPath(member).name
    with (
        stream,
        open(temporary, "wb") as file,
        progress(None, f"unpack {name}", size, "B", scale=True) as bar,
    ):
        while block := stream.read(CHUNK):
            file.write(block)
            bar.update(len(block))
        if file.tell() != size:
            raise EOFError(f"{name} ends after {file.tell()} of {size} bytes")
    if isinstance(source, tarfile.TarFile):  # a compressed tar ends with the checksum of the whole
        assert source.fileobj is not None
        while source.fileobj.read(CHUNK):
            pass
