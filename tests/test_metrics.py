"""Features -> statistics -> figure."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from tiny import DIM, make_tiny_config
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from utils.errors import UserError
from utils.metrics import (
    FeatureStats,
    check_comparable,
    clip_score,
    distance_to,
    frechet_distance,
    image_features,
    load_feature_network,
    load_stats,
    save_stats,
)

ABOUT = {"n": 30, "network": "clip x", "resolution": 16, "source": "abc"}


def features(n: int, dim: int, seed: int) -> np.ndarray:
    """Correlated, non-Gaussian features of very different scales."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dim, dim)) * np.exp(-np.arange(dim) / dim * 4)
    return np.maximum(generator.normal(size=(n, dim)) @ mixing.T, -0.3) + generator.normal()


def statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=0), np.cov(values, rowvar=False)


def by_sqrtm(mu1, sigma1, mu2, sigma2) -> float:
    """The textbook formula, on a matrix that is not symmetric."""
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    return np.sum((mu1 - mu2) ** 2) + np.trace(sigma1 + sigma2 - 2 * root)


def test_streaming_statistics_equal_those_of_all_features_at_once():
    values = features(101, 12, seed=0) + 1e4  # far from zero, where sums of squares cancel
    stats = FeatureStats()
    for batch in np.array_split(values, 7):
        stats.update(batch)
    mu, sigma = statistics(values)
    assert stats.n == 101
    np.testing.assert_allclose(stats.mu, mu, rtol=1e-12)
    np.testing.assert_allclose(stats.sigma, sigma, rtol=1e-9, atol=1e-9)


def test_merged_statistics_do_not_depend_on_how_images_were_shared():
    values = features(50, 8, seed=1)
    whole = FeatureStats()
    whole.update(values)
    merged = FeatureStats()
    for rank in range(3):
        part = FeatureStats()
        for batch in np.array_split(values[rank::3], 2):
            part.update(torch.from_numpy(batch))
        merged.merge(part)
    merged.merge(FeatureStats())  # a process that had no images
    np.testing.assert_allclose(merged.mu, whole.mu, rtol=1e-12)
    np.testing.assert_allclose(merged.sigma, whole.sigma, rtol=1e-12, atol=1e-14)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="NaN"):
        FeatureStats().update(np.array([[0.0, np.nan]]))


def test_a_single_image_has_no_covariance():
    stats = FeatureStats()
    stats.update(features(1, 4, seed=0))
    with pytest.raises(UserError, match="at least two images"):
        _ = stats.sigma


@pytest.mark.parametrize(("dim", "n"), [(4, 500), (64, 200), (200, 2000)])
def test_frechet_distance_equals_the_matrix_square_root(dim, n):
    args = *statistics(features(n, dim, seed=2)), *statistics(features(n + 7, dim, seed=3))
    assert frechet_distance(*args) == pytest.approx(by_sqrtm(*args), rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    diagonal = np.array([1.0, 4.0]), np.array([9.0, 16.0])  # (1 - 3)^2 + (2 - 4)^2 and a shift of 5
    mus = np.array([0.0, 0.0]), np.array([3.0, 4.0])
    value = frechet_distance(mus[0], np.diag(diagonal[0]), mus[1], np.diag(diagonal[1]))
    assert value == pytest.approx(25 + 4 + 4)


@pytest.mark.parametrize("swap", [False, True])
def test_frechet_distance_is_sane_when_covariances_lack_rank(swap):
    few, many = features(20, 64, seed=4), features(500, 64, seed=5)
    pair = (statistics(few), statistics(many))
    first, second = pair[::-1] if swap else pair
    # Adding a tiny multiple of the identity makes the square root well defined.
    nudged = [(mu, sigma + 1e-9 * np.eye(64)) for mu, sigma in (first, second)]
    expected = by_sqrtm(*nudged[0], *nudged[1])
    assert frechet_distance(*first, *second) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(*first, *second) == pytest.approx(frechet_distance(*second, *first))


@pytest.mark.parametrize("n", [20, 500])
def test_frechet_distance_to_itself_is_zero(n):
    mu, sigma = statistics(features(n, 64, seed=6))
    assert frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-9 * np.trace(sigma))


def test_clip_score_is_the_mean_cosine_in_percent():
    image = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    text = torch.tensor([[0.5, 0.0], [-3.0, 0.0]])
    assert clip_score(image, text) == pytest.approx(100 * (1 - 0.5**0.5) / 2)


def test_saved_statistics_come_back_with_where_they_are_from(tmp_path: Path):
    mu, sigma = statistics(features(30, 5, seed=7))
    save_stats(tmp_path / "made" / "ref.npz", mu, sigma, **ABOUT)
    loaded = load_stats(tmp_path / "made" / "ref.npz")
    np.testing.assert_array_equal(loaded.mu, mu)
    np.testing.assert_array_equal(loaded.sigma, sigma)
    assert (loaded.n, loaded.network, loaded.resolution, loaded.source) == (30, "clip x", 16, "abc")


def test_plain_pytorch_fid_statistics_are_read_and_compared(tmp_path: Path):
    values = features(30, 5, seed=8)
    np.savez(tmp_path / "plain.npz", mu=values.mean(axis=0), sigma=np.cov(values, rowvar=False))
    reference = load_stats(tmp_path / "plain.npz")
    check_comparable(reference, "inception", 256, "plain.npz")
    stats = FeatureStats()
    stats.update(values)
    assert distance_to(reference, stats, "plain.npz") == pytest.approx(0, abs=1e-9)


def test_reference_that_holds_objects_is_refused(tmp_path: Path):
    np.savez(tmp_path / "bad.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(UserError, match=r"bad\.npz: not readable"):
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
    save_stats(tmp_path / "ref.npz", np.zeros(3), np.eye(3), **ABOUT)
    reference = load_stats(tmp_path / "ref.npz")
    check_comparable(reference, "clip x", 16, "ref.npz")
    with pytest.raises(UserError, match="clip x.*inception"):
        check_comparable(reference, "inception", 16, "ref.npz")
    with pytest.raises(UserError, match="16 pixels.*32"):
        check_comparable(reference, "clip x", 32, "ref.npz")
    stats = FeatureStats()
    stats.update(features(9, 4, seed=9))
    with pytest.raises(UserError, match="3 dimensions, the features 4"):
        distance_to(reference, stats, "ref.npz")


def test_the_clip_of_the_config_is_the_feature_network_without_inception_weights(tmp_path: Path):
    config = make_tiny_config(tmp_path, eval={"feature_network": "inception"})
    network = load_feature_network(config)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    assert network.name.startswith("clip")
    (batch,) = image_features(network, [images])
    assert batch.shape == (5, DIM) and batch.dtype == torch.float64


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory) -> Path:
    """Random weights in the published format of the FID Inception network."""
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            del state_dict

    torch.manual_seed(0)
    torch.save({}, path)
    network = Unloaded("inception", ["2048"], str(path))
    for layer in network.modules():
        if isinstance(layer, BasicConv2d):
            torch.nn.init.kaiming_normal_(layer.conv.weight)
    torch.save(network.state_dict(), path)
    return path


def test_inception_gives_the_pooled_features_of_the_published_network(
    tmp_path: Path, inception_weights: Path
):
    config = make_tiny_config(
        tmp_path,
        eval={"feature_network": "inception"},
        encoders={
            "vae": tmp_path / "vae",
            "clip": tmp_path / "clip",
            "inception": inception_weights,
        },
    )
    network = load_feature_network(config)
    # At 299 pixels no resizing takes place, and only the input's scale tells the two apart.
    images = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8)
    published = FeatureExtractorInceptionV3("inception", ["2048"], str(inception_weights))
    (expected,) = published(images)
    assert network.name == "inception"
    assert network(images).shape == (2, 2048)
    torch.testing.assert_close(network(images), expected, rtol=0.05, atol=0.05)
    assert network(images[:, :, ::3, ::3]).shape == (2, 2048)


def test_a_file_that_is_not_inception_is_refused(tmp_path: Path):
    torch.save({"model": torch.zeros(1)}, tmp_path / "other.pth")
    config = make_tiny_config(
        tmp_path,
        eval={"feature_network": "inception"},
        encoders={"inception": tmp_path / "other.pth"},
    )
    with pytest.raises(UserError, match=r"other\.pth: not the FID Inception weights"):
        load_feature_network(config)
