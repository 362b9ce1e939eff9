"""Distillation by pieces of the path: a student steps in one look where its teacher takes several.

The student's noise levels cut the path from noise to image into pieces, one for each evaluation.
Training images that are noised to the start of a piece have the distribution of the path there, so
no path is followed from its top. The teacher solves the piece, and the student's D learns the value
with which one Euler step (Karras 2022, Algorithm 1) lands where the teacher does. Sampling is then
Euler's at the student's levels.

The method is progressive distillation (Salimans & Ho 2022, Algorithm 2) in one stage: each target
is the teacher's own, never an earlier student's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.noise_levels import descending, noise_levels
from models.samplers import Denoise, sample_dpmpp_2m


@dataclass(frozen=True)
class Pieces:
    """The pieces of a student's path, and the levels at which its teacher solves them.

    sigmas: the student's noise levels, descending; each begins a piece, and the last piece ends at
        0.
    teacher_steps: evaluations of the teacher in each piece.
    sigma_min: the teacher's last level before 0.

    Raises ValueError if the levels are not in order.
    """

    sigmas: tuple[float, ...]
    teacher_steps: int
    sigma_min: float = 0.02

    def __post_init__(self) -> None:
        """Check the levels."""
        descending((*self.sigmas, self.sigma_min))

    def teacher_levels(self, piece: int) -> list[float]:
        """Return the teacher_steps + 1 levels of a piece, spaced as EDM's (Karras 2022, eq. 5)."""
        start, steps = self.sigmas[piece], self.teacher_steps
        if piece + 1 < len(self.sigmas):
            return noise_levels("edm", steps + 1, self.sigmas[piece + 1], start, rho=7.0)
        if steps == 1:
            return [start, 0.0]
        return [*noise_levels("edm", steps, self.sigma_min, start, rho=7.0), 0.0]


@torch.no_grad()
def euler_target(teacher: Denoise, noised: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the D (N, C, H, W) with which an Euler step lands where the teacher's solver does.

    noised: (N, C, H, W), images noised by levels[0]. levels: those of the teacher, from the start
    of a piece to its end.
    """
    start, end = levels[0], levels[-1]
    landed = sample_dpmpp_2m(teacher, noised, levels)
    return noised - start * (landed - noised) / (end - start)


def pseudo_huber(error: Tensor, scale: float) -> Tensor:
    """Return sqrt(|e|² + c²) - c of each image's root mean square |e| -> (N,).

    It is quadratic below c = `scale` and linear above (Charbonnier 1997), so that single large
    errors do not rule a batch.
    """
    square = error.square().flatten(1).mean(dim=1)
    return (square + scale**2).sqrt() - scale


def distillation_loss(
    student: nn.Module,
    teach: Callable[[Tensor | None], Denoise],
    clean: Tensor,
    cond: Tensor | None,
    noise: Tensor,
    pieces: Pieces,
    *,
    scale: float,
    first: int = 0,
) -> Tensor:
    """Compute the loss of each image -> (N,) float32.

    student: an EDMPrecond, possibly wrapped for several processes.
    teach: binds conditions (M, cond_width), or None, to the guided teacher.
    clean: (N, C, H, W) scaled latents. cond: (N, cond_width), or None. noise: like clean, unit
        normal.
    scale: see `pseudo_huber`.
    first: row of the global batch with which `clean` begins. Rows take the pieces in turn.
    """
    count = len(pieces.sigmas)
    turn = (first + torch.arange(len(clean), device=clean.device)) % count
    sigma = clean.new_tensor(pieces.sigmas)[turn]
    noised = clean + sigma[:, None, None, None] * noise
    target = torch.empty_like(noised)
    for piece in range(min(count, len(clean))):
        rows = slice(piece, None, count)
        levels = pieces.teacher_levels((first + piece) % count)
        teacher = teach(None if cond is None else cond[rows])
        target[rows] = euler_target(teacher, noised[rows], levels)
    return pseudo_huber(student(noised, sigma, cond) - target, scale)
