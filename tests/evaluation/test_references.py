"""Reference files: written, read, refused."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_fid.fid_score
from random_features import features, statistics

from utils.base.errors import UserError
from utils.evaluation.references import (
    Reference,
    check_comparable,
    check_dimension,
    load_stats,
    save_stats,
)

ABOUT = {"n": 30, "network": "clip x", "resolution": 16, "source": "abc"}


def reference(dim: int = 5, **more) -> Reference:
    return Reference(*statistics(features(30, dim, seed=7)), **ABOUT, **more)


def test_saved_statistics_come_back_with_where_they_are_from(tmp_path: Path):
    saved = reference(mu_s=np.ones(2), sigma_s=np.eye(2), features=np.zeros((3, 5), np.float32))
    save_stats(tmp_path / "made" / "ref.npz", saved)
    loaded = load_stats(tmp_path / "made" / "ref.npz")
    for key in ("mu", "sigma", "mu_s", "sigma_s", "features"):
        np.testing.assert_array_equal(getattr(loaded, key), getattr(saved, key))
    assert (loaded.n, loaded.network, loaded.resolution, loaded.source) == (30, "clip x", 16, "abc")
    assert loaded.path == tmp_path / "made" / "ref.npz"


def test_pytorch_fid_reads_our_references(tmp_path: Path):
    save_stats(tmp_path / "ref.npz", reference())
    mu, sigma = pytorch_fid.fid_score.compute_statistics_of_path(
        str(tmp_path / "ref.npz"), None, 1, 5, "cpu"
    )
    np.testing.assert_array_equal(mu, reference().mu)
    np.testing.assert_array_equal(sigma, reference().sigma)


def test_plain_pytorch_fid_statistics_are_read_and_taken_at_their_word(tmp_path: Path):
    mu, sigma = statistics(features(30, 5, seed=8))
    np.savez_compressed(tmp_path / "plain.npz", mu=mu, sigma=sigma)
    loaded = load_stats(tmp_path / "plain.npz")
    np.testing.assert_array_equal(loaded.sigma, sigma)
    check_comparable(loaded, "inception", 256)
    assert loaded.n is loaded.network is loaded.features is None


def test_statistics_of_adm_are_read_with_their_spatial_ones(tmp_path: Path, capsys):
    mu, sigma = statistics(features(30, 5, seed=8))
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(
        tmp_path / "adm.npz", arr_0=images, mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=sigma[:2, :2]
    )
    loaded = load_stats(tmp_path / "adm.npz")
    np.testing.assert_array_equal(loaded.sigma_s, sigma[:2, :2])
    check_comparable(loaded, "inception-tf", 256)
    assert capsys.readouterr().err == ""
    check_comparable(loaded, "inception", 256)
    assert "inception-tf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(1)}, "not readable"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, "not of one dimension"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "NaN"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "mu_s": np.zeros(3)}, "sigma_s None"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros((4, 3))}, "do not go with"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, r"fid_ref\.py --images"),
        ({"x": np.zeros(3)}, "no reference"),
    ],
)
def test_what_is_no_reference_is_refused(tmp_path: Path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=rf"bad\.npz: .*{message}"):
        load_stats(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"text"])
def test_damaged_reference_gives_a_clear_line(tmp_path: Path, content: bytes):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.npz: not readable"):
        load_stats(tmp_path / "bad.npz")


def test_missing_reference_says_which_command_makes_it(tmp_path: Path):
    with pytest.raises(UserError, match=r"fid_ref\.py"):
        load_stats(tmp_path / "none.npz")


def test_references_of_another_network_resolution_or_dimension_are_refused(tmp_path: Path):
    made = reference(dim=3)
    check_comparable(made, "clip x", 16)
    with pytest.raises(UserError, match="clip x.*inception"):
        check_comparable(made, "inception", 16)
    with pytest.raises(UserError, match="16 pixels.*32"):
        check_comparable(made, "clip x", 32)
    with pytest.raises(UserError, match="3 dimensions, the features 4"):
        check_dimension(made, 4)
