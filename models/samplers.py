"""Samplers: from unit normal noise to images, given a denoiser D(x, sigma).

A denoiser is a function of noised images (N, C, H, W) float32 and one noise level; it returns clean
images (N, C, H, W). `guided` binds condition and guidance to a denoiser once, so that no sampler
handles them. Noise levels are Python floats: exact, and read without waiting for a GPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from models.choices import SEED_LIMIT, Discretization, NoiseSchedule, SignalScaling, Solver
from models.noise_levels import Formulation, descending, formulation

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) -> clean images
Randn = Callable[[Tensor], Tensor]  # x -> unit normal noise of its shape


@dataclass(frozen=True)
class SamplerSettings:
    """Sampler settings.

    solver: 'heun' (Karras 2022, Algorithm 2), 'euler', or 'dpmpp_2m' (deterministic).
    num_steps: number of noise levels.
    sigma_min, sigma_max: their range; None = the discretization's own (EDM: 0.002 to 80).
    rho: density of the sigmas of 'edm' near sigma_min (Karras 2022, equation 5).
    S_churn, S_min, S_max, S_noise: noise added between steps (Karras 2022, Algorithm 2).
    discretization, schedule, scaling: time steps, sigma(t) and s(t) of another formulation
        (Karras 2022, table 1: the ablation sampler); None = EDM's: 'edm', 'linear', 'none'.
    sigmas: the num_steps values themselves, descending; a step to 0 follows the last one. They
        replace sigma_min, sigma_max and rho. None = those of the discretization.

    Raises ValueError if a value is unknown or values do not go together.
    """

    solver: Solver = "heun"
    num_steps: int = 40
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    discretization: Discretization | None = None
    schedule: NoiseSchedule | None = None
    scaling: SignalScaling | None = None
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in (
            ("solver", get_args(Solver)),
            ("discretization", (None, *get_args(Discretization))),
            ("schedule", (None, *get_args(NoiseSchedule))),
            ("scaling", (None, *get_args(SignalScaling))),
        ):
            if (value := getattr(self, name)) not in allowed:
                known = ", ".join(choice for choice in allowed if choice)
                raise ValueError(f"{name} '{value}' is not one of {known}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; a sampler needs at least 1")
        if self.solver == "dpmpp_2m" and (self.S_churn or self.schedule or self.scaling):
            raise ValueError("solver 'dpmpp_2m' takes no S_churn, schedule or scaling")
        if self.sigmas is not None:
            self._check_sigmas(self.sigmas)
        self.formulation()  # raises now, not during sampling, if their range is empty

    def _check_sigmas(self, sigmas: tuple[float, ...]) -> None:
        """Raise ValueError unless the explicit sigmas are in order and fit the other settings."""
        try:
            descending(sigmas)
        except ValueError as fault:
            raise ValueError(f"sigmas: {fault}") from fault
        if self.discretization or self.schedule or self.scaling:
            raise ValueError("sigmas go with no discretization, schedule or scaling")
        if self.num_steps != len(sigmas):
            raise ValueError(
                f"num_steps is {self.num_steps}, but sigmas lists {len(sigmas)} noise levels; "
                "leave num_steps out, or set sampling.sigmas=null"
            )

    def formulation(self) -> Formulation:
        """Return the time steps, and the functions of time that a solver uses."""
        return formulation(
            self.discretization or "edm",
            self.schedule or "linear",
            self.scaling or "none",
            self.num_steps,
            self.sigma_min,
            self.sigma_max,
            self.rho,
            self.sigmas,
        )


def nfe(settings: SamplerSettings) -> int:
    """Return the number of network evaluations; guidance doubles the cost of each."""
    return settings.num_steps * 2 - 1 if settings.solver == "heun" else settings.num_steps


def sample(
    denoise: Denoise, latents: Tensor, settings: SamplerSettings, randn: Randn | None = None
) -> Tensor:
    """Run a solver: unit normal latents (N, C, H, W) -> images (N, C, H, W).

    The result is float64, or float32 on a device without float64.
    randn: source of the churn noise, called in every step if S_churn > 0 and never otherwise;
        None = torch.randn_like.
    """
    double = _in_double(denoise)
    x, form = latents.to(_dtype_of(latents)), settings.formulation()
    if settings.solver == "dpmpp_2m":
        sigmas = form.t_steps  # time is the noise level
        return sample_dpmpp_2m(double, x * sigmas[0], sigmas)
    return sample_ode(double, x, form, settings, randn or torch.randn_like)


def invert(denoise: Denoise, images: Tensor, settings: SamplerSettings) -> Tensor:
    """Run a solver backwards: images (N, C, H, W) -> latents (N, C, H, W) from which they come.

    `sample` with this denoiser returns the images again, up to the solver's error (Song 2020,
    "Denoising Diffusion Implicit Models", section 4.3). The latents have unit variance and are of
    the type that `sample` returns. settings: without scaling or schedule; churn is left out.
    """
    form = settings.formulation()
    rising = form.t_steps[-2::-1]  # without the final 0
    double, x = _in_double(denoise), images.to(_dtype_of(images))
    if settings.solver == "dpmpp_2m":
        return sample_dpmpp_2m(double, x, rising) / rising[-1]
    quiet, backwards = replace(settings, S_churn=0.0), replace(form, t_steps=rising)
    return sample_ode(double, x / rising[0], backwards, quiet, torch.randn_like) / rising[-1]


def last_part(settings: SamplerSettings, strength: float) -> SamplerSettings:
    """Return the sampler's last part, which begins with less noise (Meng 2021, "SDEdit").

    strength: above 0; 1 = the sampler itself. Its noise levels lie between the given ones, evenly
    in sigma^(1/rho); their number falls with it.
    """
    if strength >= 1:
        return settings
    given = [sigma ** (1 / settings.rho) for sigma in settings.formulation().t_steps[:-1]]
    last, count = len(given) - 1, math.ceil(strength * len(given))
    sigmas = []
    for k in range(count):
        place = last - strength * last * (1 - k / max(count - 1, 1))
        low = min(int(place), last - 1)
        root = given[low] + (place - low) * (given[low + 1] - given[low]) if last else given[0]
        sigmas.append(root**settings.rho)
    return replace(settings, sigmas=tuple(sigmas), num_steps=count, discretization=None)


def _dtype_of(x: Tensor) -> torch.dtype:
    """Return the type of the solver's state: Apple's GPUs have no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _in_double(denoise: Denoise) -> Denoise:
    """Return a denoiser of the solver's state, which is evaluated in float32."""
    return lambda x, sigma: denoise(x.float(), sigma).to(x.dtype)


def sample_ode(
    denoise: Denoise, latents: Tensor, form: Formulation, settings: SamplerSettings, randn: Randn
) -> Tensor:
    """Take Euler or Heun steps with churn (Karras 2022, Algorithm 2, for any sigma(t) and s(t)).

    latents: (N, C, H, W), unit normal. Returns images (N, C, H, W).
    In EDM's own formulation t is the noise level and s(t) = 1.
    """
    sigma, s = form.sigma, form.s

    def slope(x: Tensor, t: float) -> Tensor:
        """Return dx/dt (Karras 2022, Algorithm 1, line 4)."""
        denoised = denoise(x / s(t), sigma(t))
        decay = form.d_sigma(t) / sigma(t)
        return (decay + form.d_s(t) / s(t)) * x - decay * s(t) * denoised

    t_steps = form.t_steps
    x = latents * (sigma(t_steps[0]) * s(t_steps[0]))
    for t, t_next in zip(t_steps[:-1], t_steps[1:], strict=True):
        if settings.S_churn > 0:
            noise = randn(x).to(x.dtype)
            inside = settings.S_min <= sigma(t) <= settings.S_max
            gamma = min(settings.S_churn / settings.num_steps, math.sqrt(2) - 1) if inside else 0
            t, t_before = form.t_of_sigma(sigma(t) * (1 + gamma)), t
            added = math.sqrt(max(sigma(t) ** 2 - sigma(t_before) ** 2, 0))
            x = s(t) / s(t_before) * x + added * s(t) * settings.S_noise * noise
        d = slope(x, t)
        x_next = x + (t_next - t) * d
        if settings.solver == "heun" and t_next > 0:
            x_next = x + (t_next - t) * (d + slope(x_next, t_next)) / 2
        x = x_next
    return x


def sample_dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Take steps of DPM-Solver++(2M) (Lu 2022, Algorithm 2) with alpha = 1: lambda = -ln sigma.

    x: (N, C, H, W), noised by sigmas[0]. Returns images (N, C, H, W) noised by sigmas[-1].
    The first step has no predecessor and is of first order. A step to sigma = 0 is so too: it
    returns the denoised images.
    """
    previous, previous_h = None, 0.0
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        direction = denoised
        if previous is not None:
            direction = denoised + h / (2 * previous_h) * (denoised - previous)
        x = sigma_next / sigma * x - math.expm1(-h) * direction
        previous, previous_h = denoised, h
    return x


def guided(
    denoiser: Callable[[Tensor, float, Tensor | None], Tensor],
    cond: Tensor | None,
    cfg_scale: float | None = None,
    interval: tuple[float, float] | None = None,
    cond_dim: int | None = None,
) -> Denoise:
    """Bind a denoiser D(x, sigma, cond) to a condition, with classifier-free guidance.

    Returns (x, sigma) -> D_u + cfg_scale (D_c - D_u) (Ho & Salimans 2022, equation 6). D_u has the
    all-zero condition; D_u and D_c are evaluated in one batch.

    cond: (N, D), or None for a denoiser without condition.
    cfg_scale: None = D_c alone.
    interval: guide only at lo < sigma <= hi; elsewhere return D_c (Kynkäänniemi 2024, equation 5).
    cond_dim: number of columns of cond that are zero in D_u; None = all. The other columns are
        external features.
    """
    if cond is None or cfg_scale is None or cfg_scale == 1:
        return lambda x, sigma: denoiser(x, sigma, cond)
    without = cond.clone()
    without[:, :cond_dim] = 0
    both = torch.cat([without, cond])
    low, high = interval or (0.0, math.inf)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if not low < sigma <= high:
            return denoiser(x, sigma, cond)
        unconditional, conditional = denoiser(torch.cat([x, x]), sigma, both).chunk(2)
        return unconditional + cfg_scale * (conditional - unconditional)

    return denoise


class SeededNoise:
    """Random numbers with a generator for each seed, independent of batches and processes.

    They are made on the CPU, so that a seed gives equal numbers on every device.
    """

    def __init__(self, seeds: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> None:
        """`device`: where the tensors go. As published, seeds count modulo 2^32.

        Settings, flags and calls refuse seeds from there on, so that no two seeds are one.
        """
        self.generators = [torch.Generator().manual_seed(int(seed) % SEED_LIMIT) for seed in seeds]
        self.device = device

    def randn(self, shape: Sequence[int]) -> Tensor:
        """Return unit normal noise of `shape` (C, H, W) for each seed -> (N, C, H, W) float32."""
        rows = [torch.randn(tuple(shape), generator=g) for g in self.generators]
        return torch.stack(rows).to(self.device)

    def randint(self, high: int) -> Tensor:
        """Return an integer in [0, high) for each seed -> (N,) int64."""
        rows = [torch.randint(high, (1,), generator=g) for g in self.generators]
        return torch.cat(rows).to(self.device)
