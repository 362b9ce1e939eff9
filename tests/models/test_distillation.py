"""The loss of a student, with a teacher whose path is known in closed form."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.distillation import Segments, distillation_loss, euler_target, pseudo_huber
from models.samplers import SamplerSettings, sample

DEVIATION = 0.5  # of the images, which are normal
SIGMAS = (80.0, 5.0, 1.0)


def denoise(x: Tensor, sigma: float) -> Tensor:
    """Return the ideal denoising of images ~ N(0, DEVIATION²)."""
    return x * DEVIATION**2 / (DEVIATION**2 + sigma**2)


def teach(cond: Tensor | None) -> Callable[[Tensor, float], Tensor]:
    return denoise


def exact_factor(start: float, end: float) -> float:
    """Return D(x)/x with which one Euler step follows the exact path x ~ sqrt(sigma² + s²)."""
    ratio = math.sqrt((end**2 + DEVIATION**2) / (start**2 + DEVIATION**2))
    return 1 - start * (ratio - 1) / (end - start)


class Student(nn.Module):
    """A linear student: a factor for each of its noise levels."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors))

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        """Scale x (N, C, H, W) by the factor of its sigma."""
        own = torch.tensor(SIGMAS)
        factor = (sigma[:, None] == own).float() @ self.factors
        return x * factor[:, None, None, None]


def exact_factors() -> list[float]:
    return [exact_factor(a, b) for a, b in zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True)]


def random_pair(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = DEVIATION * torch.randn(count, 2, 4, 4, generator=generator)
    return clean, torch.randn(clean.shape, generator=generator)


def loss_of(student: nn.Module, steps: int, count: int = 12, **options) -> Tensor:
    clean, noise = random_pair(count)
    segments = Segments(SIGMAS, steps, sigma_min=0.001)
    return distillation_loss(student, teach, clean, None, noise, segments, scale=1e-4, **options)


def test_the_loss_of_the_exact_student_vanishes_as_the_teacher_takes_more_steps():
    student = Student(exact_factors())
    coarse, fine = (loss_of(student, steps).mean().item() for steps in (8, 64))
    wrong = loss_of(Student([1.0, 1.0, 1.0]), 64).mean().item()
    assert fine < coarse / 20
    assert fine < 1e-4 * wrong


def test_a_linear_student_learns_the_exact_factors_from_the_gradients_alone():
    student = Student([0.0, 0.0, 0.0])
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 400)
        optimizer.zero_grad()
        loss_of(student, 64).mean().backward()
        optimizer.step()
    assert student.factors.tolist() == pytest.approx(exact_factors(), abs=2e-3)


def test_euler_steps_of_the_exact_student_end_where_the_path_ends():
    own = torch.tensor(SIGMAS)
    student, latents = Student(exact_factors()), random_pair(3)[1]
    images = sample(
        lambda x, sigma: student(x, own[own == sigma].expand(len(x))).detach(),
        latents,
        SamplerSettings("euler", len(SIGMAS), sigmas=SIGMAS),
    )
    exact = latents * SIGMAS[0] * DEVIATION / math.sqrt(SIGMAS[0] ** 2 + DEVIATION**2)
    torch.testing.assert_close(images.float(), exact, rtol=1e-5, atol=1e-5)


def test_the_target_of_the_last_piece_is_where_the_teacher_lands():
    segments = Segments((5.0,), 6)
    path = segments.segment_sigmas(0)
    noised = 5 * random_pair(2)[1]
    ended = sample(denoise, noised / 5, SamplerSettings("dpmpp_2m", 6, 0.02, 5.0))
    torch.testing.assert_close(euler_target(denoise, noised, path), ended.float())


@pytest.mark.parametrize("sigmas", [(80.0,), (80.0, 1.0), (5.0,), SIGMAS])
def test_a_student_as_teacher_lands_where_its_own_sampler_does(sigmas):
    segments, x = Segments(sigmas, 1, teacher_sigmas=SIGMAS), sigmas[0] * random_pair(3)[1]
    values = tuple(value for value in SIGMAS if value <= sigmas[0])
    ended = sample(denoise, x / sigmas[0], SamplerSettings("euler", len(values), sigmas=values))
    for segment, start in enumerate(sigmas):
        end = (*sigmas, 0.0)[segment + 1]
        d = euler_target(denoise, x, segments.segment_sigmas(segment), segments.solve)
        x = x + (end - start) * (x - d) / start
    torch.testing.assert_close(x, ended.float(), rtol=1e-4, atol=1e-4)


def test_a_process_gives_its_rows_the_pieces_that_they_have_in_the_whole_batch():
    student = Student([0.3, 0.2, 0.1])
    clean, noise = random_pair(8)
    segments = Segments(SIGMAS, 2)
    whole = distillation_loss(student, teach, clean, None, noise, segments, scale=0.1)
    share = distillation_loss(
        student, teach, clean[5:], None, noise[5:], segments, scale=0.1, rank_offset=5
    )
    assert torch.equal(whole[5:], share)


def test_each_image_is_taught_with_its_own_condition():
    clean, noise = random_pair(7)
    cond = torch.arange(7.0)[:, None]
    asked: list[Tensor] = []

    def teach_recorded(rows: Tensor | None) -> Callable[[Tensor, float], Tensor]:
        assert rows is not None
        asked.append(rows)
        return lambda x, sigma: rows[:, :, None, None].expand(x.shape)

    class Echo(nn.Module):
        def forward(self, x, sigma, cond):
            return cond[:, :, None, None].expand(x.shape)

    segments = Segments(SIGMAS, 3)
    loss = distillation_loss(Echo(), teach_recorded, clean, cond, noise, segments, scale=0.1)
    assert sorted(torch.cat(asked).flatten().tolist()) == cond.flatten().tolist()
    torch.testing.assert_close(loss, torch.zeros(7), atol=1e-4, rtol=0)


def test_no_gradient_reaches_the_teacher():
    teacher = nn.Parameter(torch.tensor(0.5))
    clean, noise = random_pair(3)
    student = Student([0.3, 0.2, 0.1])
    distillation_loss(
        student, lambda cond: lambda x, sigma: teacher * x, clean, None, noise,
        Segments(SIGMAS, 2), scale=0.1,
    ).mean().backward()  # fmt: skip
    assert teacher.grad is None
    assert student.factors.grad.abs().min() > 0


def test_the_loss_is_quadratic_for_small_errors_and_linear_for_large_ones():
    errors = torch.tensor([0.001, 0.002, 10.0, 20.0])[:, None, None, None].expand(4, 1, 2, 2)
    small, twice_small, large, twice_large = pseudo_huber(errors, 0.1).tolist()
    assert twice_small == pytest.approx(4 * small, rel=0.01)
    assert twice_large == pytest.approx(2 * large, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_teacher_levels_run_from_each_level_of_the_student_to_the_next_and_to_0(steps):
    segments = Segments(SIGMAS, steps)
    ends = [segments.segment_sigmas(segment) for segment in range(3)]
    assert [path[0] for path in ends] == pytest.approx(SIGMAS)
    assert [path[-1] for path in ends] == pytest.approx([*SIGMAS[1:], 0.0])
    assert all(len(path) == steps + 1 for path in ends)
    assert all(a > b for path in ends for a, b in zip(path, path[1:], strict=False))


def test_levels_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 5, 0\.02\] should be"):
        Segments((1.0, 5.0), 4)


def test_a_piece_that_begins_at_no_level_of_a_student_is_refused():
    with pytest.raises(ValueError, match=r"\[80\.0, 5\.0, 1\.0\], and 2 is none of them"):
        Segments((80.0, 2.0), 4, teacher_sigmas=SIGMAS)
