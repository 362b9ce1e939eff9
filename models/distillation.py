"""Distillation by segments of the path: a student takes one step where its teacher takes several.

The student's sigmas cut the path from noise to image into segments, one for each evaluation.
Training images that are noised to the start of a segment have the distribution of the path there,
so no path is followed from its top. The teacher solves the segment. The student's D learns the
value with which one Euler step (Karras 2022, Algorithm 1) lands where the teacher does. Sampling is
then Euler's method at the student's sigmas.

The method is progressive distillation (Salimans & Ho 2022, Algorithm 2). Its first stage has any
denoiser as teacher. A further stage has a student as teacher, which costs a small part of the
evaluations: it takes its own Euler steps, and its guidance is learned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.noise_levels import descending, noise_levels
from models.samplers import Denoise, sample_dpmpp_2m

Solve = Callable[[Denoise, Tensor, Sequence[float]], Tensor]  # follows the path along sigmas


@dataclass(frozen=True)
class Segments:
    """The segments of a student's path, and the sigmas at which its teacher solves them.

    sigmas: the student's sigmas, descending; each begins a segment. The last ends at 0.
    teacher_steps: evaluations of the teacher in each segment.
    sigma_min: the teacher's last sigma before 0.
    teacher_sigmas: sigmas of a teacher that is a student itself; they replace teacher_steps and
        sigma_min. None = it denoises at any sigma.

    Raises ValueError if the sigmas are not in order, or if a segment begins where the teacher has
    none.
    """

    sigmas: tuple[float, ...]
    teacher_steps: int
    sigma_min: float = 0.02
    teacher_sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the sigmas."""
        if self.teacher_sigmas is None:
            descending((*self.sigmas, self.sigma_min))
            return
        descending(self.sigmas)
        if missing := set(self.sigmas) - set(self.teacher_sigmas):
            raise ValueError(
                f"the teacher is a student of the noise levels {list(self.teacher_sigmas)}, and "
                f"{max(missing):g} is none of them"
            )

    @property
    def solve(self) -> Solve:
        """Solver of the teacher."""
        return sample_dpmpp_2m if self.teacher_sigmas is None else euler_steps

    def segment_sigmas(self, segment: int) -> list[float]:
        """Return the sigmas of the teacher in a segment, with both ends.

        They are those of a student, or else teacher_steps + 1 that are spaced as EDM's (Karras
        2022, equation 5).
        """
        start, steps = self.sigmas[segment], self.teacher_steps
        if self.teacher_sigmas is not None:
            end = (*self.sigmas, 0.0)[segment + 1]
            return [*(s for s in self.teacher_sigmas if start >= s > end), end]
        if segment + 1 < len(self.sigmas):
            return noise_levels("edm", steps + 1, self.sigmas[segment + 1], start, rho=7.0)
        if steps == 1:
            return [start, 0.0]
        return [*noise_levels("edm", steps, self.sigma_min, start, rho=7.0), 0.0]


def euler_steps(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Take an Euler step from each sigma to the next (Karras 2022, Algorithm 1) -> (N, C, H, W)."""
    for start, end in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (end - start) * (x - denoise(x, start)) / start
    return x


@torch.no_grad()
def euler_target(
    teacher: Denoise, noised: Tensor, sigmas: Sequence[float], solve: Solve = sample_dpmpp_2m
) -> Tensor:
    """Return the D (N, C, H, W) with which an Euler step lands where the teacher's solver does.

    noised: (N, C, H, W), images noised by sigmas[0]. sigmas: those of the teacher, from the start
    of a segment to its end.
    """
    start, end = sigmas[0], sigmas[-1]
    landed = solve(teacher, noised, sigmas)
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
    segments: Segments,
    *,
    scale: float,
    rank_offset: int = 0,
) -> Tensor:
    """Compute the loss of each image -> (N,) float32.

    student: an EDMPrecond, possibly wrapped for several processes.
    teach: binds conditions (M, cond_width), or None, to the guided teacher.
    clean: (N, C, H, W) scaled latents. cond: (N, cond_width), or None. noise: like clean, unit
        normal.
    scale: see `pseudo_huber`.
    rank_offset: row of the global batch with which `clean` begins. Rows take one segment after
        another.
    """
    count = len(segments.sigmas)
    segment_of_row = (rank_offset + torch.arange(len(clean), device=clean.device)) % count
    # Filled on the device: a copy from the host would wait for it.
    sigma = torch.stack([clean.new_full((), start) for start in segments.sigmas])[segment_of_row]
    noised = clean + sigma[:, None, None, None] * noise
    target = torch.empty_like(noised)
    for segment in range(min(count, len(clean))):
        rows = slice(segment, None, count)
        sigmas = segments.segment_sigmas((rank_offset + segment) % count)
        teacher = teach(None if cond is None else cond[rows])
        target[rows] = euler_target(teacher, noised[rows], sigmas, segments.solve)
    return pseudo_huber(student(noised, sigma, cond) - target, scale)
