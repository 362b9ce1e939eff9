"""A folder or archive lists its images, and a note counts the files that are none."""

import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.base.errors import UserError
from utils.data.archive_files import read_bytes
from utils.data.images import list_images


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def names_in(folder: Path) -> list[str]:
    return [sample.file_name for sample in list_images(folder)]


@pytest.mark.parametrize("suffix", ["bmp", "gif", "avif", "jfif", "jp2", "jpe", "TIF", "mpo"])
def test_every_format_that_is_decoded_counts(tmp_path, suffix):
    touch(tmp_path, "1.png", f"2.{suffix}")
    assert names_in(tmp_path) == ["1.png", f"2.{suffix}"]


def test_one_note_counts_what_is_left_out_and_why(tmp_path, capfd):
    touch(tmp_path, "1.png", "2.gif", "a.heic", "b.HEIC", "c.pdf", "none", ".hidden.png", "1.txt")
    for _ in range(2):
        assert names_in(tmp_path) == ["1.png", "2.gif"]
    assert capfd.readouterr().err == (
        f"note: {tmp_path}: image files: 1 .png, 1 .gif; left out: 2 .heic (read where "
        "the package pillow-heif is installed), 1 without suffix, 1 hidden, 1 .pdf\n"
    )


def test_a_folder_of_one_kind_of_images_and_their_captions_needs_no_note(tmp_path, capfd):
    touch(tmp_path, "1.png", "a/2.PNG", "1.txt")
    assert len(names_in(tmp_path)) == 2
    assert capfd.readouterr().err == ""


SYSTEM = [
    "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "a/.@__thumb/default1.jpg",
    ".thumbnails/1.png",
    "a/__MACOSX/1.png",
    "a/._1.png",
    "lost+found/1.png",
    "@Recently-Snapshot/GMT+01/1.png",
    "~snapshot/hourly.0/1.png",
    "$RECYCLE.BIN/1.png",
    "a/Thumbs.db",
]


def pack(folder: Path, form: str) -> Path:
    """Return the folder itself, or an archive of it; links stay links."""
    if form == "folder":
        return folder
    archive = folder.parent / f"packed.{form}"
    if form == "tar":
        with tarfile.open(archive, "w") as file:
            file.add(folder, ".")
        return archive
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                file.writestr(info, os.readlink(path))
            elif path.is_file():
                file.write(path, name)
    return archive


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_thumbnails_of_storage_devices_and_desktops_are_no_images(tmp_path, form, capfd):
    source = pack(touch(tmp_path / "x", "1.png", "a/2.png", *SYSTEM), form)
    assert names_in(source) == ["1.png", "a/2.png"]
    assert "left out: 7 of the system (thumbnails and the like), 3 hidden" in capfd.readouterr().err


@pytest.mark.parametrize("below", ["more", "a/b"])
def test_archives_below_a_folder_of_shards_are_named(tmp_path, below, capfd):
    shards = touch(tmp_path / "shards", "index.json", f"{below}/notes.pdf")
    pack(touch(tmp_path / "x", "1.png", "2.pdf"), "zip").rename(shards / "0.zip")
    pack(touch(tmp_path / "y", "2.png"), "tar").rename(shards / below / "1.tar")
    assert names_in(shards) == ["1.png"]
    assert "left out: 2 .pdf, 1 .tar, 1 .json\n" in capfd.readouterr().err


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_links_count_alike_in_every_form(tmp_path, form, capfd):
    root = touch(tmp_path / "x", "1.png", "sub/2.png", "sub/deep/3.png")
    link(root / "loop", ".")
    link(root / "sub" / "up", "..")
    link(root / "latest", "sub")
    link(root / "chain", "latest")
    link(root / "first.png", "1.png")
    link(root / "second.png", "first.png")
    link(root / "through.png", "chain/deep/3.png")
    link(root / "broken.png", "gone.png")
    link(root / "circle.png", "circle.png")
    assert names_in(pack(root, form)) == [
        "1.png", "first.png", "second.png", "sub/2.png", "sub/deep/3.png", "through.png",
    ]  # fmt: skip
    err = capfd.readouterr().err
    assert "4 link(s) to a folder that is listed already, 2 broken link(s)" in err


def test_images_behind_links_of_a_tar_have_the_pixels_of_their_target(tmp_path):
    root = tmp_path / "x"
    root.mkdir()
    (root / "1.png").write_bytes(b"content")
    link(root / "2.png", "1.png")
    os.link(root / "1.png", root / "3.png")
    samples = list_images(pack(root, "tar"))
    assert [read_bytes(sample.path) for sample in samples] == [b"content"] * 3


def test_a_folder_outside_is_listed_once_by_the_first_link_in_natural_order(tmp_path):
    root = touch(tmp_path / "x", "1.png")
    touch(tmp_path / "outside", "2.png", "deep/3.png")
    link(root / "b10", "../outside")
    link(root / "b2", "../outside")
    link(tmp_path / "outside" / "back", "../x")
    assert names_in(root) == ["1.png", "b2/2.png", "b2/deep/3.png"]


def test_a_link_to_a_folder_around_the_images_leads_nowhere(tmp_path):
    root = touch(tmp_path / "own" / "images", "1.png")
    touch(tmp_path / "own", "other/2.png")
    link(root / "up", "..")
    assert names_in(root) == ["1.png"]


def test_what_is_no_regular_file_is_left_out(tmp_path, capfd):
    touch(tmp_path, "1.png")
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    assert names_in(tmp_path) == ["1.png"]
    assert "left out: 1 no regular file(s)" in capfd.readouterr().err


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_a_sparse_member_of_a_tar_is_left_out(tmp_path, capfd):
    """Its bytes do not lie in the archive as they lie in the file."""
    root = touch(tmp_path / "x", "1.png", "2.png")
    os.truncate(root / "2.png", 1 << 20)
    subprocess.run(["tar", "-C", root, "-cSf", tmp_path / "a.tar", "."], check=True)
    assert names_in(tmp_path / "a.tar") == ["1.png"]
    assert "left out: 1 sparse file(s)" in capfd.readouterr().err


@pytest.fixture
def locked(tmp_path) -> Iterator[Path]:
    folder = touch(tmp_path / "x", "1.png", "sub/2.png") / "sub"
    yield folder
    folder.chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o100])
def test_a_folder_that_may_not_be_read_or_entered_is_an_error(locked, mode):
    locked.chmod(mode)
    with pytest.raises(UserError, match=rf"^{locked}: cannot be read \(Permission denied\)"):
        list_images(locked.parent)


def test_a_folder_that_cannot_be_read_is_an_error_for_everybody(tmp_path, monkeypatch):
    """Root may read everything, so the system itself is made to refuse."""
    folder = touch(tmp_path / "x", "1.png", "sub/2.png") / "sub"
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=rf"^{folder}: cannot be read .*or move it out of"):
        list_images(tmp_path / "x")


def test_hidden_folders_may_be_locked(tmp_path, monkeypatch):
    touch(tmp_path, "1.png", "lost+found/x.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names_in(tmp_path) == ["1.png"]
