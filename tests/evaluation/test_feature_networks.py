"""Feature networks: published ones give the features of the projects that published them."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_fid.fid_score
import timm
import torch
from inception import make_inception_weights, published_network
from PIL import Image
from safetensors.torch import save_file
from tiny import DIM, make_tiny_config
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from utils.base.errors import UserError
from utils.config.schema import Config
from utils.data.image_batches import image_batches
from utils.evaluation.feature_networks import DinoFeatures, kind_of, load_feature_network
from utils.evaluation.image_set import ImageSet
from utils.evaluation.references import Reference, load_stats, save_stats


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few images, since filling them up costs seconds with these networks."""
    monkeypatch.setattr("utils.evaluation.feature_networks.BLOCK", 4)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory) -> Path:
    return make_inception_weights(tmp_path_factory.mktemp("inception") / "pt_inception.pth")


def config_with(tmp_path: Path, network: str, **encoders: Path) -> Config:
    given = {"vae": tmp_path / "vae", "clip": tmp_path / "clip", **encoders}
    return make_tiny_config(tmp_path, eval={"feature_network": network}, encoders=given)


def random_images(n: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


def generations(folder: Path, n: int) -> list[Path]:
    """Smooth random images, each of its own size, grey ones among them."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(n):
        small = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        size = tuple(int(side) for side in generator.integers(40, 90, size=2))
        image = small.resize(size, Image.Resampling.BICUBIC)
        (image.convert("L") if i % 5 == 0 else image).save(folder / f"{i:03d}.png")
    return sorted(folder.iterdir())


def test_fid_and_its_statistics_are_those_of_pytorch_fid(
    tmp_path: Path, inception_weights: Path, monkeypatch
):
    config = config_with(tmp_path, "inception", inception=inception_weights)
    published = published_network(inception_weights, monkeypatch)
    paths = generations(tmp_path / "images", 24)

    def theirs(some: list[Path]) -> tuple[np.ndarray, np.ndarray]:
        return pytorch_fid.fid_score.calculate_activation_statistics(
            some, published, batch_size=1, num_workers=0
        )

    reference, generated = theirs(paths[:12]), theirs(paths[12:])
    images = ImageSet([load_feature_network(config)])
    for indices, batch in image_batches(paths[12:], None, batch_size=5):
        images.update(batch, indices)
    (made,) = images.references()
    np.testing.assert_allclose(made.mu, generated[0], rtol=1e-5, atol=1e-6)
    difference = np.linalg.norm(made.sigma - generated[1])
    assert difference < 1e-5 * np.linalg.norm(generated[1])
    metrics = images.metrics([Reference(*reference)])
    expected = pytorch_fid.fid_score.calculate_frechet_distance(*generated, *reference)
    assert metrics["frechet_distance"] == pytest.approx(expected, abs=1e-3, rel=1e-5)
    assert metrics["network"] == "inception" and metrics["inception_score"] > 1


def test_inception_tf_gives_what_torch_fidelity_does(tmp_path: Path, inception_weights: Path):
    network = load_feature_network(
        config_with(tmp_path, "inception-tf", inception=inception_weights)
    )
    images = random_images(2, 64)
    published = FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], str(inception_weights)
    )
    pooled, logits = published(images)
    outputs = network(images)
    torch.testing.assert_close(outputs.pooled, pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-4, atol=1e-4)


def test_spatial_features_are_seven_channels_of_an_early_map(tmp_path, inception_weights):
    network = load_feature_network(
        config_with(tmp_path, "inception-tf", inception=inception_weights)
    )
    images = random_images(1, 299)
    published = FeatureExtractorInceptionV3("inception", ["2048"], str(inception_weights))
    x = (images.float() - 128) / 128
    for name, layer in published.named_children():
        if name == "Mixed_6d":
            break
        x = layer(x)
    channels = layer.branch1x1(x)[:, :7]  # (1, 7, 17, 17)
    found = network(images).spatial.reshape(17, 17, 7)
    torch.testing.assert_close(found.permute(2, 0, 1)[None], channels, rtol=1e-4, atol=1e-5)


@pytest.mark.bits
def test_features_do_not_depend_on_the_batch_in_which_an_image_came(tmp_path: Path):
    network = load_feature_network(config_with(tmp_path, "clip"))
    images = random_images(21, 40)
    together = network(images).pooled
    alone = torch.cat([network(image[None]).pooled for image in images])
    listed = network(list(images)).pooled
    assert together.shape == (21, DIM)
    for other in (alone, listed):  # docs/evaluation.md states the bound
        torch.testing.assert_close(other, together, rtol=1e-6, atol=1e-6)


def test_the_clip_of_the_config_is_the_feature_network_without_inception_weights(tmp_path, capsys):
    network = load_feature_network(config_with(tmp_path, "inception"))
    assert kind_of(network.name) == "clip"
    assert "distances are not FID" in capsys.readouterr().err


@pytest.mark.parametrize("network", ["inception-tf", "dinov2"])
def test_a_network_asked_for_by_name_is_not_replaced(tmp_path: Path, network: str):
    with pytest.raises(UserError, match=rf"is not set: the feature network {network} needs"):
        load_feature_network(config_with(tmp_path, network))


def test_missing_inception_weights_come_with_how_to_get_them(tmp_path: Path):
    file = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    with pytest.raises(UserError, match=r"download_assets\.py --name inception"):
        load_feature_network(config_with(tmp_path, "inception-tf", inception=file))


@pytest.mark.parametrize(("network", "what"), [("inception", "the FID Inc"), ("dinov2", "DINOv2")])
def test_a_file_of_other_weights_is_refused(tmp_path: Path, network: str, what: str):
    torch.save({"model": torch.zeros(1)}, tmp_path / "other.pth")
    config = config_with(tmp_path, network, **{network: tmp_path / "other.pth"})
    with pytest.raises(UserError, match=rf"other\.pth: not {what}"):
        load_feature_network(config)


def test_dinov2_is_recognised_by_its_weights_and_gives_the_class_token(tmp_path: Path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0)
    save_file(model.state_dict(), tmp_path / "dino.safetensors")
    network = load_feature_network(
        config_with(tmp_path, "dinov2", dinov2=tmp_path / "dino.safetensors")
    )
    assert isinstance(network, DinoFeatures) and network.name.startswith("dinov2-small-")
    images = random_images(2, 224)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = model.eval().forward_features(x)[:, 0]
    torch.testing.assert_close(network(images).pooled, expected, rtol=1e-3, atol=1e-4)
    assert network(random_images(2, 50)).pooled.shape == (2, 384)


def test_references_remember_the_network_they_are_of(tmp_path: Path):
    save_stats(tmp_path / "x.npz", Reference(np.zeros(2), np.eye(2), network="inception-tf"))
    assert kind_of(load_stats(tmp_path / "x.npz").network) == "inception-tf"
    with pytest.raises(UserError, match="no known feature network"):
        kind_of("vgg")
