"""Schedulers of diffusers in place of the project's own samplers.

A scheduler is accepted if its step means one of our solvers: EDM's Euler steps, DPM-Solver++(2M) on
EDM's sigmas, and Heun steps. EDM's schedulers bring their own sigmas (`sigma_min`, `sigma_max`,
`rho`). HeunDiscreteScheduler has only those of DDPM; it takes ours.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

from models.samplers import Denoise, SamplerSettings
from utils.base.errors import UserError
from utils.sampling.generate import Solve

# The settings of each class at which it is one of our solvers; others are refused.
ACCEPTED: dict[type, dict[str, Any]] = {
    EDMEulerScheduler: {"prediction_type": "epsilon", "final_sigmas_type": "zero"},
    EDMDPMSolverMultistepScheduler: {
        "prediction_type": "epsilon",
        "final_sigmas_type": "zero",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "thresholding": False,
    },
    HeunDiscreteScheduler: {"prediction_type": "epsilon", "clip_sample": False},
}


def solve_with(scheduler: Any) -> Solve:
    """Return a solver that takes the steps of a scheduler, with its state in float32.

    Raises UserError if the scheduler does something else than one of our solvers.
    """
    kind = next((kind for kind in ACCEPTED if type(scheduler) is kind), None)
    if kind is None:
        names = ", ".join(accepted.__name__ for accepted in ACCEPTED)
        raise UserError(f"scheduler {type(scheduler).__name__}: should be one of {names}")
    for name, value in ACCEPTED[kind].items():
        if scheduler.config[name] != value:
            raise UserError(
                f"scheduler {kind.__name__}: {name} is {scheduler.config[name]}; should be {value}"
            )

    def solve(denoise: Denoise, latents: torch.Tensor, settings: SamplerSettings) -> torch.Tensor:
        """Run the scheduler from unit normal latents (N, C, h, w) to images (N, C, h, w)."""
        if settings.S_churn:
            raise UserError("scheduler: sampling.S_churn is for our own samplers; set it to 0")
        if settings.sigmas is not None:
            raise UserError(
                "scheduler: it has sigmas of its own, and sampling.sigmas names others; "
                "leave the scheduler out"
            )
        # The sigmas stay on the CPU, where their values are read without waiting for the device.
        scheduler.set_timesteps(settings.num_steps)
        if kind is HeunDiscreteScheduler:
            scheduler.sigmas = _heun_sigmas(settings)
        scheduler.set_begin_index(0)
        x = latents.float() * scheduler.sigmas[0].item()
        for index, timestep in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[index].item()
            scheduler.is_scale_input_called = True  # D scales its input itself
            output = _model_output(scheduler, x, denoise(x, sigma), sigma)
            x = scheduler.step(output, timestep, x).prev_sample
        return x

    return solve


def _heun_sigmas(settings: SamplerSettings) -> torch.Tensor:
    """Return our sigmas as HeunDiscreteScheduler keeps them: inner ones twice."""
    sigmas = torch.tensor(settings.formulation().t_steps, dtype=torch.float32)
    return torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])


def _model_output(
    scheduler: Any, x: torch.Tensor, denoised: torch.Tensor, sigma: float
) -> torch.Tensor:
    """Return the output from which a scheduler gets `denoised` at a sigma, (N, C, h, w).

    EDM's schedulers apply the preconditioning (Karras 2022, table 1); this inverts it.
    HeunDiscreteScheduler takes the noise.
    """
    if isinstance(scheduler, HeunDiscreteScheduler):
        return (x - denoised) / sigma
    sigma_data: float = scheduler.config["sigma_data"]
    variance = sigma**2 + sigma_data**2
    c_skip, c_out = sigma_data**2 / variance, sigma * sigma_data / variance**0.5
    return (denoised - c_skip * x) / c_out
