"""An image set: batches in, all metrics out, for any batches and any number of processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DIM, RESOLUTION, make_tiny_config

from utils.base.errors import UserError
from utils.evaluation.evaluator import load_networks, load_references
from utils.evaluation.feature_networks import ClipFeatures, FeatureNetwork, Outputs
from utils.evaluation.feature_store import FeatureBlocks
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.image_set import ImageSet, few_samples_note
from utils.evaluation.metric_names import distance_of
from utils.evaluation.references import Reference, save_stats
from utils.evaluation.results import Results
from utils.pretrained.encoders import load_config_clip

pytestmark = pytest.mark.bits  # of `make test-machines`

N = 130  # enough for R-precision


class MeanColours(FeatureNetwork):
    """Features of another dimension, with logits and spatial features as Inception has."""

    name = "inception"
    device = torch.device("cpu")

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255

    def run(self, inputs: torch.Tensor) -> Outputs:
        quarters = torch.nn.functional.avg_pool2d(inputs, RESOLUTION // 2).flatten(1)
        return Outputs(quarters[:, :9], 9 * quarters, quarters[:, 3:])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_config_clip(make_tiny_config(tmp_path_factory.mktemp("clip")).encoders)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (N, 3, RESOLUTION, RESOLUTION)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def captions() -> torch.Tensor:
    return torch.randn(N, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def networks(clip) -> list[FeatureNetwork]:
    return [ClipFeatures(clip), MeanColours()]


@pytest.fixture(scope="module")
def references(networks, images) -> list[Reference]:
    made = ImageSet(networks)
    made.update(255 - images[:80] // 2, range(80))
    return made.references()


@pytest.fixture(scope="module")
def whole(networks, clip, images, captions) -> ImageSet:
    made = ImageSet(networks, clip)
    made.update(images, range(N), captions)
    return made


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        numeric = isinstance(value, float)
        assert found[key] == (pytest.approx(value, rel=1e-6) if numeric else value), key


def test_all_metrics_that_can_be_computed_are_there(whole, references):
    metrics = whole.metrics(references)
    absent = {key for key, value in metrics.items() if value is None}
    assert absent == {"inception_score_clip", "inception_score_std_clip", "sfid_clip"}  # no classes
    assert metrics["n"] == N and metrics["network"].startswith("clip-")
    low, high = metrics["frechet_distance_low_clip"], metrics["frechet_distance_high_clip"]
    assert low < metrics["frechet_distance_clip"] < high
    assert metrics["sfid_inception"] > 0 and metrics["inception_score_inception"] > 1


def test_the_distance_is_that_of_the_features_themselves(whole, clip, images, references):
    features = clip.encode_images(images).double().numpy()
    expected = frechet_distance(
        features.mean(axis=0),
        np.cov(features, rowvar=False),
        references[0].mu,
        references[0].sigma,
    )
    assert whole.metrics(references)["frechet_distance_clip"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_metrics_depend_neither_on_batches_nor_on_processes(
    tmp_path: Path, networks, clip, images, captions, references, whole, batch_size
):
    blocks = FeatureBlocks(tmp_path / "blocks", N)
    for rank in range(2):
        process = ImageSet(networks, clip)
        indices = np.arange(rank, N, 2)[::-1].copy()
        for some in np.array_split(indices, -(-len(indices) // batch_size)):
            blocks.add(some.tolist(), process.features(images[some], captions[some]))
    found = ImageSet(networks, clip).add_batches(blocks).metrics(references)
    assert_same(found, whole.metrics(references))


def test_features_may_be_kept_and_taken_in_later(
    networks, clip, images, captions, references, whole
):
    later = ImageSet(networks, clip)
    parts = [
        (later.features(images[i : i + 40], captions[i : i + 40]), range(i, min(i + 40, N)))
        for i in range(0, N, 40)
    ]
    assert later.n == 0
    for features, indices in reversed(parts):
        later.add(features, indices)
    assert_same(later.metrics(references), whole.metrics(references))


def test_an_image_is_not_counted_twice(networks, images):
    made = ImageSet(networks)
    made.update(images[:4], range(4))
    with pytest.raises(ValueError, match="image 3 is counted twice"):
        made.update(images[:4], range(3, 7))


def test_without_captions_and_features_of_the_reference_the_rest_is_there(networks, images):
    bare = Reference(np.zeros(DIM), np.eye(DIM))
    made = ImageSet(networks[:1])
    made.update(images[:30], range(30))
    metrics = made.metrics([bare])
    there = {key for key, value in metrics.items() if value is not None}
    assert there == {
        *("n", "network"),
        *("frechet_distance_clip", "frechet_distance_low_clip", "frechet_distance_high_clip"),
    }


def test_a_single_image_is_refused(networks, images, references):
    made = ImageSet(networks[:1])
    made.update(images[:1], [0])
    with pytest.raises(UserError, match="at least two images, got 1"):
        made.metrics(references[:1])


def test_a_reference_of_another_dimension_is_refused(networks, images):
    made = ImageSet(networks[:1])
    made.update(images[:3], range(3))
    with pytest.raises(UserError, match=f"has 5 dimensions, the features {DIM}"):
        made.metrics([Reference(np.zeros(5), np.eye(5))])


def test_features_that_are_not_finite_name_the_image(networks, images):
    made = ImageSet(networks[:1])
    features = made.features(images[:3])
    features["0.pooled"] = features["0.pooled"].index_fill(1, torch.tensor([2]), float("nan"))
    with pytest.raises(UserError, match=r"image 7: the feature network clip-\w+ gave NaN"):
        made.add(features, [7, 8, 9])


def test_images_that_are_all_the_same_are_noted(networks, images, references, capsys):
    made = ImageSet(networks[:1])
    grey = torch.full((20, 3, RESOLUTION, RESOLUTION), 128, dtype=torch.uint8)
    made.update(grey, range(20))
    metrics = made.metrics(references[:1])
    assert metrics["frechet_distance_clip"] > 0
    assert "all 20 images have the same clip features" in capsys.readouterr().err


def test_few_images_come_with_a_remark():
    assert "500 images are few" in few_samples_note(500)
    assert few_samples_note(10_000) is None


def test_more_references_bring_their_networks(tmp_path: Path, clip):
    config = make_tiny_config(tmp_path)
    save_stats(config.eval.ref_path, Reference(np.zeros(DIM), np.eye(DIM), network=clip.identity))
    unnamed = tmp_path / "unnamed.npz"
    save_stats(unnamed, Reference(np.zeros(3), np.eye(3)))
    (reference,) = load_references(config)
    networks = load_networks(config, [reference])
    assert [network.name for network in networks] == [clip.identity]
    assert reference.path == config.eval.ref_path
    for path, message in ((unnamed, "does not name"), (reference.path, "two references")):
        changed = config.eval.model_copy(update={"more_ref_paths": [path]})
        with pytest.raises(UserError, match=message):
            load_networks(config, load_references(config.model_copy(update={"eval": changed})))


@pytest.mark.parametrize(
    ("network", "key"),
    [
        ("inception-2015", "frechet_distance"),
        ("inception-tf-2015", "frechet_distance"),
        ("clip-0123", "frechet_distance_clip"),
        ("dinov2-small", "frechet_distance_dinov2"),
    ],
)
def test_distances_of_a_network_are_never_under_the_key_of_another(network, key, tmp_path):
    older = {"network": network, "frechet_distance": 5.0, "kid": 0.1, "clip_score": 3.0}
    (tmp_path / "results.jsonl").write_text(json.dumps(older) + "\n")
    results = Results(tmp_path)
    results.add({"network": "inception-2015", "frechet_distance": 7.0, "clip_score": 4.0})
    first, second = results.records
    assert first[key] == distance_of(first) == 5.0 and first["clip_score"] == 3.0
    assert second["frechet_distance"] == distance_of(second) == 7.0
    assert ("kid" in first) == (key == "frechet_distance")
    header = (tmp_path / "results.csv").read_text().splitlines()[0].split(",")
    assert {key, "frechet_distance"} <= set(header)
