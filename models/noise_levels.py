"""Formulations of diffusion sampling (Karras et al. 2022, table 1): noise levels, sigma(t), s(t).

All values are Python floats in double precision, as there are only a few dozen steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from models.choices import Discretization, NoiseSchedule, SignalScaling

VP_BETA_D, VP_BETA_MIN, VP_EPSILON = 19.1, 0.1, 1e-3  # EDM's code, ablation_sampler
IDDPM_C1, IDDPM_C2, IDDPM_M = 0.001, 0.008, 1000  # Nichol & Dhariwal 2021

Function = Callable[[float], float]


@dataclass(frozen=True)
class Formulation:
    """Time steps, descending to a final 0, and the functions of time that a solver uses."""

    t_steps: list[float]
    sigma: Function  # noise level at t
    d_sigma: Function  # its derivative
    t_of_sigma: Function  # its inverse
    s: Function  # scale of the signal at t
    d_s: Function  # its derivative


def formulation(
    discretization: Discretization,
    schedule: NoiseSchedule,
    scaling: SignalScaling,
    num_steps: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    sigmas: Sequence[float] | None = None,
) -> Formulation:
    """Combine the noise levels of one formulation with sigma(t) of another and s(t) of a third.

    sigma_min, sigma_max: their range; None = the discretization's own.
    rho: density of the sigmas of 'edm' near sigma_min (Karras 2022, equation 5).
    sigmas: the values themselves, descending; None = those of the discretization.
    Raises ValueError if the range is empty.
    """
    default_min, default_max = default_range(discretization)
    sigma_min = default_min if sigma_min is None else sigma_min
    sigma_max = default_max if sigma_max is None else sigma_max
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"noise levels need 0 < sigma_min < sigma_max: {sigma_min}, {sigma_max}")

    sigma, d_sigma, t_of_sigma = time_functions(schedule, sigma_min, sigma_max)
    if scaling == "vp":

        def s(t: float) -> float:
            return 1 / math.sqrt(1 + sigma(t) ** 2)

        def d_s(t: float) -> float:
            return -sigma(t) * d_sigma(t) * s(t) ** 3
    else:

        def s(t: float) -> float:
            return 1.0

        def d_s(t: float) -> float:
            return 0.0

    values = sigmas or noise_levels(discretization, num_steps, sigma_min, sigma_max, rho)
    t_steps = [t_of_sigma(value) for value in values] + [0.0]
    return Formulation(t_steps, sigma, d_sigma, t_of_sigma, s, d_s)


def descending(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    """Return the noise levels; raise ValueError unless each is above 0 and below the last one."""
    if not sigmas or sigmas[-1] <= 0 or any(a <= b for a, b in pairwise(sigmas)):
        listed = ", ".join(f"{sigma:g}" for sigma in sigmas)
        raise ValueError(
            f"[{listed}] should be one or more noise levels above 0, the highest first; the step "
            "to 0 follows by itself"
        )
    return sigmas


def default_range(discretization: Discretization) -> tuple[float, float]:
    """Return the smallest and the largest noise level of a discretization."""
    if discretization == "vp":
        return vp_sigma(VP_EPSILON, VP_BETA_D, VP_BETA_MIN), vp_sigma(1.0, VP_BETA_D, VP_BETA_MIN)
    return {"ve": (0.02, 100.0), "iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}[discretization]


def noise_levels(
    discretization: Discretization, num_steps: int, sigma_min: float, sigma_max: float, rho: float
) -> list[float]:
    """Return `num_steps` noise levels from sigma_max down to sigma_min.

    Raises ValueError if 'iddpm' has none in that range.
    """
    ramp = [i / max(num_steps - 1, 1) for i in range(num_steps)]
    if discretization == "vp":
        betas = vp_betas(sigma_min, sigma_max)
        return [vp_sigma(1 + u * (VP_EPSILON - 1), *betas) for u in ramp]
    if discretization == "ve":
        return [sigma_max * (sigma_min / sigma_max) ** u for u in ramp]
    if discretization == "iddpm":
        values = [s for s in iddpm_sigmas() if sigma_min <= s <= sigma_max]
        if not values:
            raise ValueError(f"iddpm has no noise level from {sigma_min} to {sigma_max}")
        return [values[round((len(values) - 1) * u)] for u in ramp]
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)  # equation 5
    return [(high + u * (low - high)) ** rho for u in ramp]


def time_functions(
    schedule: NoiseSchedule, sigma_min: float, sigma_max: float
) -> tuple[Function, Function, Function]:
    """Return sigma(t), its derivative and its inverse."""
    if schedule == "linear":
        return lambda t: t, lambda t: 1.0, lambda sigma: sigma
    if schedule == "ve":
        return math.sqrt, lambda t: 0.5 / math.sqrt(t), lambda sigma: sigma**2
    beta_d, beta_min = vp_betas(sigma_min, sigma_max)

    def d_sigma(t: float) -> float:
        sigma = vp_sigma(t, beta_d, beta_min)
        return 0.5 * (beta_min + beta_d * t) * (sigma + 1 / sigma)

    def t_of_sigma(sigma: float) -> float:
        return (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(sigma**2)) - beta_min) / beta_d

    return lambda t: vp_sigma(t, beta_d, beta_min), d_sigma, t_of_sigma


def vp_sigma(t: float, beta_d: float, beta_min: float) -> float:
    """Return the noise level of the variance-preserving process at t."""
    return math.sqrt(math.expm1(0.5 * beta_d * t**2 + beta_min * t))


def vp_betas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """Return beta_d and beta_min with sigma(VP_EPSILON) = sigma_min and sigma(1) = sigma_max."""
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (low / VP_EPSILON - high) / (VP_EPSILON - 1)
    return beta_d, high - 0.5 * beta_d


def iddpm_sigmas() -> list[float]:
    """Return all noise levels of improved DDPM (Nichol & Dhariwal 2021), descending."""

    def alpha_bar(j: int) -> float:
        return math.sin(0.5 * math.pi * j / IDDPM_M / (IDDPM_C2 + 1)) ** 2

    sigmas = [0.0]
    for j in range(IDDPM_M, 0, -1):
        ratio = max(alpha_bar(j - 1) / alpha_bar(j), IDDPM_C1)
        sigmas.append(math.sqrt((sigmas[-1] ** 2 + 1) / ratio - 1))
    return sigmas[:0:-1]
