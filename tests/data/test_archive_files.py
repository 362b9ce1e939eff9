"""Images and captions in archives, and lists of the images to use."""

import io
import json
import pickle
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import crude_face

from utils.base.errors import UserError
from utils.data.archive_files import read_bytes
from utils.data.captions import load_captions
from utils.data.image_batches import iterate_batches
from utils.data.images import find_unreadable, list_images
from utils.data.name_lists import choose, read_names

NAMES = [f"{i}" for i in range(12)]


def make_zip(path: Path, files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def face(i: int) -> bytes:
    file = io.BytesIO()
    crude_face(i, 32).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Files of a dataset, not in natural order."""
    captions = {f"{i}.txt": f"face {i}\na rendered face\n".encode() for i in range(12)}
    return {f"{i}.png": face(i) for i in reversed(range(12))} | captions


@pytest.fixture(params=["folder", "zip", "stored zip", "tar", "shards"])
def source(request, files, tmp_path) -> Path:
    """The dataset in one of the forms that can be read."""
    if request.param == "folder":
        (tmp_path / "faces").mkdir()
        for name, content in files.items():
            (tmp_path / "faces" / name).write_bytes(content)
        return tmp_path / "faces"
    if request.param == "zip":
        return make_zip(tmp_path / "faces.zip", files)
    if request.param == "stored zip":
        return make_zip(tmp_path / "faces.ZIP", files, zipfile.ZIP_STORED)
    if request.param == "tar":
        return make_tar(tmp_path / "faces.tar", {f"./{k}": v for k, v in files.items()})
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        part = {k: v for k, v in files.items() if int(Path(k).stem) % 3 == shard}
        make_tar(tmp_path / "shards" / f"{shard:03d}.tar", part)
    return tmp_path / "shards"


def paths_in(folder: Path) -> list[Path]:
    return [sample.path for sample in list_images(folder)]


def names_in(folder: Path) -> list[str]:
    return [sample.name for sample in list_images(folder)]


def test_every_form_gives_the_same_names_in_the_same_order(source):
    assert names_in(source) == NAMES


def test_every_form_gives_the_same_bytes_to_many_threads(source, files):
    paths = paths_in(source)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(read_bytes, paths * 20))
    assert contents == [files[f"{name}.png"] for name in NAMES] * 20


def test_every_form_gives_the_same_captions(source):
    captions = load_captions(list_images(source), source)
    assert captions == [[f"face {i}", "a rendered face"] for i in range(12)]


def test_captions_may_lie_in_another_form_than_the_images(source, files, tmp_path):
    texts = {f"text/{k}": v for k, v in files.items() if k.endswith(".txt")}
    archive = make_zip(tmp_path / "texts.zip", texts)
    captions = load_captions(list_images(source), archive / "text")
    assert captions[11] == ["face 11", "a rendered face"]


def test_a_folder_inside_an_archive_is_a_folder(tmp_path):
    content = {"MM/image/2.png": face(2), "MM/image/10.png": face(10), "MM/mask/2.png": face(0)}
    archive = make_zip(tmp_path / "mm.zip", content)
    inside = archive / "MM" / "image"
    assert names_in(inside) == ["2", "10"]
    assert names_in(archive)[0] == "MM/image/2"


def test_hidden_members_do_not_count(tmp_path):
    names = ["1.png", "._1.png", "__MACOSX/._1.png", ".thumbs/1.png", "notes.md"]
    archive = make_zip(tmp_path / "a.zip", dict.fromkeys(names, b""))
    assert [path.name for path in paths_in(archive)] == ["1.png"]


def test_loose_images_win_over_archives_beside_them(tmp_path):
    make_zip(tmp_path / "backup.zip", {"0.png": face(0)})
    (tmp_path / "1.png").write_bytes(face(1))
    assert list_images(tmp_path) == [("1", tmp_path / "1.png")]


def test_an_archive_made_anew_is_read_anew(tmp_path):
    archive = make_tar(tmp_path / "a.tar", {"1.png": face(1)})
    assert len(list_images(archive)) == 1
    make_tar(archive, {"1.png": face(2), "2.png": face(1)})
    assert read_bytes(paths_in(archive)[0]) == face(2)


def test_a_broken_image_in_an_archive_is_named(tmp_path):
    archive = make_tar(tmp_path / "a.tar", {"1.png": face(1), "2.png": b"broken"})
    found = list(find_unreadable(paths_in(archive)))
    assert found[0] is None
    assert str(found[1]).startswith(f"{archive}/2.png: unreadable image")


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_inside_a_zip_is_noticed(tmp_path, how):
    archive = make_zip(tmp_path / "a.zip", {"1.png": face(1)}, how)
    content = bytearray(archive.read_bytes())
    content[80:84] = bytes(255 - b for b in content[80:84])
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip/1\.png: unreadable image \(a\.zip is damaged"):
        list(iterate_batches(paths_in(archive), 16, 4))


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_cut_archive_is_one_line(tmp_path, files, make):
    archive = make(tmp_path / f"cut.{make.__name__[5:]}", files)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cut\.(zip|tar): not a readable (zip|tar) archive"):
        list_images(archive)


def test_a_compressed_tar_is_one_line_that_says_what_to_do(tmp_path):
    archive = make_tar(tmp_path / "a.tar.gz", {"1.png": face(1)}, "w:gz")
    with pytest.raises(UserError, match=r"a\.tar\.gz: .*decompress it to a plain \.tar"):
        list_images(archive)


def test_a_name_that_leads_out_of_the_archive_is_refused(tmp_path):
    archive = make_tar(tmp_path / "a.tar", {"../1.png": face(1)})
    with pytest.raises(UserError, match="leads out of the archive"):
        list_images(archive)


def test_shards_with_a_name_in_common_are_refused(tmp_path):
    for shard in "ab":
        make_tar(tmp_path / f"{shard}.tar", {"x/1.png": face(1)})
    with pytest.raises(UserError, match=rf"b\.tar: holds x/1\.png, and so does {tmp_path}/a\.tar;"):
        list_images(tmp_path)


def test_other_zip_compression_is_one_line(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"1.png": face(1)}, zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match=r"1\.png is encrypted, or compressed by another method"):
        list_images(archive)


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_lists_of_names_are_read(tmp_path, protocol):
    file = tmp_path / "filenames.pickle"
    file.write_bytes(pickle.dumps(["12", "3.jpg", "ümlaut"], protocol))
    assert read_names(file) == ["12", "3.jpg", "ümlaut"]


def test_lists_pickled_by_python_2_are_read(tmp_path):
    file = tmp_path / "filenames.pickle"
    file.write_bytes(b"(lp0\nS'0.jpg'\np1\naS'27.jpg'\np2\na.")
    assert read_names(file) == ["0.jpg", "27.jpg"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "\ufeff1.jpg\n\n 2.jpg \n"), ("a.json", '["1.jpg", "2.jpg"]')],
)
def test_lists_of_names_may_be_text_or_json(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    if name.endswith("json"):
        assert json.loads(content) == read_names(tmp_path / name)
    assert read_names(tmp_path / name) == ["1.jpg", "2.jpg"]


class Attack:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_does_not_run_it(tmp_path, protocol):
    file, made = tmp_path / "evil.pickle", tmp_path / "made"
    file.write_bytes(pickle.dumps(["1.jpg", Attack(made)], protocol))
    with pytest.raises(UserError, match=r"evil\.pickle: is not a pickled list of strings"):
        read_names(file)
    assert not made.exists()


@pytest.mark.parametrize("value", [[1, 2], ("a", "b"), {"a": 1}, ["a", None], [b"a"], ["a", ["b"]]])
def test_a_pickle_of_anything_else_is_refused(tmp_path, value):
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=r"x\.pkl: "):
        read_names(file)


@pytest.mark.parametrize("content", [b"", b"junk", b"]r\xff\xff\xff\x7f.", b"\x80\x04]\x94(X\x05"])
def test_a_damaged_pickle_is_one_line(tmp_path, content):
    file = tmp_path / "x.pickle"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pickle: is (a damaged|not a)"):
        read_names(file)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{", "not a list of names"),
        ("a.json", '{"a": 1}', "should hold one list of strings"),
        ("a.txt", "\n", "holds no name"),
    ],
)
def test_a_list_without_names_is_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        read_names(tmp_path / name)


def test_wanted_images_keep_the_order_of_the_folder():
    names = ["a/1", "a/2", "b/3", "b/4"]
    assert choose(names, ["4.jpg", "b/3", "a/1.png", "4"], Path("list")) == [0, 2, 3]


@pytest.mark.parametrize("wanted", ["5.jpg", "1"])
def test_a_name_of_no_image_or_of_several_is_named(wanted):
    with pytest.raises(UserError, match=rf"^list: 1 of its 2 names .*\({wanted}, …\)"):
        choose(["a/1", "b/1", "b/2"], ["b/2", wanted], Path("list"))


def test_batches_from_an_archive_are_those_of_the_folder(source, files):
    (batch,) = iterate_batches(paths_in(source), 16, 100, workers=4)
    expected = [np.asarray(crude_face(i, 32).resize((16, 16), 4)) for i in range(12)]  # 4 = box
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1), np.stack(expected))
