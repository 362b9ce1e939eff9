"""Names of files: é in two spellings is one name, and a name never selects another file."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import crude_face
from preprocessing import IMG, N_TEST
from test_archive_files import make_tar, make_zip
from tiny import make_tiny_config

from utils.base.errors import UserError
from utils.data.captions import load_captions
from utils.data.file_names import find_names, numbered
from utils.data.images import list_images
from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_reader import LMDBReader, check_same_samples
from utils.data.lmdb_writer import LMDBWriter
from utils.data.name_lists import choose
from utils.evaluation.neighbours import training_image_paths

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
FORMS = [(NFC, NFD), (NFD, NFC)]


@pytest.mark.parametrize(("image", "caption"), FORMS)
@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_captions_belong_to_images_whose_names_read_alike(tmp_path, image, caption, form):
    files = {f"{caption}/{caption}.txt": b"a caption", "b.txt": b"another"}
    (tmp_path / "images" / image).mkdir(parents=True)
    crude_face(0, 8).save(tmp_path / "images" / image / f"{image}.png")
    if form == "folder":
        source = tmp_path / "captions"
        (source / caption).mkdir(parents=True)
        for name, content in files.items():
            (source / name).write_bytes(content)
    else:
        source = (make_zip if form == "zip" else make_tar)(tmp_path / f"captions.{form}", files)
    assert load_captions(list_images(tmp_path / "images"), source) == [["a caption"]]


@pytest.mark.parametrize(("there", "wanted"), FORMS)
def test_a_list_of_names_finds_names_that_read_alike(there, wanted):
    assert choose([f"{there}/1.png", "2.png"], [f"{wanted}/1"], Path("list")) == [0]
    assert choose([f"{there}.png", "2.png"], [f"{wanted}.jpg"], Path("list")) == [0]


@pytest.mark.parametrize(("there", "wanted"), FORMS)
def test_a_folder_in_an_archive_is_found_by_a_name_that_reads_alike(tmp_path, there, wanted):
    archive = make_zip(tmp_path / "a.zip", {f"x/{there}/sub/1.png": b"", "x/e/2.png": b""})
    assert [sample.name for sample in list_images(archive / "x" / wanted)] == ["sub/1"]


def test_two_files_whose_names_read_alike_stay_apart():
    assert find_names([NFC, NFD], [NFD, NFC, "e"]) == [NFD, NFC, None]
    files = [f"{NFC}.png", f"{NFD}.png"]
    assert choose(files, [f"{NFD}.png"], Path("list")) == [1]


def test_images_left_out_stay_so_when_their_names_are_written_in_another_form(project, capsys):
    """A data set is copied from macOS to Linux, with its databases."""
    images = project.folder / "test" / "images"
    (images / f"{NFD}.png").write_bytes(b"broken")
    (images / "000002.png").rename(images / f"{NFD}2.png")
    project.run(IMG, "--split", "test", "--skip_bad")
    for path in list(images.iterdir()):
        path.rename(path.with_name(unicodedata.normalize("NFC", path.name)))
    project.run(IMG, "--split", "test")
    assert f"complete already ({N_TEST} images)" in capsys.readouterr().out


def database(path: Path, kind: str, names: list[str], stop: int | None = None) -> Path:
    meta = {"names": names, "names_hash": names_hash(names)}
    shape = (1, 4, 2, 2) if kind == "z" else (1, 1, 4)
    with LMDBWriter(path, kind, meta, len(names)) as writer:
        for _ in names[writer.done : stop]:
            writer.append(np.zeros(shape, np.float32))
    return path


def test_databases_of_names_that_read_alike_belong_together(tmp_path):
    z = LMDBReader(database(tmp_path / "z", "z", [NFD, "b"]))
    y = LMDBReader(database(tmp_path / "y", "y", [NFC, "b"]))
    check_same_samples(z, y)


def test_an_unfinished_database_goes_on_with_names_that_read_alike(tmp_path):
    database(tmp_path / "z", "z", [NFD, "b"], stop=1)
    assert LMDBReader(database(tmp_path / "z", "z", [NFC, "b"])).info.length == 2
    database(tmp_path / "z", "z", [NFD, "b"])
    with pytest.raises(UserError, match="made differently before"):
        database(tmp_path / "z", "z", ["e", "b"])


FILES = ["a.jpg", "a.png", "b/1.jpg", "c/1.png", "d.v2.png"]


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        ("a.jpg", 0),
        ("a.png", 1),
        ("b/1", 2),
        ("1.png", 3),  # the last part of a path
        ("photos/c/1.png", 3),  # relative to another folder
        ("photos/c/1.webp", 3),
        ("d.v2", 4),
        ("d.v2.jpg", 4),
    ],
)
def test_a_name_selects_one_file(wanted, place):
    assert choose(FILES, [wanted], Path("list")) == [place]


@pytest.mark.parametrize("wanted", ["a", "a.webp", "1", "1.gif", "x/1.png", "test/a.jpg/1.jpg", ""])
def test_a_name_never_selects_another_file(wanted):
    with pytest.raises(UserError, match="fit no image, or several"):
        choose(FILES, [wanted], Path("list"))


def test_a_caption_file_of_two_images_is_an_error(tmp_path):
    for name in ("a.jpg", "a.png", "a.txt"):
        (tmp_path / name).write_text("a caption")
    said = r"a\.txt: is the caption file of two images, .*a\.jpg and .*a\.png; rename one of them"
    with pytest.raises(UserError, match=said):
        load_captions(list_images(tmp_path), tmp_path)


def test_equal_names_are_told_apart_by_their_order():
    assert numbered(["a", "b", "a", NFD, NFC]) == [
        ("a", 0), ("b", 0), ("a", 1), (NFC, 0), (NFC, 1),
    ]  # fmt: skip


def test_neighbours_of_equal_names_are_shown_in_their_order(tmp_path):
    folder = tmp_path / "faces"
    config = make_tiny_config(tmp_path, data={"image_dir": folder})
    folder.mkdir()
    for name in ("a.jpg", "a.png", f"{NFC}.png"):
        (folder / name).write_bytes(b"")
    reader = LMDBReader(database(tmp_path / "y", "y", ["a", "a", NFD]))
    found = training_image_paths(config.data.image_dir, reader, [1, 2, 0])
    assert [path.name for path in found] == ["a.png", f"{NFC}.png", "a.jpg"]
