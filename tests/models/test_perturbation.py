"""Perturbation of the condition: embeddings turned by a random angle."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.batch_random import BatchRandom
from models.perturbation import LearnedScale, Perturbation, perturb, perturb_by

pytestmark = pytest.mark.bits  # of `make test-machines`


def angles_deg(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """Return the angles (N,) in degrees between embeddings (N, D) and unit vectors (N, D)."""
    cosine = (F.normalize(before, dim=1) * after).sum(dim=1).clamp(-1, 1)
    return torch.rad2deg(cosine.acos()).numpy()


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator with a seed."""
    return torch.Generator().manual_seed(seed)


def seeded_random(seed: int = 0) -> BatchRandom:
    """Return random numbers for one process with a seed."""
    return BatchRandom(seeded(seed))


def test_processes_of_one_batch_see_the_numbers_of_one_process():
    y = torch.randn(6, 8)
    for kind in ("gaussian", "uniform", "truncated"):
        alone = perturb(y, Perturbation(kind, 0.8), seeded_random())
        shares = [
            perturb(y[first : first + 2], Perturbation(kind, 0.8), BatchRandom(seeded(), first, 6))
            for first in (0, 2, 4)
        ]
        torch.testing.assert_close(torch.cat(shares), alone, rtol=0, atol=1e-6)


def test_given_numbers_meet_the_published_formula(golden):
    data = {
        key: torch.from_numpy(value) for key, value in np.load(golden / "perturbation.npz").items()
    }
    ours = perturb_by(data["embedding"].double(), data["noise"], data["level"].view(-1, 1))
    torch.testing.assert_close(ours, data["perturbed"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "scale"),
    [
        ("gaussian_1p2", "gaussian", 1.2),
        ("gaussian_1p5", "gaussian", 1.5),
        ("fixed_0p8", "fixed", 0.8),
        ("uniform_0p8", "uniform", 0.8),
    ],
)
def test_angles_are_distributed_as_published(golden, name, kind, scale):
    expected = np.load(golden / "perturbation.npz")[f"angle_deg_mean_std_p5_p50_p95/{name}"]
    y = torch.randn(5000, 512, generator=seeded())
    angle = angles_deg(y, perturb(y, Perturbation(kind, scale), seeded_random(1)))
    ours = [angle.mean(), angle.std(), *np.percentile(angle, (5, 50, 95))]
    assert ours == pytest.approx(expected.tolist(), abs=1.2)


@pytest.mark.parametrize("kind", ["fixed", "gaussian", "uniform", "truncated"])
def test_result_has_unit_length_whatever_that_of_the_embedding(kind):
    y = 7 * torch.randn(50, 32)
    length = perturb(y, Perturbation(kind, 0.8)).norm(dim=1)
    torch.testing.assert_close(length, torch.ones(50))


def test_truncated_levels_stay_inside_the_interval():
    """With the noise at a right angle, the tangent of the angle is the scale."""
    y = torch.tensor([[1.0, 0.0]]).repeat(5000, 1)
    noise = torch.tensor([[0.0, 1.0]]).repeat(5000, 1)
    bounded = Perturbation("truncated", 1.0, mean=0.5, trunc_a=0.2, trunc_b=0.6)
    x = perturb_by(y, noise, bounded.random_scale(y, seeded_random()))
    scale = x[:, 1] / x[:, 0]
    assert 0.2 - 1e-5 <= scale.min() < 0.21
    assert 0.59 < scale.max() <= 0.6 + 1e-5


def test_same_generator_turns_the_same_way():
    y = torch.randn(4, 16)
    first, second = (perturb(y, Perturbation("gaussian", 1.2), seeded_random(5)) for _ in range(2))
    assert torch.equal(first, second)


def test_learned_level_is_a_vector_that_is_not_negative_and_can_be_trained():
    torch.manual_seed(0)
    y = F.normalize(torch.randn(4, 16), dim=1)
    learned = LearnedScale(16)
    scale = learned(y)
    assert scale.shape == (4, 16)
    assert (scale >= 0).all()
    perturb_by(y, torch.randn(4, 16), scale)[:, 0].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in learned.parameters())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gausian", {}, "gausian.*gaussian"),
        ("learnable", {}, "LearnedScale"),
        ("truncated", {"trunc_a": 1.0, "trunc_b": 0.0}, "trunc_a < trunc_b"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        perturb(torch.randn(2, 4), Perturbation(kind, 1.0, **options))
