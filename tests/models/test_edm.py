"""Preconditioning and training loss of EDM."""

from types import SimpleNamespace

import pytest
import torch
from golden_models import GOLDEN_MODELS, assert_golden, golden_denoiser, golden_mask, small_denoiser
from losses import loss_of
from torch import nn

from models.edm import (
    EDMPrecond,
    LossRandom,
    edm_loss,
    normalised_patches,
    patchify,
    random_for_loss,
)
from models.token_mask import random_mask

pytestmark = pytest.mark.bits  # of `make test-machines`


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_masked_loss_and_its_gradient_meet_the_published_code(golden, name):
    denoiser, t = golden_denoiser(golden, name)
    random = LossRandom(t["loss/rnd_normal"], t["loss/noise"], golden_mask(t))
    coef = GOLDEN_MODELS[name].get("mae_loss_coef", 0.1)
    loss = edm_loss(denoiser, t["loss/clean"], t["labels"], random, mae_loss_coef=coef)
    assert_golden(loss, t["loss/per_sample_masked"])
    loss.mean().backward()
    norms = [p.grad.norm() for p in denoiser.parameters() if p.grad is not None]
    assert_golden(torch.stack(norms).norm(), t["loss/grad_norm_masked"])


@pytest.mark.parametrize("name", ["maskdit_decoder_mae", "maskdit_cls_token"])
def test_unmasked_loss_meets_the_published_code(golden, name):
    denoiser, t = golden_denoiser(golden, name)
    random = LossRandom(t["loss/rnd_normal"], t["loss/noise"])
    loss = edm_loss(denoiser, t["loss/clean"], t["labels"], random, mae_loss_coef=0.1)
    assert_golden(loss, t["loss/per_sample_unmasked"])


class Constant(nn.Module):
    """Network whose output is one constant value."""

    cond_width, patch_size, num_patches = 3, 2, 16
    architecture = SimpleNamespace(self_cond=False, perturbation=False)

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, x, t_cond, y, mask):
        """Return the value in the shape of x (N, C, H, W)."""
        return torch.full_like(x, self.value)


def test_preconditioning_follows_table_1_of_edm():
    x, sigma = torch.randn(3, 4, 8, 8), torch.tensor([0.002, 0.5, 80.0])
    s = sigma.view(3, 1, 1, 1)
    expected = 0.25 / (s**2 + 0.25) * x + 0.5 * s / (s**2 + 0.25).sqrt() * 7
    torch.testing.assert_close(EDMPrecond(Constant(7.0))(x, sigma), expected)


def test_denoiser_takes_double_precision_and_answers_in_single():
    denoiser, x, cond = (
        small_denoiser(),
        torch.randn(2, 4, 8, 8).double(),
        torch.randn(2, 6).double(),
    )
    assert denoiser(x, torch.tensor(1.0).double(), cond).dtype == torch.float32


def test_condition_of_another_width_is_refused_with_both_widths():
    with pytest.raises(ValueError, match=r"5 features.* 6"):
        small_denoiser()(torch.randn(2, 4, 8, 8), 1.0, torch.randn(2, 5))


def test_same_generator_gives_the_same_loss():
    denoiser, clean, cond = small_denoiser(), torch.randn(2, 4, 8, 8), torch.randn(2, 6)
    first, second = (
        loss_of(denoiser, clean, cond, 0.5, torch.Generator().manual_seed(s)) for s in (3, 3)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("options", [{}, {"P_mean": 0.5, "P_std": 0.9}])
def test_noise_levels_are_log_normal(options):
    """The network is F = 0 and there is no noise, so that the loss depends on sigma alone."""
    clean = torch.ones(20000, 1, 2, 2)
    generator = torch.Generator().manual_seed(0)
    random = LossRandom(torch.randn(20000, 1, 1, 1, generator=generator), torch.zeros_like(clean))
    loss = edm_loss(EDMPrecond(Constant(0.0)), clean, None, random, **options)
    # weight * (1 - c_skip)² = sigma² / (sigma_data² (sigma² + sigma_data²))
    ratio = 0.25 * loss  # sigma² / (sigma² + sigma_data²)
    log_sigma = 0.5 * (0.25 * ratio / (1 - ratio)).log()
    assert log_sigma.mean().item() == pytest.approx(options.get("P_mean", -1.2), abs=0.03)
    assert log_sigma.std().item() == pytest.approx(options.get("P_std", 1.2), abs=0.03)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_target_has_unit_variance_where_sigma_data_is_that_of_the_latents(sigma_data):
    """The network is F = 0, so that the loss is the mean square of its target."""
    generator = torch.Generator().manual_seed(0)
    clean = sigma_data * torch.randn(20000, 1, 2, 2, generator=generator)
    noise, normals = torch.randn(clean.shape, generator=generator), torch.tensor([-2.0, 0.0, 2.0])
    denoiser = EDMPrecond(Constant(0.0), sigma_data)
    for normal in normals:
        random = LossRandom(normal.expand(20000, 1, 1, 1), noise)
        assert edm_loss(denoiser, clean, None, random).mean().item() == pytest.approx(1, abs=0.02)


def test_hidden_patches_count_only_through_the_reconstruction_term():
    denoiser, clean, cond = EDMPrecond(Constant(0.0)), torch.randn(2, 4, 8, 8), torch.randn(2, 3)
    mask = random_mask(2, 16, 0.5)
    hidden = mask.mask.view(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    random = LossRandom(torch.zeros(2, 1, 1, 1), torch.randn_like(clean), mask)
    other = clean + hidden * torch.randn_like(clean)
    torch.testing.assert_close(
        edm_loss(denoiser, clean, cond, random), edm_loss(denoiser, other, cond, random)
    )
    with_term = edm_loss(denoiser, clean, cond, random, mae_loss_coef=0.1)
    assert (with_term > edm_loss(denoiser, clean, cond, random)).all()


def test_reconstruction_target_has_zero_mean_and_unit_variance_in_each_patch():
    target = normalised_patches(3 * torch.randn(2, 4, 8, 8) + 5, 2)
    torch.testing.assert_close(target.mean(dim=2), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(dim=2), torch.ones(2, 16), atol=1e-4, rtol=0)


def test_patches_are_in_the_order_of_the_tokens():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(image, 2)[0].tolist()[1] == [2, 3, 6, 7]


@pytest.mark.parametrize("ratio", [1e-20, 1e-17, 0.06])
@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_a_mask_that_hides_nothing_gives_the_unmasked_loss_bit_for_bit(ratio, coef):
    denoiser, clean, cond = small_denoiser(), torch.randn(2, 4, 8, 8), torch.randn(2, 6)
    random = random_for_loss(denoiser, clean, cond, ratio)
    assert random.mask is not None
    unmasked = LossRandom(random.normal, random.noise)
    loss = edm_loss(denoiser, clean, cond, random, mae_loss_coef=coef)
    without = edm_loss(denoiser, clean, cond, unmasked, mae_loss_coef=coef)
    hides_nothing = not random.mask.mask.any()
    assert hides_nothing == (ratio < 1e-16)
    assert torch.equal(loss, without) == hides_nothing and loss.isfinite().all()
