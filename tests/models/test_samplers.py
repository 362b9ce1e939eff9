"""Samplers, compared with reference values and with solutions in closed form."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from models.noise_levels import formulation
from models.samplers import (
    SamplerSettings,
    SeededNoise,
    guided,
    invert,
    last_part,
    nfe,
    sample,
)

pytestmark = pytest.mark.bits  # of `make test-machines`

GOLDEN_SAMPLERS = (
    "edm_18",
    "edm_18_churn",
    "edm_40_cfg4",
    "ablation_euler_edm",
    "ablation_heun_iddpm",
    "ablation_heun_ve",
    "ablation_heun_vp",
)


class GaussianDenoiser:
    """Ideal denoiser of images ~ N(mean of the condition, 0.5²); records its calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: float, cond: Tensor | None = None) -> Tensor:
        assert x.dtype == torch.float32
        self.batches.append(len(x))
        self.sigmas.append(sigma)
        mean = 0 if cond is None else cond.double().mean(dim=1)[:, None, None, None]
        return (0.25 * x.double() + sigma**2 * mean) / (0.25 + sigma**2)


@pytest.mark.parametrize("name", GOLDEN_SAMPLERS)
def test_samplers_meet_the_published_code_in_result_and_network_evaluations(golden, name):
    tensors = load_file(golden / "samplers.safetensors")
    with safe_open(golden / "samplers.safetensors", "pt") as file:
        options = json.loads(file.metadata()[name])
    evaluations, cfg_scale = options.pop("nfe"), options.pop("cfg_scale", None)
    del options["fn"], options["noise_draws"]
    settings, denoiser = SamplerSettings(**options), GaussianDenoiser()
    noise = torch.Generator().manual_seed(123)
    images = sample(
        guided(denoiser, tensors["labels"], cfg_scale),
        tensors["latents"],
        settings,
        lambda x: torch.randn(x.shape, generator=noise, dtype=x.dtype),
    )
    torch.testing.assert_close(images, tensors[name], rtol=1e-4, atol=1e-5)
    assert len(denoiser.sigmas) == nfe(settings) == evaluations


def test_seeded_noise_meets_the_published_generators(golden):
    t = load_file(golden / "per_seed_noise.safetensors")
    noise = SeededNoise(t["seeds"])
    assert torch.equal(noise.randn((4, 8, 8)), t["first_randn_4x8x8"])
    assert torch.equal(noise.randn((4, 8, 8)), t["second_randn_4x8x8"])
    assert torch.equal(noise.randint(100), t["then_randint_100"].flatten())


def test_noise_of_a_seed_does_not_depend_on_its_batch():
    together = SeededNoise([1, 2, 3])
    alone = SeededNoise([3])
    assert torch.equal(together.randn((2, 4, 4))[2:], alone.randn((2, 4, 4)))
    assert torch.equal(together.randint(1000)[2:], alone.randint(1000))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_error_falls_with_the_order_of_the_solver(solver, order):
    """The exact end of the trajectory is known for Gaussian images."""
    latents, start, end = torch.randn(8, 1, 2, 2, dtype=torch.float64), 80.0, 0.002
    # The trajectory is x(sigma) ~ sqrt(sigma² + 0.25); the last step lands on D(x, sigma_min).
    exact = latents * start * math.sqrt((0.25 + end**2) / (0.25 + start**2))
    exact = exact * 0.25 / (0.25 + end**2)
    errors = [
        (sample(GaussianDenoiser(), latents, SamplerSettings(solver, steps)) - exact).abs().max()
        for steps in (40, 80)
    ]
    assert errors[0] / errors[1] > 0.8 * 2**order


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_one_or_two_steps_are_enough_to_run(solver, num_steps):
    images = sample(GaussianDenoiser(), torch.randn(2, 1, 2, 2), SamplerSettings(solver, num_steps))
    assert images.dtype == torch.float64
    assert images.isfinite().all()


def test_without_churn_no_noise_is_added():
    def randn(x):
        raise AssertionError("noise was added")

    sample(GaussianDenoiser(), torch.randn(2, 1, 2, 2), SamplerSettings(num_steps=4), randn)


def test_edm_noise_levels_run_from_the_largest_to_the_smallest():
    denoiser = GaussianDenoiser()
    sample(denoiser, torch.randn(1, 1, 2, 2), SamplerSettings("dpmpp_2m", 5, 0.1, 10.0))
    assert denoiser.sigmas[0] == pytest.approx(10)
    assert denoiser.sigmas[-1] == pytest.approx(0.1)
    assert denoiser.sigmas == sorted(denoiser.sigmas, reverse=True)


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m"])
def test_explicit_noise_levels_are_those_at_which_the_network_is_asked(solver):
    denoiser = GaussianDenoiser()
    settings = SamplerSettings(solver, 3, sigmas=(20.0, 3.0, 0.4))
    sample(denoiser, torch.randn(1, 1, 2, 2), settings)
    assert list(dict.fromkeys(denoiser.sigmas)) == [20.0, 3.0, 0.4]
    assert len(denoiser.sigmas) == nfe(settings)


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m"])
def test_the_levels_of_a_discretization_written_out_give_equal_images(solver):
    latents, plain = torch.randn(2, 1, 2, 2), SamplerSettings(solver, 6)
    listed = SamplerSettings(solver, 6, sigmas=tuple(plain.formulation().t_steps[:-1]))
    images = [sample(GaussianDenoiser(), latents, settings) for settings in (plain, listed)]
    assert torch.equal(*images)


@pytest.mark.parametrize("schedule", ["vp", "ve", "linear"])
def test_time_functions_are_each_others_inverse_and_derivative(schedule):
    form = formulation("edm", schedule, "vp", 5)
    for t in form.t_steps[:-1]:
        step = 1e-5 * t
        assert form.t_of_sigma(form.sigma(t)) == pytest.approx(t)
        slope = (form.sigma(t + step) - form.sigma(t - step)) / (2 * step)
        assert form.d_sigma(t) == pytest.approx(slope, rel=1e-4)
        slope = (form.s(t + step) - form.s(t - step)) / (2 * step)
        assert form.d_s(t) == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_guidance_extrapolates_from_the_unconditional_answer_in_one_batch():
    denoiser, x, cond = GaussianDenoiser(), torch.randn(3, 1, 2, 2), torch.randn(3, 6)
    conditional, unconditional = denoiser(x, 1.0, cond), denoiser(x, 1.0, None)
    denoiser.batches.clear()
    result = guided(denoiser, cond, 3.0)(x, 1.0)
    torch.testing.assert_close(result, unconditional + 3 * (conditional - unconditional))
    assert denoiser.batches == [6]


@pytest.mark.parametrize("cfg_scale", [None, 1.0])
def test_without_guidance_only_the_condition_is_evaluated(cfg_scale):
    denoiser, x, cond = GaussianDenoiser(), torch.randn(3, 1, 2, 2), torch.randn(3, 6)
    torch.testing.assert_close(guided(denoiser, cond, cfg_scale)(x, 1.0), denoiser(x, 1.0, cond))
    assert denoiser.batches == [3, 3]


def test_outside_its_interval_guidance_costs_nothing():
    denoiser, x, cond = GaussianDenoiser(), torch.randn(3, 1, 2, 2), torch.randn(3, 6)
    denoise = guided(denoiser, cond, 3.0, (0.5, 2.0))
    for sigma in (3.0, 2.0, 1.0, 0.5, 0.1):
        denoise(x, sigma)
    assert denoiser.batches == [3, 6, 6, 3, 3]


def test_samples_without_condition_are_not_guided():
    denoiser = GaussianDenoiser()
    guided(denoiser, None, 4.0)(torch.randn(3, 1, 2, 2), 1.0)
    assert denoiser.batches == [3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "huen"}, "solver 'huen'.*heun"),
        ({"discretization": "ddpm"}, "discretization 'ddpm'.*iddpm"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"solver": "dpmpp_2m", "S_churn": 10.0}, "S_churn"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min < sigma_max"),
        ({"num_steps": 2, "sigmas": (1.0, 5.0)}, r"sigmas: \[1, 5\] should be .* highest first"),
        ({"num_steps": 2, "sigmas": (1.0, 0.0)}, r"sigmas: \[1, 0\] should be .* above 0"),
        ({"num_steps": 0, "sigmas": ()}, "num_steps is 0"),
        ({"num_steps": 1, "sigmas": (1.0,), "discretization": "vp"}, "no discretization"),
        ({"num_steps": 1, "sigmas": (1.0,), "schedule": "ve"}, "no discretization, schedule"),
        ({"num_steps": 10, "sigmas": (5.0, 1.0)}, "num_steps is 10, but sigmas lists 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**options)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_inverted_images_come_back_with_the_order_of_the_solver(solver, order):
    images, errors = 0.5 * torch.randn(8, 1, 2, 2, dtype=torch.float64), []
    for steps in (40, 80):
        settings = SamplerSettings(solver, steps, S_churn=0 if solver == "dpmpp_2m" else 20)
        latents = invert(GaussianDenoiser(), images, settings)
        assert float(latents.std()) == pytest.approx(
            float(images.std()) / 0.5, rel=0.1
        )  # of unit variance
        back = sample(GaussianDenoiser(), latents, replace(settings, S_churn=0))
        errors.append((back - images * 0.25 / (0.25 + 0.002**2)).abs().max())
    assert errors[0] / errors[1] > 0.8 * 2**order


@pytest.mark.parametrize("settings", [SamplerSettings(num_steps=9), SamplerSettings("euler", 1)])
def test_the_last_part_of_a_sampler_begins_lower_and_ends_at_the_same_noise_level(settings):
    assert last_part(settings, 1) is settings
    whole = settings.formulation().t_steps
    sigmas = [list(last_part(settings, s).sigmas or ()) for s in (0.05, 0.3, 0.5, 0.999)]
    assert [len(levels) for levels in sigmas] == [math.ceil(s * (len(whole) - 1)) for s in
                                                  (0.05, 0.3, 0.5, 0.999)]  # fmt: skip
    assert all(levels[0] <= whole[0] + 1e-9 for levels in sigmas)
    if len(whole) > 2:
        starts = [levels[0] for levels in sigmas]
        assert starts == sorted(set(starts)) and starts[-1] == pytest.approx(whole[0], rel=0.1)
        assert all(levels[-1] == pytest.approx(whole[-2]) for levels in sigmas[1:])
