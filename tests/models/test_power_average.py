"""Power-function averages: their widths, their updates, and other widths made from two of them."""

import numpy as np
import pytest

from models.power_average import Snapshot, exponent, power_decay, reconstruction

STEPS = 400
WIDTHS = (0.05, 0.10)


def tracked(values: np.ndarray, width: float) -> np.ndarray:
    """Average values (T, D) by the updates of a training; return the average after each step."""
    average, after = np.full(values.shape[1], np.nan), []
    for step, value in enumerate(values, 1):
        decay = power_decay(step, width)
        average = value if decay == 0 else decay * average + (1 - decay) * value
        after.append(average)
    return np.array(after)


def weights_at_the_end(width: float, steps: int = STEPS) -> np.ndarray:
    """Return the weight of each step: the integral of the power over it."""
    ends = (np.arange(steps + 1) / steps) ** (exponent(width) + 1)
    return np.diff(ends)


def path(seed: int = 0) -> np.ndarray:
    """Return weights of a training, (T, 5): random walks, and in column 0 one that never moves."""
    values = np.random.default_rng(seed).standard_normal((STEPS, 5)).cumsum(axis=0)
    values[:, 0] = 3.0
    return values


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_the_weighting_has_the_stated_width(width):
    g = exponent(width)
    assert ((g + 1) / (g + 3)) ** 0.5 / (g + 2) == pytest.approx(width)
    steps, weights = np.arange(1, 20_001), weights_at_the_end(width, 20_000)
    mean = weights @ steps
    deviation = (weights @ (steps - mean) ** 2) ** 0.5
    assert deviation / 20_000 == pytest.approx(width, rel=1e-3)


def test_the_published_widths_have_the_published_exponents():
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.02, 0.1, 0.28])
def test_updates_weight_each_step_by_a_power_of_the_time(width):
    values = path()
    np.testing.assert_allclose(tracked(values, width)[-1], weights_at_the_end(width) @ values)
    np.testing.assert_array_equal(tracked(values, width)[0], values[0])


@pytest.mark.parametrize("width", [0.04, 0.07, 0.13, 0.2])
def test_another_width_is_made_from_two_as_it_would_have_been_tracked(width):
    values, every = path(), STEPS // 16
    moments = range(every, STEPS + 1, every)
    snapshots = [Snapshot(kept, moment) for moment in moments for kept in WIDTHS]
    factors, error = reconstruction(snapshots, Snapshot(width, STEPS))
    averages = {kept: tracked(values, kept) for kept in WIDTHS}
    made = sum(f * averages[s.width][s.steps - 1] for f, s in zip(factors, snapshots, strict=True))
    wanted = tracked(values, width)[-1]
    nearest = min((averages[kept][-1] for kept in WIDTHS), key=lambda a: np.abs(a - wanted).max())
    assert np.abs(made - wanted).max() < 0.15 * np.abs(nearest - wanted).max()
    assert made[0] == pytest.approx(3.0, abs=1e-6)  # a weight that never moved stays
    weighting = sum(
        f * np.pad(weights_at_the_end(s.width, s.steps), (0, STEPS - s.steps))
        for f, s in zip(factors, snapshots, strict=True)
    )
    difference = np.linalg.norm(weighting - weights_at_the_end(width))
    assert error == pytest.approx(
        difference / np.linalg.norm(weights_at_the_end(width)), rel=0.1, abs=2e-4
    )
    assert error < 0.05


def test_an_average_that_was_kept_is_taken_as_it_is():
    snapshots = [Snapshot(width, moment) for moment in (100, 200, 400) for width in WIDTHS]
    factors, error = reconstruction(snapshots, Snapshot(0.05, 400))
    assert factors == pytest.approx([0, 0, 0, 0, 1, 0], abs=1e-6) and error < 1e-6


def test_the_error_says_that_few_snapshots_do_not_reach_a_width():
    last = [Snapshot(width, STEPS) for width in WIDTHS]
    assert reconstruction(last, Snapshot(0.25, STEPS))[1] > 0.5
