"""The preprocessing scripts: from folders of images and captions to databases and statistics."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import crude_face
from PIL import Image
from preprocessing import IMG, N_TEST, N_TRAIN, TXT, Z, paths_in, pixels
from tiny import DIM, RESOLUTION, make_tiny_clip

from models.autoencoder import load_autoencoder
from models.batch_random import BatchRandom
from models.clip import load_clip
from utils.data.image_batches import iterate_batches
from utils.data.images import load_image
from utils.data.latent_dataset import LatentDataset
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.references import load_stats


def test_latents_are_the_vaes_means_of_both_splits(project):
    project.run(Z)
    vae = load_autoencoder(project.folder / "vae")
    for split, n in (("train", N_TRAIN), ("test", N_TEST)):
        reader = LMDBReader(project.folder / "lmdb" / split / "z")
        assert (reader.info.length, reader.info.shape) == (n, (4, 2, 2))
        images = pixels(project.folder / split / "images")
        expected = vae.mean_latents(vae.encode_moments(images / 127.5 - 1))
        np.testing.assert_allclose(reader.read(range(n)), expected, rtol=1e-4, atol=1e-5)


def test_image_embeddings_are_clips(project):
    project.run(IMG)
    clip = load_clip(project.folder / "clip")
    for split, n in (("train", N_TRAIN), ("test", N_TEST)):
        reader = LMDBReader(project.folder / "lmdb" / split / "clip_img")
        assert (reader.info.length, reader.info.n_features) == (n, 1)
        expected = clip.encode_images(pixels(project.folder / split / "images"))
        np.testing.assert_allclose(reader.read(range(n)), expected, rtol=1e-4, atol=1e-5)


def test_caption_embeddings_keep_each_images_captions(project):
    (project.folder / "test" / "captions" / "000001.txt").write_text("one\n\ntwo\nthree\n")
    project.run(TXT)
    clip = load_clip(project.folder / "clip")
    reader = LMDBReader(project.test / "clip_txt")
    assert reader.info.counts.tolist() == [2, 3, 2, 2, 2]
    expected = clip.encode_texts(["three", "face number 4"])
    np.testing.assert_allclose(reader.read([1, 4], [2, 1]), expected, rtol=1e-4, atol=1e-5)
    assert LMDBReader(project.train / "clip_txt").info.length == N_TRAIN


def test_databases_of_a_split_fit_together_and_say_where_they_come_from(project):
    for script in (Z, IMG, TXT):
        project.run(script, "--split", "train")
    data = LatentDataset(project.config.data.root, project.config.data.feat_path)
    z, y = data.batch(torch.arange(N_TRAIN))
    assert (z.shape, y.shape) == ((N_TRAIN, 4, 2, 2), (N_TRAIN, DIM))
    infos = [LMDBReader(project.train / name).info for name in ("z", "clip_img", "clip_txt")]
    assert len({info.meta["names_hash"] for info in infos}) == 1
    assert infos[0].meta["names"][3] == "000003"
    assert (infos[0].meta["z_holds"], infos[0].meta["scale_factor"]) == ("mean", 0.5)
    assert not project.test.exists()


def test_a_second_run_has_nothing_to_do(project, capsys):
    for script in (Z, IMG, TXT, "fid_ref"):
        project.run(script)
        capsys.readouterr()
        project.run(script)
        said = capsys.readouterr().out.splitlines()
        assert said and all("complete already" in line for line in said)


def test_images_that_are_not_square_are_counted_with_what_their_crop_keeps(project, capsys):
    project.run(IMG, "--split", "test")
    assert "square" not in capsys.readouterr().err
    files = sorted((project.folder / "train" / "images").iterdir())
    for file, size in zip(files, [(40, 20), (16, 64), (30, 20)], strict=False):
        Image.new("RGB", size).save(file)
    project.run(Z, "--with_clip", "--split", "train")
    line = f"3 of {N_TRAIN} images are not square: the middle square is kept, 50% of the pixels"
    assert line in capsys.readouterr().err


def test_a_run_that_was_cut_off_goes_on_to_the_same_result(project, capsys):
    project.run(Z, "--split", "train", "--out", str(project.folder / "whole"))
    image = project.folder / "train" / "images" / "000005.png"
    content = image.read_bytes()
    image.write_bytes(content[:60])
    message = project.fails(capsys, Z, "--split", "train")
    assert message.startswith(f"{image}: unreadable image")
    assert message.endswith("repair or remove it, or leave unreadable images out with --skip_bad")
    image.write_bytes(content)
    project.run(Z, "--split", "train")
    cut, whole = (LMDBReader(p) for p in (project.train / "z", project.folder / "whole"))
    np.testing.assert_array_equal(cut.read(range(N_TRAIN)), whole.read(range(N_TRAIN)))


@pytest.mark.parametrize("first", [Z, TXT])
def test_skip_bad_leaves_an_image_out_of_everything(project, capsys, first):
    (project.folder / "test" / "images" / "000002.png").write_bytes(b"broken")
    project.run(first, "--split", "test", "--skip_bad")
    assert "left out 1 of 5 images" in capsys.readouterr().err
    assert "000002.png" in (project.test / "skipped.txt").read_text()
    for script in {Z, IMG, TXT} - {first}:
        project.run(script, "--split", "test")
    project.run("fid_ref")
    names = ["000000", "000001", "000003", "000004"]
    for name in ("z", "clip_img", "clip_txt"):
        assert LMDBReader(project.test / name).info.meta["names"] == names
    assert load_stats(project.config.eval.ref_path).n == 4


def test_a_run_stopped_by_a_bad_image_goes_on_with_skip_bad(project, capsys):
    (project.folder / "train" / "images" / "000005.png").write_bytes(b"broken")
    project.fails(capsys, IMG, "--split", "train")
    project.run(IMG, "--split", "train", "--skip_bad")
    assert LMDBReader(project.train / "clip_img").info.length == N_TRAIN - 1


def test_names_that_are_not_utf_8_are_left_out_and_named_like_others(project):
    bad = project.folder / "test" / "images" / os.fsdecode(b"caf\xe9.png")
    bad.write_bytes(b"broken")
    project.run(IMG, "--split", "test", "--skip_bad")
    project.run(Z, "--split", "test")
    assert LMDBReader(project.test / "z").info.length == N_TEST
    assert b"  caf\xe9.png\tunreadable" in (project.test / "skipped.txt").read_bytes()


def test_another_encoder_is_refused(project, capsys):
    project.run(IMG, "--split", "test")
    make_tiny_clip(project.folder / "clip2", seed=1)
    other = f"encoders.clip={project.folder / 'clip2'}"
    message = project.fails(capsys, IMG, "--split", "test", other)
    assert message.startswith(f"{project.test / 'clip_img'}: made differently before (encoder ")
    assert message.endswith("delete it or choose another --out")


def test_other_captions_are_refused(project, capsys):
    project.run(TXT, "--split", "test")
    file = project.folder / "test" / "captions" / "000001.txt"
    file.write_text("new words")
    message = project.fails(capsys, TXT, "--split", "test")
    assert (
        f"1 of 5 caption files have changed since they were encoded, the first is {file}" in message
    )


def test_stored_samples_depend_on_the_index_alone(project):
    options = ("--split", "train", "--store", "sample", "--out")
    for name, size in (("a", "2"), ("b", "5")):
        project.run(Z, *options, str(project.folder / name), "--batch_size", size)
    a, b = (LMDBReader(project.folder / n) for n in ("a", "b"))
    project.run(Z, "--split", "train")
    mean = LMDBReader(project.train / "z").read(range(N_TRAIN))
    np.testing.assert_allclose(a.read(range(N_TRAIN)), b.read(range(N_TRAIN)), rtol=1e-4, atol=1e-5)
    assert np.abs(a.read(range(N_TRAIN)) - mean).mean() > 1e-3


def test_stored_moments_are_those_of_the_scaled_latents(project):
    project.run(Z, "--split", "test", "--store", "moments")
    vae = load_autoencoder(project.folder / "vae")
    moments = vae.encode_moments(pixels(project.folder / "test" / "images") / 127.5 - 1)
    data = LatentDataset(project.test / "z")
    rng, same_random = (torch.Generator().manual_seed(7) for _ in range(2))
    z, _ = data.batch(torch.arange(N_TEST), BatchRandom(rng))
    torch.testing.assert_close(
        z, vae.sample_latents(moments, same_random).float(), rtol=1e-4, atol=1e-5
    )


def test_databases_from_archives_are_byte_for_byte_those_from_the_folder(project):
    folder = project.folder / "train"
    for suffix in ("zip", "tar"):
        shutil.make_archive(str(project.folder / "faces"), suffix, folder)
    roots = {"folder": folder, **{s: project.folder / f"faces.{s}" for s in ("zip", "tar")}}
    stored = {}
    for form, root in roots.items():
        out = project.folder / "out" / form
        options = ("--split", "train", "--images", str(root / "images"))
        project.run(Z, *options, "--out", str(out / "z"))
        project.run(IMG, *options, "--out", str(out / "y"), "--num_workers", "3")
        project.run(TXT, *options, "--captions", str(root / "captions"), "--out", str(out / "t"))
        readers = [LMDBReader(out / name) for name in "zyt"]
        numbers = b"".join(reader.read(range(N_TRAIN)).tobytes() for reader in readers)
        stored[form] = numbers, [reader.info.meta["names_hash"] for reader in readers]
    assert stored["zip"] == stored["tar"] == stored["folder"]


def test_a_split_file_chooses_the_images_of_everything(project, capsys):
    shutil.copytree(project.folder / "train", project.folder / "all")
    image_dir, caption_dir = (project.folder / "all" / name for name in ("images", "captions"))
    wanted = {"data": ["000007.png", "000001.png"], "eval": ["000000", "000002", "000008"]}
    overrides = []
    for section, names in wanted.items():
        file = project.folder / f"{section}.pickle"
        file.write_bytes(pickle.dumps(names, 2))
        keys = {"image_dir": image_dir, "caption_dir": caption_dir, "split_file": file}
        overrides += [f"{section}.{key}={value}" for key, value in keys.items()]
    for script in (Z, IMG, TXT, "fid_ref"):
        project.run(script, *overrides)
    for name in ("z", "clip_img", "clip_txt"):
        assert LMDBReader(project.train / name).info.meta["names"] == ["000001", "000007"]
        assert LMDBReader(project.test / name).info.meta["names"] == ["000000", "000002", "000008"]
    assert load_stats(project.config.eval.ref_path).n == 3
    assert "captions without image" not in capsys.readouterr().err


def test_split_file_on_the_command_line_is_for_one_split(project, capsys):
    names = project.folder / "names.txt"
    names.write_text("000004\n")
    project.run(Z, "--split", "test", "--split_file", str(names))
    assert LMDBReader(project.test / "z").info.meta["names"] == ["000004"]
    assert "add --split train|test" in project.fails(capsys, Z, "--split_file", str(names))


def test_one_folder_needs_no_config_keys(project):
    images = str(project.folder / "train" / "images")
    project.run(IMG, "--images", images, "--out", str(project.folder / "x"), "data.image_dir=null")
    assert LMDBReader(project.folder / "x").info.length == N_TRAIN


def test_reference_statistics_are_mean_and_covariance_of_the_features(project, capsys):
    project.run("fid_ref")
    clip = load_clip(project.folder / "clip")
    features = clip.encode_images(pixels(project.folder / "test" / "images")).double().numpy()
    there = load_stats(project.config.eval.ref_path)
    np.testing.assert_allclose(there.mu, features.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(there.sigma, np.cov(features.T), rtol=1e-3, atol=1e-6)
    assert (there.n, there.resolution) == (N_TEST, RESOLUTION)
    assert there.network in capsys.readouterr().out


def test_without_inception_the_output_says_that_clip_stands_in(project, capsys):
    project.run("fid_ref", "eval.feature_network=inception")
    said = capsys.readouterr()
    assert "the feature network is the CLIP image tower" in said.err
    assert "features of clip" in said.out


def test_other_reference_statistics_are_not_overwritten(project, capsys):
    project.run("fid_ref")
    message = project.fails(capsys, "fid_ref", "data.resolution=32")
    assert "resolution 16 there, 32 now" in message


def test_captions_over_the_context_are_counted(project, capsys):
    (project.folder / "test" / "captions" / "000001.txt").write_text("very long " * 40)
    project.run(TXT, "--split", "test")
    assert "1 of 9 captions are longer than the 24 tokens" in capsys.readouterr().err


def test_a_split_without_place_is_left_out_and_named(project, capsys):
    project.run(TXT, "data.text_feat_path=null")
    assert "train split left out: data.text_feat_path is not set" in capsys.readouterr().err
    assert LMDBReader(project.test / "clip_txt").info.length == N_TEST


def test_jpeg_draft_decodes_large_photos_small_and_is_recorded(project):
    """A photo of eight times the side is decoded at a quarter; its pixels differ a little."""
    folder = project.folder / "photos"
    folder.mkdir()
    for i in range(2):
        crude_face(i, 8 * RESOLUTION).save(folder / f"{i}.jpg", quality=95)
    paths = paths_in(folder)
    whole, draft = (next(iterate_batches(paths, RESOLUTION, 2, draft=d)) for d in (False, True))
    assert load_image(paths[0], 2 * RESOLUTION).size == (2 * RESOLUTION,) * 2
    assert 0 < (whole.int() - draft.int()).abs().float().mean() < 3
    out = project.folder / "z"
    options = ("--split", "train", "--images", str(folder), "--out", str(out))
    project.run(Z, *options, "--jpeg_draft")
    assert LMDBReader(out).info.meta["jpeg_draft"] is True


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        (Z, ["--images", "{}/train/images"], "are for one split: add --split train|test"),
        (Z, ["eval.image_dir=null"], "eval.image_dir: required key is missing"),
        (Z, ["data.image_dir={}/none"], "/none: there is no image folder"),
        (Z, ["data.image_dir={}/lmdb"], "/lmdb: no images in this folder"),
        (TXT, ["data.caption_dir={}/none"], "/none: there is no caption folder"),
        (TXT, ["data.caption_dir={}/lmdb"], "9 of 9 images without caption file"),
        (Z, ["data.resolution=64"], "or set data.resolution to 16"),
        (Z, ["encoders.vae={}/none"], "encoders.vae: "),
        (IMG, ["encoders.clip={}/none"], "encoders.clip: "),
        (IMG, ["data.feat_dim=32", "model.num_classes=32"], "data.feat_dim says 32, "),
        (Z, ["--num_shards", "2"], "--shard: not given; with --num_shards 2, give 0 to 1"),
        (Z, ["--num_shards", "2", "--shard", "2"], "--shard: 2; with --num_shards 2"),
        (Z, ["--with_clip", "data.feat_path=null"], "--with_clip: data.feat_path is not set"),
        (IMG, ["data.feet_dim=32"], "unknown key; did you mean data.feat_dim?"),
    ],
)
def test_a_mistake_is_one_line(project, capsys, script, options, said):
    (project.folder / "lmdb").mkdir()
    filled = [option.replace("{}", str(project.folder)) for option in options]
    assert said in project.fails(capsys, script, *filled)


def test_an_empty_caption_file_is_named(project, capsys):
    file = project.folder / "test" / "captions" / "000003.txt"
    file.write_text("\n")
    assert f"{file}: holds no caption" in project.fails(capsys, TXT)
