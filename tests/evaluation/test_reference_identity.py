"""Reference statistics know the content of the images that they were measured on."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from preprocessing import paths_in

from utils.data.source_files import SourceFiles
from utils.evaluation.checkpoints import content_settings
from utils.evaluation.references import load_stats, save_stats


@pytest.fixture
def images(project) -> Path:
    """The folder of five test images, whose statistics are made."""
    project.run("fid_ref")
    return project.folder / "test" / "images"


def invert(images: Path) -> None:
    path = images / "000001.png"
    ImageOps.invert(Image.open(path).convert("RGB")).save(path)


def swap(images: Path) -> None:
    first, second = images / "000001.png", images / "000003.png"
    first.rename(images / "x")
    second.rename(first)
    (images / "x").rename(second)


def change_a_byte_keeping_the_time(images: Path) -> None:
    path = images / "000001.png"
    state, content = path.stat(), bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("change", [invert, swap, change_a_byte_keeping_the_time])
def test_statistics_of_replaced_images_are_refused(project, images, capsys, change):
    change(images)
    ref = project.config.eval.ref_path
    message = project.fails(capsys, "fid_ref")
    count = 2 if change is swap else 1
    assert f"{ref}: {count} of 5 images have changed since they were encoded" in message
    assert f"the first is {images / '000001.png'}; delete what" in message
    assert f"(rm -r {ref})" in message and ref.exists()


def test_a_renamed_image_is_refused(project, images, capsys):
    (images / "000003.png").rename(images / "000007.png")
    said = "made differently before (images were added, removed or renamed); delete it"
    assert said in project.fails(capsys, "fid_ref")


@pytest.mark.parametrize("form", ["touched", "copied", "archived"])
def test_equal_images_are_compared_once(project, images, capsys, form):
    now = images
    if form == "touched":
        os.utime(images / "000001.png", (1, 1))
    elif form == "copied":
        now = Path(shutil.copytree(images, project.folder / "elsewhere"))
    else:
        now = Path(shutil.make_archive(str(project.folder / "faces"), "zip", images))
    before = load_stats(project.config.eval.ref_path)
    for compared in (True, False):
        capsys.readouterr()
        project.run("fid_ref", f"eval.image_dir={now}")
        said = capsys.readouterr()
        assert "complete already" in said.out and ("compare images" in said.err) == compared
    after = load_stats(project.config.eval.ref_path)
    np.testing.assert_array_equal(after.sigma, before.sigma)
    assert after.identity == before.identity


def test_unfinished_statistics_do_not_go_on_with_other_images(project, capsys):
    images, ref = project.folder / "test" / "images", project.config.eval.ref_path
    whole = (images / "000004.png").read_bytes()
    (images / "000004.png").write_bytes(b"broken")
    project.fails(capsys, "fid_ref")
    (images / "000004.png").write_bytes(whole)
    invert(images)
    project.run("fid_ref")
    assert "images have changed since it was begun" in capsys.readouterr().err
    fresh = project.folder / "fresh.npz"
    project.run("fid_ref", "--out", str(fresh))
    np.testing.assert_array_equal(load_stats(ref).mu, load_stats(fresh).mu)
    assert load_stats(ref).identity == load_stats(fresh).identity


def test_statistics_that_recorded_no_contents_go_on(project, images, capsys):
    ref = project.config.eval.ref_path
    with np.load(ref) as file:
        older = {key: file[key] for key in file.files if key not in ("content", "files")}
    np.savez(ref, **older)
    invert(images)
    project.run("fid_ref")
    assert "complete already" in capsys.readouterr().out
    assert load_stats(ref).identity == str(older["source"])


def test_records_come_back_as_they_were(project, images):
    there = load_stats(project.config.eval.ref_path)
    assert SourceFiles(paths_in(images)).compare(there.files)[0] == []
    save_stats(project.folder / "copy.npz", there)
    assert (load_stats(project.folder / "copy.npz").files == there.files).all()


def test_a_plain_reference_is_known_by_its_content(project, tmp_path):
    for name, size in (("a", 3), ("b", 4)):
        np.savez(tmp_path / f"{name}.npz", mu=np.zeros(size), sigma=np.eye(size))
    found = [
        content_settings(project.config, None, [load_stats(tmp_path / f"{n}.npz")]) for n in "ab"
    ]
    assert found[0].keys() == {"reference_content"} and found[0] != found[1]
