"""Seeds and conditions become images, independent of the batches."""

import pytest
import torch
from alike import assert_alike
from tiny import DIM, RESOLUTION, make_tiny_config, make_tiny_denoiser

from models.autoencoder import Autoencoder
from models.edm import EDMPrecond
from models.embedding_prior import EmbeddingPrior
from utils.base.errors import UserError
from utils.config.parsing import parse_scale, parse_seeds
from utils.config.sampling_sections import Sampling
from utils.pretrained.encoders import load_config_autoencoder
from utils.sampling.compile import compile_for_sampling
from utils.sampling.generate import (
    CPU_TOKENS,
    block_size,
    generate,
    in_blocks,
    sampler_settings,
)

HEUN = Sampling(num_steps=4)
GUIDED = Sampling(num_steps=4, cfg_scale=2.0)
CHURN = Sampling(num_steps=4, S_churn=4)
SEEDS = [5, 0, 17, 3, 2, 99, 7, 1]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Autoencoder:
    return load_config_autoencoder(make_tiny_config(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def denoiser() -> EDMPrecond:
    return make_tiny_denoiser()


@pytest.fixture(scope="module")
def conds() -> torch.Tensor:
    return torch.randn(len(SEEDS), DIM, generator=torch.Generator().manual_seed(0))


def images_of(*args, **kwargs) -> torch.Tensor:
    return torch.cat([images for _, images in generate(*args, **kwargs)]).int()


@pytest.mark.bits
@pytest.mark.parametrize("solver", [{}, {"S_churn": 4}, {"solver": "dpmpp_2m"}])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_images_by_rounding_alone(
    denoiser, autoencoder, conds, solver, batch_size
):
    args = denoiser, autoencoder, conds, SEEDS, GUIDED.model_copy(update=solver)
    whole = images_of(*args, batch_size=8)
    assert whole.shape == (8, RESOLUTION, RESOLUTION, 3)
    assert_alike(images_of(*args, batch_size=batch_size), whole)


@pytest.mark.bits
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("order", [[3], [6, 0], [7, 6, 5, 4, 3, 2, 1, 0], [0] * 19], ids=str)
@pytest.mark.parametrize("freedom", [0.0, 0.7])
def test_in_half_precision_no_other_image_of_a_batch_changes_a_bit(
    denoiser, autoencoder, conds, amp, order, freedom
):
    sampling = GUIDED.model_copy(update={"amp": amp, "freedom": freedom})
    torch.manual_seed(0)
    prior = EmbeddingPrior(DIM, width=48, depth=2).eval()
    for weight in prior.parameters():  # fresh ones are zero in places
        torch.nn.init.normal_(weight, std=0.2)
    options = {"sampling": sampling, "prior": prior if freedom else None}
    whole = images_of(denoiser, autoencoder, conds, SEEDS, **options)
    some = images_of(
        denoiser, autoencoder, conds[order], [SEEDS[k] for k in order], **options, batch_size=3
    )
    assert torch.equal(whole[order], some)


def test_a_cpu_fills_up_blocks_of_a_fixed_number_of_tokens(denoiser):
    half = HEUN.model_copy(update={"amp": "bf16"})
    assert block_size(denoiser, half) == CPU_TOKENS // denoiser.model.num_patches > 1
    assert block_size(denoiser, HEUN) is None
    assert in_blocks(5, 4) == [[0, 1, 2, 3], [4, 4, 4, 4]]
    assert in_blocks(3, None) == [[0, 1, 2]]


@pytest.mark.bits
@pytest.mark.parametrize("sampling", [HEUN, CHURN])
def test_an_image_depends_on_its_own_seed_and_condition_only(
    denoiser, autoencoder, conds, sampling
):
    images = images_of(denoiser, autoencoder, conds, SEEDS, sampling)
    order = [3, 0, 6]
    others = images_of(
        denoiser, autoencoder, conds[order], [SEEDS[k] for k in order], sampling, batch_size=2
    )
    assert_alike(others, images[order])


@pytest.mark.parametrize(
    "change",
    [
        "seed",
        "condition",
        {"cfg_scale": 5.0},
        {"guidance_interval": (0.0, 0.1)},
        {"num_steps": 3},
        {"S_churn": 4},
    ],
    ids=str,
)
def test_everything_an_image_depends_on_changes_it(denoiser, autoencoder, conds, change):
    before = images_of(denoiser, autoencoder, conds[:1], [5], GUIDED)
    after = images_of(
        denoiser,
        autoencoder,
        conds[1:2] if change == "condition" else conds[:1],
        [6] if change == "seed" else [5],
        GUIDED.model_copy(update=change) if isinstance(change, dict) else GUIDED,
    )
    assert (before - after).abs().max() > 5


def test_batches_come_with_their_positions(denoiser, autoencoder, conds):
    batches = generate(denoiser, autoencoder, conds, SEEDS, HEUN, batch_size=3)
    seen = [(list(positions), len(images)) for positions, images in batches]
    assert seen == [([0, 1, 2], 3), ([3, 4, 5], 3), ([6, 7], 2)]


def test_unconditional_models_need_no_conditions(autoencoder):
    denoiser = make_tiny_denoiser(cond_dim=0)
    images = images_of(denoiser, autoencoder, None, SEEDS, HEUN)
    assert images.shape == (8, RESOLUTION, RESOLUTION, 3)


def test_the_config_describes_the_sampler(tmp_path):
    config = make_tiny_config(tmp_path, sampling={"solver": "euler", "num_steps": 7, "S_churn": 3})
    settings = sampler_settings(config.sampling)
    assert (settings.solver, settings.num_steps, settings.S_churn) == ("euler", 7, 3)


STUDENT = Sampling(solver="euler", sigmas=(20.0, 2.0), num_steps=2)


@pytest.fixture(scope="module")
def student() -> EDMPrecond:
    return EDMPrecond(make_tiny_denoiser().model, distilled_sigmas=(20.0, 2.0))


def test_a_student_generates_with_the_sampler_it_was_distilled_for(student, autoencoder, conds):
    images = images_of(student, autoencoder, conds, SEEDS, STUDENT)
    assert images.float().std() > 30


@pytest.mark.parametrize(
    "change",
    [
        {"sigmas": None},
        {"sigmas": (20.0, 1.0)},
        {"sigmas": (20.0,), "num_steps": 1},
        {"solver": "heun"},
        {"cfg_scale": 2.0},
        {"S_churn": 4},
    ],
    ids=str,
)
def test_a_student_refuses_every_other_sampler_in_one_line(student, autoencoder, conds, change):
    sampling = STUDENT.model_copy(update=change)
    with pytest.raises(UserError, match=r"Euler steps at sigmas=\[20,2\].*preset instant") as fault:
        images_of(student, autoencoder, conds, SEEDS, sampling)
    assert "\n" not in str(fault.value)


def test_settings_that_exclude_each_other_give_a_clear_line(tmp_path):
    config = make_tiny_config(tmp_path, sampling={"solver": "dpmpp_2m", "S_churn": 3})
    with pytest.raises(UserError, match="sampling: solver 'dpmpp_2m' takes no S_churn"):
        sampler_settings(config.sampling)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_changes_pixels_by_little(denoiser, autoencoder, conds, amp):
    exact, rounded = (
        images_of(denoiser, autoencoder, conds, SEEDS, HEUN.model_copy(update={"amp": name}))
        for name in ("no", amp)
    )
    assert 0 < (exact - rounded).abs().float().mean() < 4  # of 255
    assert exact.float().std() > 30


def test_a_compiled_network_generates_the_same_images(autoencoder, conds, tmp_path):
    config = make_tiny_config(tmp_path, sampling={"compile": "auto"})
    plain, compiled = make_tiny_denoiser(), make_tiny_denoiser()
    compile_for_sampling(compiled, config.sampling, torch.device("cpu"))
    expected, images = (
        images_of(d, autoencoder, conds, SEEDS, GUIDED, batch_size=5) for d in (plain, compiled)
    )
    assert (expected - images).abs().max() <= 1


def test_errors_of_the_sampling_thread_reach_the_caller(denoiser, autoencoder):
    with pytest.raises(ValueError, match="the condition has 3 features"):
        images_of(denoiser, autoencoder, torch.ones(8, 3), SEEDS, HEUN)


def test_seed_lists():
    assert parse_seeds("0-3,100, 2") == [0, 1, 2, 3, 100]


@pytest.mark.parametrize("text", ["", "3-1", "a", "-4", "1,,2", "5000000000"])
def test_bad_seed_lists_give_a_clear_line(text):
    with pytest.raises(UserError, match="should look like 0-63,100"):
        parse_seeds(text)


def test_guidance_scales():
    assert [parse_scale(text) for text in ("2.5", "0", "None", "null")] == [2.5, 0, None, None]


@pytest.mark.parametrize("text", ["", "two", "nan", "inf"])
def test_bad_guidance_scales_give_a_clear_line(text):
    with pytest.raises(UserError, match="should be a number or None"):
        parse_scale(text)
