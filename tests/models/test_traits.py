"""Edits: traits between embeddings, parts that are kept, guidance away from a condition."""

import pytest
import torch
import torch.nn.functional as F
from tiny import make_tiny_denoiser

from models.editing import AgainstCondition, keeping, trait_between, unlike, with_trait
from models.samplers import SamplerSettings, guided, sample


@pytest.fixture(scope="module")
def people() -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings without and with a trait, which is one direction among others that vary more."""
    generator = torch.Generator().manual_seed(0)
    common, trait = torch.zeros(16), torch.zeros(16)
    common[0], trait[1] = 3.0, 1.0
    scale = torch.tensor([0.2, 0.1] + [1.0] * 6 + [0.05] * 8)
    without, having = (
        common + scale * torch.randn(400, 16, generator=generator) + having * trait
        for having in (0.0, 1.0)
    )
    return F.normalize(without, dim=1), F.normalize(having, dim=1)


def test_moved_embeddings_show_the_trait_and_keep_what_differs_else(people):
    without, having = people
    trait = trait_between(without[:200], having[:200])
    moved = with_trait(without[200:], trait)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(200))
    level = having[200:, 1].quantile(0.1)
    assert (moved[:, 1] >= level).float().mean() > 0.9 > (without[200:, 1] >= level).float().mean()
    others = F.cosine_similarity(moved[:, 2:8], without[200:, 2:8], dim=1)
    assert others.mean() > 0.95


def test_embeddings_that_show_the_trait_stay_as_they_are(people):
    without, having = people
    trait = trait_between(without, having)
    shown = having[having @ trait.weights >= trait.level]
    assert len(shown) == pytest.approx(200, abs=2)  # half of them lie above the level
    torch.testing.assert_close(with_trait(shown, trait), shown, rtol=0, atol=0)


def test_the_move_depends_on_what_the_image_shows_of_the_trait(people):
    """People of three hair colours become red: each loses its own colour."""
    generator = torch.Generator().manual_seed(1)
    colours = torch.eye(16)[4:7].repeat(100, 1)
    rest = 2 * torch.eye(16)[0] + 0.1 * torch.randn(300, 16, generator=generator)
    anyone, red = (F.normalize(rest + colour, dim=1) for colour in (colours, colours[:1]))
    moved = with_trait(anyone, trait_between(anyone, red))
    fixed = F.normalize(anyone + red.mean(dim=0) - anyone.mean(dim=0), dim=1)
    assert (moved - red).norm(dim=1).mean() < 0.7 * (fixed - red).norm(dim=1).mean()


def test_samples_that_show_the_trait_by_chance_do_not_count(people):
    without, having = people
    trait = trait_between(torch.cat([without, having[:200]]), having[200:])
    torch.testing.assert_close(trait.before[1], without[:, 1].mean(), rtol=0, atol=0.02)


def test_those_that_look_like_the_first_sentence_move_to_the_second(people):
    without, having = people
    trait = trait_between(having, without)
    y = torch.cat([without[:8], having[:8]])
    moved = unlike(y, trait)
    torch.testing.assert_close(moved[:8], y[:8], rtol=0, atol=0)
    assert (moved[8:] @ trait.weights >= trait.border).all()
    torch.testing.assert_close(moved[9:10], unlike(y[9:10], trait), rtol=0, atol=0)


def test_one_sentence_twice_changes_nothing(people):
    same = trait_between(people[0], people[0])
    moved = with_trait(people[0], same)
    torch.testing.assert_close(moved, people[0], rtol=0, atol=1e-4)


def test_half_the_amount_moves_half_as_far(people):
    without, having = people
    trait = trait_between(without, having)
    whole, half, none = (with_trait(without, trait, amount) for amount in (1, 0.5, 0))
    torch.testing.assert_close(none, without, rtol=0, atol=1e-6)
    torch.testing.assert_close(half, F.normalize((whole + none) / 2, dim=1), rtol=0, atol=0.02)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_a_solver_leads_to_the_known_part(solver):
    clean, mask = torch.randn(1, 4, 4), torch.zeros(1, 4, 4)
    mask[:, :2] = 1

    def denoise(x, sigma):
        return 0.25 * x / (0.25 + sigma**2)

    noise = torch.randn(3, 1, 4, 4)
    plain = sample(denoise, noise, SamplerSettings(solver, 8))
    kept = sample(keeping(denoise, clean, mask), noise, SamplerSettings(solver, 8))
    torch.testing.assert_close(kept[:, :, :2], plain[:, :, :2])
    torch.testing.assert_close(kept[:, :, 2:].float(), clean[:, 2:].expand(3, -1, -1, -1))


def test_guidance_leads_away_from_the_negative_condition():
    denoiser = make_tiny_denoiser()
    width = denoiser.model.cond_width
    y, negative = torch.randn(2, width), torch.randn(width)
    x = torch.randn(2, denoiser.model.in_channels, *[denoiser.model.img_size] * 2)
    away = guided(AgainstCondition(denoiser, negative), y, 2.0)(x, 1.5)
    expected = 2 * denoiser(x, 1.5, y) - denoiser(x, 1.5, negative.expand_as(y))
    torch.testing.assert_close(away, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(away, guided(denoiser, y, 2.0)(x, 1.5), atol=1e-3)
