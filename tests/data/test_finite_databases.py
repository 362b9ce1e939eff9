"""Databases, means and references hold finite numbers, or one line says which do not."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_databases import META, Y, Z, spoil, write
from tiny import DIM

from utils.base.errors import UserError
from utils.data.embeddings import read_directions, read_image_mean, write_image_mean
from utils.data.latent_dataset import LatentDataset
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.references import Reference, load_stats, save_stats


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("kind", "samples"), [("z", Z), ("y", Y)])
def test_a_sample_that_is_not_finite_is_not_written(tmp_path, kind, samples, bad):
    samples = samples.copy()
    samples[7].flat[3] = bad
    with pytest.raises(UserError) as refused:
        write(tmp_path / kind, kind, samples)
    assert f"{tmp_path / kind}: sample 7 (7) holds NaN" in str(refused.value)
    assert "encoders.precision" in str(refused.value)
    # The batch before stays, and the next start goes on from there.
    with LMDBWriter(tmp_path / kind, kind, META, 12) as writer:
        assert writer.done == 5 and not writer.complete


def test_a_vae_that_overflows_names_the_setting_and_leaves_no_database(project, capsys):
    weights = project.folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["encoder.conv_out.weight"] *= 1e6
    save_file(tensors, weights, {"format": "pt"})
    options = ("--split", "train", "encoders.precision=fp16")
    line = project.fails(capsys, "create_latentspace_lmdb", *options)
    assert "holds NaN or infinite numbers" in line and "encoders.precision" in line


@pytest.mark.parametrize("read", [
    lambda path: LMDBReader(path).read([0, 5]),
    lambda path: read_directions(LMDBReader(path), 100),
    write_image_mean,
])  # fmt: skip
def test_embeddings_of_an_earlier_version_are_refused_by_all_who_read_them(tmp_path, read):
    path = write(tmp_path / "y", "y", Y)
    spoil(path, "y-5-0")
    with pytest.raises(UserError, match=r"y: sample 5 \(5\) holds NaN.*encoders\.precision"):
        read(path)
    assert not (path / "image_mean.npy").exists()


def test_a_mean_of_images_that_is_not_finite_is_refused(tmp_path):
    np.save(tmp_path / "image_mean.npy", np.full(DIM, np.nan, np.float32))
    with pytest.raises(UserError, match="image_mean.npy: the mean holds NaN"):
        read_image_mean(tmp_path / "image_mean.npy", DIM)


@pytest.mark.parametrize("name", ["mu", "sigma", "features"])
def test_statistics_that_are_not_finite_are_neither_written_nor_read(tmp_path, name):
    arrays = {"mu": np.zeros(3), "sigma": np.eye(3), "features": np.ones((4, 3), np.float32)}
    arrays[name] = arrays[name] + np.inf
    with pytest.raises(UserError, match=f"{name} holds NaN or infinite"):
        save_stats(tmp_path / "ref.npz", Reference(**arrays))
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(UserError, match="NaN or infinite"):
        load_stats(tmp_path / "ref.npz")


def test_a_training_goes_on_past_a_few_bad_samples_of_an_earlier_version(tmp_path, capsys):
    z, y = write(tmp_path / "z", "z", Z), write(tmp_path / "y", "y", Y)
    spoil(z, "z-3")
    data = LatentDataset(z, y)
    latents, _ = data.batch(torch.arange(12))
    assert torch.equal(latents[4:], torch.from_numpy(Z[4:]))
    data.batch(torch.arange(12))
    assert capsys.readouterr().err.count("sample 3 (3) holds NaN") == 1
    assert data.fault is not None and "sample 3" in data.fault
