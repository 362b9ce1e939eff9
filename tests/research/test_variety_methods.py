"""Ways to turn a sentence's condition into many: what each does to an embedding."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.samplers import SeededNoise
from research.variety.methods import CHECKPOINT, STRENGTHS, ways
from utils.pretrained.effective_config import read_config
from utils.pretrained.priors import read_prior


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return F.normalize(torch.randn(300, 256, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture(scope="module")
def all_ways(images):
    return ways(images, read_config(CHECKPOINT))


@pytest.fixture(scope="module")
def y() -> torch.Tensor:
    return F.normalize(torch.randn(1, 256, generator=torch.Generator().manual_seed(12_345)), dim=1)


@pytest.mark.parametrize("name", [name for name in STRENGTHS if name != "literal"])
def test_each_seed_gives_another_embedding_of_unit_length_whatever_the_batch(all_ways, y, name):
    way = all_ways[name](STRENGTHS[name][0])
    seeds = [7, 8, 9]
    together = way(y.expand(3, -1), SeededNoise(seeds))
    alone = torch.cat([way(y, SeededNoise([seed])) for seed in seeds])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert torch.pdist(together).min() > 0.01


def test_literal_leaves_the_condition_as_it_is(all_ways, y):
    assert all_ways["literal"](0)(y, SeededNoise([1])) is y


def test_noise_turns_by_the_angle_of_its_level(all_ways, y):
    turned = all_ways["noise"](1.0)(y.expand(200, -1), SeededNoise(range(200)))
    angles = torch.rad2deg((turned @ y[0]).acos())
    assert angles.mean() == pytest.approx(45, abs=1)


def test_near_images_are_among_the_nearest_and_all_of_them_come_up(all_ways, images, y):
    nearest = (images @ y[0]).topk(10).indices
    generated = all_ways["a near image"](10)(y.expand(200, -1), SeededNoise(range(200)))
    found = (generated @ images.T).argmax(dim=1)
    assert set(found.tolist()) == set(nearest.tolist())
    mixed = all_ways["mixed with a near image"](10)(y.expand(200, -1), SeededNoise(range(200)))
    torch.testing.assert_close(mixed, F.normalize(generated + y, dim=1))


def test_the_prior_draws_as_the_network_does(all_ways, y):
    prior, _ = read_prior(Path("assets/demo/prior.safetensors"))
    noise = SeededNoise([3]).randn((256,))
    generated = all_ways["prior"](0.6)(y, SeededNoise([3]))
    torch.testing.assert_close(generated, prior.sample(y, noise, 0.6))
