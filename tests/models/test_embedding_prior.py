"""The prior of image embeddings: its conditions, what it learns, what its samples depend on."""

import copy

import pytest
import torch
import torch.nn.functional as F

from models.batch_random import BatchRandom
from models.embedding_prior import EmbeddingPrior, posterior_mean, prior_loss

DIM = 12
TRAITS = 2  # of an image, each with three values


def images(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings (N, DIM) of unit length and traits (N, TRAITS): one direction each."""
    traits = torch.randint(3, (count, TRAITS), generator=generator)
    y = torch.zeros(count, DIM)
    y[:, -1] = 0.5  # all images share a direction
    for t in range(TRAITS):
        y[torch.arange(count), 3 * t + traits[:, t]] = 1.0
    return F.normalize(y, dim=1), traits


def read_traits(y: torch.Tensor) -> torch.Tensor:
    """Return the nearest traits of embeddings (N, DIM) -> (N, TRAITS)."""
    return torch.stack([y[:, 3 * t : 3 * t + 3].argmax(dim=1) for t in range(TRAITS)], dim=1)


@pytest.fixture(scope="module")
def bank():
    return images(600, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(bank):
    """Train a prior on the images of `bank` alone, in a few seconds."""
    y, _ = bank
    torch.manual_seed(0)
    prior = EmbeddingPrior(DIM, width=64, depth=2)
    prior.measure(y)
    optimizer = torch.optim.AdamW(prior.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    generator = torch.Generator().manual_seed(0)
    for _ in range(800):
        y = y[torch.randperm(len(y), generator=generator)]
        rng = BatchRandom(generator)
        loss = prior_loss(prior, y[:256], y[256:], (0.5, 8.0), rng).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return prior.eval()


def test_the_posterior_mean_weights_the_bank_by_the_probability_of_the_noise():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    noised = torch.tensor([[0.9, 0.4]])
    gauss = torch.exp(-(noised - bank).square().sum(dim=1) / (2 * 0.5**2))
    expected = (gauss / gauss.sum()) @ bank
    found = posterior_mean(noised, torch.tensor([[0.5]]), bank)
    torch.testing.assert_close(found, expected[None])
    nearest = posterior_mean(noised, torch.tensor([[1e-2]]), bank)
    torch.testing.assert_close(nearest, bank[:1])
    everything = posterior_mean(noised, torch.tensor([[1e3]]), bank)
    torch.testing.assert_close(everything, bank.mean(dim=0)[None], atol=1e-5, rtol=0)


def test_samples_keep_what_the_condition_states_and_vary_in_the_rest_as_images_do(bank, trained):
    y, traits = bank
    generator = torch.Generator().manual_seed(1)
    for value in range(3):  # a sentence that states the first trait alone
        condition = y[traits[:, 0] == value].mean(dim=0, keepdim=True).expand(600, -1)
        noise = torch.randn(600, DIM, generator=generator)
        generated = trained.sample(condition, noise, freedom=0.8)
        found = read_traits(generated)
        assert (found[:, 0] == value).float().mean() > 0.97
        shares = torch.bincount(found[:, 1], minlength=3) / 600
        assert shares.min() > 0.2 and shares.max() < 0.5  # about 1/3 each among the images
        assert (generated @ y.T).max(dim=1).values.median() > 0.97  # samples are images, no means


def test_a_condition_that_states_all_gives_its_own_image(bank, trained):
    y, traits = bank
    noise = torch.randn(len(y), DIM, generator=torch.Generator().manual_seed(2))
    assert (read_traits(trained.sample(y, noise, freedom=0.8)) == traits).float().mean() > 0.95


def test_the_mean_of_all_images_states_nothing(bank, trained):
    noise = torch.randn(900, DIM, generator=torch.Generator().manual_seed(3))
    generated = read_traits(trained.sample(trained.mean.expand(900, -1), noise, freedom=0.8))
    for t in range(TRAITS):
        assert (torch.bincount(generated[:, t], minlength=3) / 900).min() > 0.2


def test_less_freedom_takes_a_vague_condition_more_literally(bank, trained):
    y, traits = bank
    stated = y[traits[:, 0] == 0].mean(dim=0)
    vague = F.normalize(0.4 * stated + 0.6 * y.mean(dim=0), dim=0).expand(600, -1)
    noise = torch.randn(600, DIM, generator=torch.Generator().manual_seed(4))
    followed = [
        float((read_traits(trained.sample(vague, noise, freedom))[:, 0] == 0).float().mean())
        for freedom in (2.0, 0.8, 0.3)
    ]
    assert followed[0] < followed[1] < followed[2]


def test_conditions_reach_no_farther_than_images_do(bank, trained):
    y, _ = bank
    offset = trained.offset_from_mean(y, freedom=0.01)
    torch.testing.assert_close(offset.norm(dim=1), trained.max_norm.expand(len(y)))
    direction = F.normalize(trained.mean, dim=0)
    torch.testing.assert_close(offset @ direction, torch.zeros(len(y)), atol=1e-5, rtol=0)


def test_a_sample_depends_on_its_own_noise_and_condition_alone(bank, trained):
    y, _ = bank
    noise = torch.randn(8, DIM, generator=torch.Generator().manual_seed(5))
    together = trained.sample(y[:8], noise, 0.8)
    alone = torch.cat([trained.sample(y[i : i + 1], noise[i : i + 1], 0.8) for i in range(8)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(8))
    assert not torch.allclose(together[0], trained.sample(y[:1], noise[1:2], 0.8)[0], atol=1e-3)


def test_a_fresh_prior_predicts_no_velocity_so_that_its_loss_is_known(bank):
    y, _ = bank
    prior = EmbeddingPrior(DIM, width=16, depth=1)
    prior.measure(y)
    loss = prior_loss(prior, y, y, (1.0, 8.0), BatchRandom(torch.Generator().manual_seed(0)))
    assert loss.shape == (len(y),)
    # Target and noise both have variance 1 in each dimension, and do not depend on each other.
    assert loss.mean().item() == pytest.approx(2.0, rel=0.1)


def test_a_prior_of_0_2_loads_under_the_new_names_of_its_buffers(trained):
    weights = trained.state_dict()
    weights["scale"], weights["reach"] = weights.pop("std"), weights.pop("max_norm")
    made = copy.deepcopy(trained)
    made.std.zero_()
    made.load_state_dict(weights)
    assert torch.equal(made.std, trained.std) and torch.equal(made.max_norm, trained.max_norm)


def test_more_candidates_fit_the_condition_better_and_one_is_the_same_as_none(trained):
    generator = torch.Generator().manual_seed(0)
    noise, moved = (torch.randn(200, DIM, generator=generator) for _ in range(2))
    y = F.normalize(trained.mean + 0.5 * F.normalize(moved, dim=1), dim=1)
    one, four = (trained.sample(y, noise, 1.5, candidates=n) for n in (1, 4))
    assert torch.equal(one, trained.sample(y, noise, 1.5))
    offset = trained.offset_from_mean(y, 1)
    gain = ((four - one) * offset).sum(dim=1)
    assert (gain >= 0).all()  # the first candidate is one of the four
    assert float((gain > 1e-3).float().mean()) > 0.4
    assert torch.equal(trained.sample(y[3:4], noise[3:4], 1.5, candidates=4), four[3:4])
