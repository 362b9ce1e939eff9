"""Angles, the modality gap and mixtures of embeddings."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.batch_random import BatchRandom
from models.geometry import (
    angle_deg,
    gaussian_for_angle,
    mix,
    modality_gap,
    scale_for_angle,
)
from models.perturbation import Perturbation, perturb


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_circle(*degrees: float) -> torch.Tensor:
    """Return unit vectors (N, 3) at these angles in a plane."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 30.0, 90.0, 179.99999, 180.0])
def test_angles_are_exact_also_where_the_cosine_is_flat(angle):
    found = angle_deg(3 * on_circle(0), 0.1 * on_circle(angle))
    assert found.item() == pytest.approx(angle, rel=1e-8, abs=1e-12)


def test_two_embeddings_are_mixed_by_spherical_interpolation():
    """Equal steps of the weight are equal angles."""
    weights = torch.tensor([[1 - t, t] for t in (0, 0.25, 0.5, 1)])
    torch.testing.assert_close(mix(on_circle(10, 90), weights), on_circle(10, 30, 50, 90))


def test_the_mixture_of_many_is_where_the_weighted_tangents_cancel():
    y = F.normalize(torch.randn(4, 8, generator=seeded()).double().abs(), dim=1)
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    (q,) = mix(y, weights)
    angle = angle_deg(q.expand(4, -1), y).deg2rad()
    tangents = F.normalize(y - (y @ q)[:, None] * q, dim=1) * angle[:, None]
    assert (weights @ tangents).norm() < 1e-9
    assert q.norm().item() == pytest.approx(1)


def test_only_the_ratio_of_weights_counts():
    y = F.normalize(torch.randn(3, 8, generator=seeded()), dim=1)
    weights = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(mix(y, weights), mix(y, 10 * weights))


def test_lengths_are_averaged():
    y = torch.tensor([[2.0, 0.0], [0.0, 6.0]])
    assert mix(y, torch.tensor([[0.25, 0.75]])).norm().item() == pytest.approx(5)


def test_with_negative_weights_embeddings_are_added_and_subtracted():
    """king - man + woman; rows of the call without negative weights are still averaged."""
    y = F.normalize(torch.randn(3, 16, generator=seeded()), dim=1)
    mixed = mix(y, torch.tensor([[1.0, -1.0, 1.0], [1.0, 0.0, 1.0]]))
    torch.testing.assert_close(mixed[0], F.normalize(y[0] - y[1] + y[2], dim=0))
    torch.testing.assert_close(mixed[1:], mix(y[[0, 2]], torch.tensor([[0.5, 0.5]])))


@pytest.mark.parametrize(
    ("degrees", "weights", "message"),
    [
        ((0, 60), (1.0, -1.0), "sum to more than zero"),
        ((0, 60), (math.nan, 1.0), "sum to more than zero"),
        ((0, 180), (0.5, 0.5), "cancel out"),
    ],
)
def test_mixtures_that_do_not_exist_are_refused(degrees, weights, message):
    with pytest.raises(ValueError, match=message):
        mix(on_circle(*degrees), torch.tensor([weights]))


def test_the_gap_is_measured_between_the_right_pairs():
    """All images share one direction and all texts another; each pair shares a third one."""
    n, dim = 50, 128
    own = F.pad(torch.eye(n), (2, dim - n - 2))
    images, texts = own.clone(), own.clone()
    images[:, 0], texts[:, 1] = 1, 1
    gap = modality_gap(images, 5 * texts, seeded())
    for cosines, expected in ((gap.matching, 0.5), (gap.other, 0), (gap.images, 0.5)):
        torch.testing.assert_close(cosines, torch.full_like(cosines, expected))
    assert len(gap.texts) == 10 * n
    assert gap.texts.tolist() == pytest.approx([0.5] * 10 * n)
    assert gap.distance == pytest.approx(1)  # two means of 1/sqrt(2), at a right angle
    assert gap.angle.tolist() == pytest.approx([60] * n)


def test_two_samples_are_enough_for_a_gap():
    gap = modality_gap(torch.eye(2), torch.eye(2), seeded())
    assert gap.other.tolist() == [0, 0]


def test_a_gap_needs_pairs():
    with pytest.raises(ValueError, match="as many images as texts"):
        modality_gap(torch.eye(3), torch.eye(3)[:2], seeded())


def test_the_suggested_fixed_level_turns_by_the_angle():
    y = torch.randn(4000, 512, generator=seeded())
    perturbed = perturb(y, Perturbation("fixed", scale_for_angle(70)), BatchRandom(seeded(1)))
    assert angle_deg(y, perturbed).median().item() == pytest.approx(70, abs=0.2)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_suggested_gaussian_passes_the_angle_with_the_share(share):
    y = torch.randn(10000, 512, generator=seeded())
    perturbed = perturb(
        y, Perturbation("gaussian", gaussian_for_angle(70, share)), BatchRandom(seeded(1))
    )
    above = (angle_deg(y, perturbed) > 70).double().mean().item()
    assert above == pytest.approx(share, abs=0.02)


def test_no_perturbation_turns_by_a_right_angle():
    with pytest.raises(ValueError, match="no perturbation"):
        scale_for_angle(90)
