"""Databases filled in one pass, in shards, and by several processes."""

from pathlib import Path

import lmdb
import numpy as np
import pytest
from preprocessing import IMG, N_TEST, N_TRAIN, TXT, Z, pixels
from tiny import make_tiny_clip

from models.autoencoder import load_autoencoder
from utils.data.lmdb_reader import LMDBReader


def same_database(a: Path, b: Path) -> bool:
    """Return True if two databases have equal keys and values, `meta` included."""
    contents = []
    for path in (a, b):
        with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
            contents.append(dict(txn.cursor()))
    return contents[0] == contents[1]


def test_one_pass_fills_latents_mirrored_latents_and_embeddings(project):
    for script, name in ((Z, "z"), (IMG, "clip_img")):
        project.run(script, "--split", "train", "--out", str(project.folder / "alone" / name))
    project.run(Z, "--split", "train", "--with_clip", "--xflip")
    for name in ("z", "clip_img"):
        assert same_database(project.train / name, project.folder / "alone" / name)
    assert (project.train / "clip_img" / "image_mean.npy").exists()
    vae = load_autoencoder(project.folder / "vae")
    images = pixels(project.folder / "train" / "images").flip(3)
    expected = vae.mean_latents(vae.encode_moments(images / 127.5 - 1))
    mirrored = LMDBReader(project.train / "z_xflip")
    np.testing.assert_allclose(mirrored.read(range(N_TRAIN)), expected, rtol=1e-4, atol=1e-5)


def test_one_pass_completes_what_one_database_lacks(project, capsys):
    project.run(Z, "--split", "train")
    image = project.folder / "train" / "images" / "000005.png"
    content = image.read_bytes()
    image.write_bytes(b"broken")
    project.fails(capsys, IMG, "--split", "train")  # four of nine are there
    image.write_bytes(content)
    project.run(Z, "--split", "train", "--with_clip")
    project.run(IMG, "--split", "train", "--out", str(project.folder / "whole"))
    assert same_database(project.train / "clip_img", project.folder / "whole")


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("script", [Z, TXT])
def test_shards_give_the_same_database_as_one_process(project, script, shards):
    (project.folder / "train" / "captions" / "000004.txt").write_text("one\ntwo\nthree\n")
    store = ("--store", "sample") if script == Z else ()
    name = "z" if script == Z else "clip_txt"
    project.run(script, "--split", "train", *store, "--out", str(project.folder / "whole" / name))
    for shard in reversed(range(shards)):
        assert not (project.train / name).exists()
        options = ("--num_shards", str(shards), "--shard", str(shard))
        project.run(script, "--split", "train", *store, *options)
    assert [path.name for path in project.train.iterdir()] == [name]
    assert same_database(project.train / name, project.folder / "whole" / name)


def test_more_shards_than_images_are_no_fault(project):
    for shard in range(N_TEST + 2):
        project.run(Z, "--split", "test", "--num_shards", str(N_TEST + 2), "--shard", str(shard))
    assert LMDBReader(project.test / "z").info.length == N_TEST


def test_a_shard_that_was_cut_off_goes_on(project, capsys):
    image = project.folder / "train" / "images" / "000007.png"
    content = image.read_bytes()
    image.write_bytes(b"broken")
    second = ("--split", "train", "--num_shards", "2", "--shard", "1")
    assert "unreadable image" in project.fails(capsys, Z, *second)
    project.run(Z, "--split", "train", "--num_shards", "2", "--shard", "0")
    assert "1 of 2 parts are not there yet: z.part1of2" in capsys.readouterr().err
    image.write_bytes(content)
    project.run(Z, *second)
    assert LMDBReader(project.train / "z").info.length == N_TRAIN


def test_parts_of_another_encoder_are_not_merged(project, capsys):
    first, second = (("--split", "test", "--num_shards", "2", "--shard", s) for s in "01")
    project.run(IMG, *first)
    make_tiny_clip(project.folder / "clip2", seed=1)
    other = f"encoders.clip={project.folder / 'clip2'}"
    message = project.fails(capsys, IMG, *second, other)
    assert "clip_img.part0of2: made differently (encoder); delete it" in message


def test_processes_of_a_launcher_make_a_dataset_together(project, monkeypatch):
    project.run(Z, "--split", "train", "--out", str(project.folder / "whole"))
    for rank in "10":
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        project.run(Z, "--split", "train", "--num_process_per_node", "2")
    assert same_database(project.train / "z", project.folder / "whole")
