"""LatentDataset: batches of latents and embeddings that belong together."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from small_databases import Y, Z, write

from models.batch_random import BatchRandom
from utils.base.errors import UserError
from utils.data.latent_dataset import LatentDataset
from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_reader import LMDBReader

pytestmark = pytest.mark.bits  # of `make test-machines`


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return write(tmp_path / "z", "z", Z), write(tmp_path / "y", "y", Y)


@pytest.mark.parametrize("in_memory", [True, False, "auto"])
def test_a_batch_holds_latents_and_one_embedding_of_each(pair, in_memory):
    data = LatentDataset(*pair, in_memory=in_memory)
    assert (data.length, data.latent_shape, data.cond_dim) == (12, (4, 2, 2), 16)
    indices = torch.tensor([3, 0, 3, 9])
    z, y = data.batch(indices, BatchRandom(torch.Generator().manual_seed(0)))
    np.testing.assert_array_equal(z.numpy(), Z[indices])
    for row, i in zip(y.numpy(), indices, strict=True):
        assert (row == Y[i]).all(axis=1).sum() == 1


def test_memory_or_disk_makes_no_difference(pair):
    batches = [
        LatentDataset(*pair, in_memory=where).batch(
            torch.arange(12), BatchRandom(torch.Generator().manual_seed(3))
        )
        for where in (True, False)
    ]
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])


def test_every_embedding_is_chosen(tmp_path):
    ragged = [Y[i, : 1 + i % 3] for i in range(12)]
    data = LatentDataset(write(tmp_path / "z", "z", Z), write(tmp_path / "y", "y", ragged))
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat(
        [data.batch(torch.arange(12), BatchRandom(generator))[1] for _ in range(60)]
    ).unique(dim=0)
    assert len(seen) == sum(len(ys) for ys in ragged)


@pytest.mark.parametrize("in_memory", [True, False])
def test_mirrored_images_have_the_latents_of_their_own_database(pair, tmp_path, in_memory):
    others = write(tmp_path / "z_xflip", "z", -Z)
    data = LatentDataset(*pair, in_memory=in_memory, mirrored_root=others)
    indices, mirrored = torch.tensor([3, 0, 3, 9]), torch.tensor([True, False, False, True])
    z, _ = data.batch(indices, mirrored=mirrored)
    sign = np.where(mirrored, -1, 1)[:, None, None, None]
    np.testing.assert_array_equal(z.numpy(), sign * Z[indices])
    np.testing.assert_array_equal(data.batch(indices)[0].numpy(), Z[indices])
    with pytest.raises(UserError, match="z_other"):
        LatentDataset(*pair, mirrored_root=write(tmp_path / "z_other", "z", Z[:5]))


def test_unconditional_data_has_no_condition(pair):
    data = LatentDataset(pair[0])
    assert data.cond_dim == 0
    assert data.batch(torch.tensor([1]))[1] is None


def test_moments_become_samples(tmp_path):
    mean, log_variance = Z, np.full_like(Z, 2 * np.log(0.1))
    moments = np.concatenate([mean, log_variance], axis=1)
    data = LatentDataset(write(tmp_path / "z", "z", moments, z_holds="moments"))
    assert data.latent_shape == (4, 2, 2)
    samples = torch.stack([data.batch(torch.arange(12))[0] for _ in range(400)])
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.03)
    assert samples.std(0).mean() == pytest.approx(0.1, rel=0.02)


def test_different_lengths_are_refused(tmp_path):
    z, y = write(tmp_path / "z", "z", Z), write(tmp_path / "y", "y", Y[:11])
    with pytest.raises(UserError, match="holds 12 samples but .* holds 11"):
        LatentDataset(z, y)


def test_different_images_are_refused(tmp_path):
    names = [str(i) for i in range(11)] + ["x"]
    z = write(tmp_path / "z", "z", Z)
    y = write(tmp_path / "y", "y", Y, names=names, names_hash=names_hash(names))
    with pytest.raises(UserError, match=r"different images \(sample 11: 11 and x\)"):
        LatentDataset(z, y)


def test_swapped_databases_are_refused(pair):
    with pytest.raises(UserError, match="holds embeddings where latents are expected"):
        LatentDataset(pair[1], pair[0])


CHILD = """
import os, sys
from utils.data.lmdb_reader import LMDBReader
reader = LMDBReader(sys.argv[1])
own = reader.read([4])
child = os.fork()
if child == 0:
    os._exit(0 if (reader.read([4]) == own).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_one_database_can_be_read_twice_and_from_a_child(pair):
    first, second = LMDBReader(pair[0]), LMDBReader(pair[0])
    np.testing.assert_array_equal(first.read([4]), second.read([4]))
    # Its own process, as a fork of a process with threads may never go on.
    command = [sys.executable, "-c", CHILD, str(pair[0])]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
