"""Class labels in the layout of the published ImageNet databases, and external features."""

from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from published_labels import write_published
from tiny import make_tiny_config

from models.batch_random import BatchRandom
from utils.base.errors import UserError
from utils.data.latent_dataset import LatentDataset, open_data
from utils.data.lmdb_reader import LMDBReader

RNG = np.random.default_rng(0)
MOMENTS = RNG.standard_normal((6, 8, 2, 2), np.float32)
FEATURES = RNG.standard_normal((6, 5), np.float32)
LABELS = [0, 3, 3, 1, 2, 0]


@pytest.fixture
def root(tmp_path) -> Path:
    return write_published(tmp_path / "z", "z", MOMENTS, LABELS)


@pytest.fixture
def features(tmp_path) -> Path:
    return write_published(tmp_path / "feat", "feat", FEATURES, LABELS)


@pytest.mark.parametrize("in_memory", [True, False])
def test_labels_are_one_hot_conditions(root, in_memory):
    data = LatentDataset(root, in_memory=in_memory, classes=4)
    assert (data.length, data.latent_shape, data.cond_dim) == (6, (4, 2, 2), 4)
    _, y = data.batch(torch.tensor([4, 0, 1]))
    assert y.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert y.dtype == torch.float32


def test_latents_are_sampled_from_the_moments_and_scaled(root):
    data = LatentDataset(root, classes=4, scale_factor=0.18215)
    rows = torch.arange(6).repeat(2000)
    z, _ = data.batch(rows, BatchRandom(torch.Generator().manual_seed(0)))
    z = z.view(2000, 6, 4, 2, 2)
    mean, log_variance = torch.from_numpy(MOMENTS).chunk(2, dim=1)
    torch.testing.assert_close(z.mean(dim=0), 0.18215 * mean, atol=0.05, rtol=0)
    expected = 0.18215 * (0.5 * log_variance).exp()
    torch.testing.assert_close(z.std(dim=0), expected, atol=0, rtol=0.1)


def test_mirrored_copies_in_the_second_half_are_left_out(tmp_path):
    twice = np.concatenate([MOMENTS, MOMENTS[..., ::-1]])
    root = write_published(tmp_path / "z", "z", twice, LABELS + LABELS)
    reader = LMDBReader(root)
    assert reader.info.length == 6
    np.testing.assert_array_equal(reader.read(range(6)), MOMENTS)


@pytest.mark.parametrize("in_memory", [True, False])
def test_external_features_follow_the_labels(root, features, in_memory):
    data = LatentDataset(root, features, in_memory=in_memory, classes=4)
    assert data.cond_dim == 9
    _, y = data.batch(torch.tensor([5, 2]))
    np.testing.assert_array_equal(y[:, :4], np.eye(4)[[0, 3]])
    np.testing.assert_array_equal(y[:, 4:], FEATURES[[5, 2]])


def test_features_of_other_images_are_refused(root, tmp_path):
    other = write_published(tmp_path / "other", "feat", FEATURES, LABELS[::-1])
    with pytest.raises(UserError, match="different class labels"):
        LatentDataset(root, other, classes=4)


def test_a_class_beyond_the_models_is_refused(root):
    with pytest.raises(UserError, match=r"holds class 3, but model\.num_classes is 3"):
        LatentDataset(root, classes=3)


def test_a_missing_label_is_named(root):
    with lmdb.open(str(root), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.delete(b"y-4")
    with pytest.raises(UserError, match="label y-4 is missing or damaged"):
        LMDBReader(root)


def test_the_configuration_says_what_conditions(tmp_path):
    """No embeddings: labels. External features: labels and features. Otherwise: embeddings."""
    write_published(tmp_path / "imagenet" / "train", "z", MOMENTS, LABELS)
    feat_path = write_published(tmp_path / "feat", "feat", FEATURES, LABELS)
    for model, feat, width in (
        ({"num_classes": 4}, None, 4),
        ({"num_classes": 4, "ext_feature_dim": 5}, feat_path, 9),
        ({"num_classes": 0, "ext_feature_dim": 5}, feat_path, 5),
        ({"num_classes": 0}, None, 0),
        ({"num_classes": 5}, feat_path, 5),
    ):
        data = {"root": tmp_path / "imagenet", "feat_path": feat, "feat_dim": 5}
        opened = open_data(make_tiny_config(tmp_path, model=model, data=data))
        assert opened.cond_dim == width
        _, y = opened.batch(torch.tensor([0]))
        assert (0 if y is None else y.shape[1]) == width


@pytest.mark.parametrize(
    ("model", "feat", "message"),
    [
        ({"num_classes": 4}, None, r"set data\.feat_path .* or model\.num_classes=0"),
        ({"ext_feature_dim": 5}, None, r"^data\.feat_path: set it to the embeddings"),
        ({"num_classes": 0, "ext_feature_dim": 7}, "feat", r"5 numbers.*ext_feature_dim says 7"),
    ],
)
def test_what_is_not_there_is_said(golden, tmp_path, features, model, feat, message):
    data = {"root": golden / "lmdb_seed_format" / "z", "feat_path": feat and features}
    if feat:
        data["root"] = write_published(tmp_path / "z", "z", MOMENTS, LABELS)
    size = {} if feat else {"in_size": 8}
    with pytest.raises(UserError, match=message):
        open_data(make_tiny_config(tmp_path, model={**size, **model}, data=data))
