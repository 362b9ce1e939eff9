"""Databases know the content of the files that they were made from, not only their names."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from preprocessing import IMG, N_TEST, TXT, Project, Z, forget
from tiny import make_tiny_clip, make_tiny_vae

from utils.base.errors import UserError
from utils.config.load import load_config
from utils.data.latent_dataset import open_data
from utils.data.lmdb_reader import LMDBReader
from utils.data.source_files import RECORDS, read_records
from utils.evaluation.neighbours import training_image_paths
from utils.training.sample_grid import SampleGrid


@pytest.fixture
def images(project) -> Path:
    """The folder of the test images, which are five."""
    return project.folder / "test" / "images"


def invert(path: Path) -> None:
    """Replace an image by its negative."""
    ImageOps.invert(Image.open(path).convert("RGB")).save(path)


def change_a_pixel(images: Path) -> None:
    path = images / "000002.png"
    image = Image.open(path).convert("RGB")
    image.putpixel((3, 4), (1, 2, 3))
    image.save(path)


def change_bytes_keeping_size_and_time(images: Path) -> None:
    path = images / "000002.png"
    state, content = path.stat(), bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def swap(images: Path) -> None:
    first, second = images / "000002.png", images / "000004.png"
    first.rename(images / "x")
    second.rename(first)
    (images / "x").rename(second)


def copy_another_with_its_time(images: Path) -> None:
    shutil.copy2(images / "000001.png", images / "000002.png")


CHANGES = [
    change_a_pixel,
    change_bytes_keeping_size_and_time,
    swap,
    copy_another_with_its_time,
]


@pytest.mark.parametrize("change", CHANGES)
def test_images_replaced_under_their_names_are_refused(project, images, capsys, change):
    project.run(Z, "--split", "test")
    change(images)
    message = project.fails(capsys, Z, "--split", "test")
    count = 2 if change is swap else 1
    first = images / "000002.png"
    assert f"{project.test / 'z'}: {count} of 5 images have changed since they were enc" in message
    assert f"the first is {first}; delete what was made from them (rm -r {project.test}" in message
    assert LMDBReader(project.test / "z").info.length == N_TEST


def test_every_database_of_a_replaced_image_is_named_in_one_line(project, images, capsys):
    project.run(Z, "--split", "test", "--with_clip", "eval.image_feat_path=" + str(images / "../y"))
    change_a_pixel(images)
    message = project.fails(
        capsys, Z, "--split", "test", "--with_clip", "eval.image_feat_path=" + str(images / "../y")
    )
    assert f"(rm -r {project.test / 'z'} {images / '../y'})" in message


def touch(project: Project, images: Path) -> Path:
    for path in images.iterdir():
        os.utime(path, (1, 1))
    return images


def copy(project: Project, images: Path) -> Path:
    return Path(shutil.copytree(images, project.folder / "elsewhere"))


def archive(project: Project, images: Path) -> Path:
    return Path(shutil.make_archive(str(project.folder / "faces"), "zip", images))


def rewrite(project: Project, images: Path) -> Path:
    for path in images.iterdir():
        path.write_bytes(path.read_bytes())
    return images


@pytest.mark.parametrize("change", [touch, copy, archive, rewrite])
def test_equal_content_elsewhere_or_at_another_time_is_compared_once(
    project, images, capsys, change
):
    project.run(IMG, "--split", "test", "--out", str(project.test / "y"))
    stored = (project.test / "y" / "data.mdb").read_bytes()
    now = str(change(project, images))
    for compared in (True, False):
        capsys.readouterr()
        project.run(IMG, "--split", "test", "--images", now, "--out", str(project.test / "y"))
        said = capsys.readouterr()
        assert "complete already (5 images)" in said.out
        assert ("compare images" in said.err) == compared
    assert (project.test / "y" / "data.mdb").read_bytes() == stored


@pytest.mark.parametrize("content", [None, b"", b"garbage", bytes(70)])
def test_a_database_that_has_lost_its_records_says_so(project, capsys, content):
    project.run(Z, "--split", "test")
    for written in (content, (project.test / "z" / RECORDS).read_bytes()):
        capsys.readouterr()
        (project.test / "z" / RECORDS).unlink(missing_ok=True)
        if written is not None:
            (project.test / "z" / RECORDS).write_bytes(written)
        project.run(Z, "--split", "test")
        said = f"note: {project.test / 'z'}: {RECORDS} lacks images"
        assert (said in capsys.readouterr().err) == (written == content)


def test_an_image_added_and_one_removed_are_named(project, images, capsys):
    project.run(Z, "--split", "test")
    (images / "000003.png").rename(images / "000009.png")
    message = project.fails(capsys, Z, "--split", "test")
    assert "images: 1 added, the first is 000009, 1 removed, the first is 000003" in message


@pytest.mark.parametrize("shards", [(), ("--num_shards", "2", "--shard", "0")])
def test_a_half_made_database_does_not_go_on_with_other_images(project, images, capsys, shards):
    last = images / "000004.png" if not shards else images / "000001.png"
    content = last.read_bytes()
    last.write_bytes(b"broken")
    options = ("--split", "test", "--batch_size", "1", *shards)
    project.fails(capsys, Z, *options)
    last.write_bytes(content)
    invert(images / "000000.png")
    assert "1 of" in (message := project.fails(capsys, Z, *options))
    assert "changed since they were encoded, the first is" in message
    invert(images / "000000.png")  # the same pixels, and the same bytes
    project.run(Z, *options)


def test_shards_refuse_a_complete_database_of_replaced_images(project, images, capsys):
    parts = [("--split", "test", "--num_shards", "2", "--shard", n) for n in "01"]
    for part in parts:
        project.run(Z, *part)
    assert len(read_records(project.test / "z")) == N_TEST
    swap(images)
    for part in parts:
        assert "2 of 5 images have changed" in project.fails(capsys, Z, *part)


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_replaced_archive_is_refused(project, images, capsys, suffix):
    faces = shutil.make_archive(str(project.folder / "faces"), suffix, images)
    options = ("--split", "test", "--images", faces)
    project.run(Z, *options)
    change_bytes_keeping_size_and_time(images)
    shutil.make_archive(str(project.folder / "faces"), suffix, images)
    assert "1 of 5 images have changed" in project.fails(capsys, Z, *options)


def test_a_database_that_recorded_no_contents_goes_on(project, images, capsys):
    project.run(Z, "--split", "test")
    forget(project.test / "z", "content_hash")
    change_a_pixel(images)
    project.run(Z, "--split", "test")
    assert "complete already" in capsys.readouterr().out


def test_a_database_is_read_without_the_records_of_its_files(project):
    project.run(Z, "--split", "test")
    whole = LMDBReader(project.test / "z").read(range(N_TEST))
    (project.test / "z" / RECORDS).unlink(missing_ok=True)
    np.testing.assert_array_equal(LMDBReader(project.test / "z").read(range(N_TEST)), whole)


@pytest.mark.parametrize("change", [change_a_pixel, swap])
def test_training_refuses_latents_and_embeddings_of_different_images(project, change):
    project.run(IMG, "--split", "train")
    change(project.folder / "train" / "images")
    project.run(Z, "--split", "train")
    said = f"{project.train / 'clip_img'}: made from other images of the same names than .*z: "
    said += f"{2 if change is swap else 1} of 9 differ, the first is 000002; delete this older one "
    said += "and make it again: python preprocess_scripts/clip_encode_img.py .*--split train"
    with pytest.raises(UserError, match=said):
        open_data(load_config(project.yaml))


def test_a_moved_data_set_goes_on_without_its_unreadable_images(project, images, capsys):
    (images / "000002.png").write_bytes(b"broken")
    project.run(Z, "--split", "test", "--skip_bad")
    moved = images.rename(project.folder / "elsewhere")
    project.run(Z, "--split", "test", f"eval.image_dir={moved}")
    assert "complete already (4 images)" in capsys.readouterr().out


def test_an_unreadable_image_that_was_repaired_is_named(project, images, capsys):
    whole = (images / "000002.png").read_bytes()
    (images / "000002.png").write_bytes(b"broken")
    project.run(Z, "--split", "test", "--skip_bad")
    (images / "000002.png").write_bytes(whole)
    project.run(Z, "--split", "test")
    assert f"lists {images / '000002.png'}, which can be read now" in capsys.readouterr().err
    (project.test / "skipped.txt").unlink()
    assert "images: 1 added, the first is 000002" in project.fails(capsys, Z, "--split", "test")


@pytest.mark.parametrize("network", ["vae", "clip"])
def test_training_refuses_data_of_replaced_weights(project, network):
    project.run(Z, "--split", "train", "--with_clip")
    other = project.folder / "other"
    (make_tiny_vae if network == "vae" else make_tiny_clip)(other, seed=7)
    shutil.rmtree(project.folder / network)
    other.rename(project.folder / network)
    project.run(TXT, "--split", "test")
    with pytest.raises(UserError, match=rf"holds .* of {network}-.*, but encoders\.{network} is "):
        SampleGrid.from_config(load_config(project.yaml), "cpu")


def test_a_training_image_that_was_replaced_is_not_shown_as_a_neighbour(project):
    project.run(IMG, "--split", "train")
    config, reader = load_config(project.yaml), LMDBReader(project.train / "clip_img")
    images = project.folder / "train" / "images"
    assert training_image_paths(config.data.image_dir, reader, [2, 1]) == [
        images / "000002.png",
        images / "000001.png",
    ]
    change_a_pixel(images)
    assert training_image_paths(config.data.image_dir, reader, [2, 1]) is None
    assert training_image_paths(config.data.image_dir, reader, [1]) == [images / "000001.png"]
