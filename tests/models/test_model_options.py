"""Options of the network: their formulas, the names of their weights, their training."""

from dataclasses import replace

import pytest
import torch
from golden_models import assert_golden, small_denoiser
from losses import loss_of
from reference_network import denoised

from models.backbone import Architecture
from models.blocks import Mlp
from models.edm import build_denoiser, edm_loss, random_for_loss
from models.samplers import guided
from models.token_mask import random_mask
from utils.config.sections import Model

HEADS = {"heads": 2, "decoder_heads": 2}
OPTIONS = {
    "plain": {},
    "self_cond": {"self_cond": True},
    "self_cond_with_class_token": {"self_cond": True, "pad_cls_token": True},
    "external_features": {"ext_feature_dim": 5},
    "perturbation": {"perturbation": True},
    "perturbation_with_self_cond": {"perturbation": True, "self_cond": True},
    "exact_gelu": {"mlp": "gelu"},
}


def inputs(options: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x (2, 4, 8, 8), sigma (2,), cond (2, 6 + external features)."""
    width = 6 + options.get("ext_feature_dim", 0)
    return torch.randn(2, 4, 8, 8), torch.tensor([0.1, 3.0]), torch.randn(2, width)


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_the_network_equals_the_plain_formulas(name):
    denoiser = small_denoiser(**OPTIONS[name])
    x, sigma, cond = inputs(OPTIONS[name])
    features = cond[:, 6:] if "ext_feature_dim" in OPTIONS[name] else None
    sizes = HEADS | {"kind": OPTIONS[name].get("mlp", "gelu_tanh")}
    for noise in (None, torch.randn(2, 6)) if "perturbation" in OPTIONS[name] else (None,):
        expected = denoised(denoiser.state_dict(), x, sigma, cond[:, :6], features, noise, **sizes)
        assert_golden(denoiser(x, sigma, cond, cond_noise=noise), expected)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"self_cond": True}, ("enc_feat_embedder",)),
        ({"ext_feature_dim": 5}, ("feat_embedder",)),
        (
            {"perturbation": True},
            tuple(f"y_embedder.perturbator.r2_net.layer{i}" for i in range(1, 5)),
        ),
    ],
)
def test_an_option_adds_the_published_names_and_nothing_else(options, names):
    added = small_denoiser(**options).state_dict().keys() - small_denoiser().state_dict().keys()
    assert added == {f"model.{name}.{part}" for name in names for part in ("weight", "bias")}


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_training_step_gives_every_weight_a_gradient(name, ratio):
    """Several processes can then train without a search for unused weights."""
    denoiser = small_denoiser(**OPTIONS[name]).train()
    x, _, cond = inputs(OPTIONS[name])
    cond[0, :6] = 0  # an image without condition
    encoder = small_denoiser(**OPTIONS[name])
    loss_of(denoiser, x, cond, ratio, encoder=encoder).mean().backward()
    missing = [k for k, p in denoiser.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad is None for p in encoder.parameters())


def test_training_takes_the_summary_from_the_given_encoder():
    denoiser, encoder = small_denoiser(self_cond=True), small_denoiser(self_cond=True)
    x, _, cond = inputs({})

    def loss(**options) -> torch.Tensor:
        """Return the loss of each image with the same random numbers in each call."""
        return loss_of(denoiser, x, cond, 0.0, torch.Generator().manual_seed(1), **options)

    torch.testing.assert_close(loss(encoder=encoder), loss())  # equal weights, equal summaries
    with torch.no_grad():
        for parameter in encoder.model.blocks.parameters():
            parameter.mul_(2)
    assert not torch.allclose(loss(encoder=encoder), loss())


@torch.no_grad()
def test_the_summary_sees_the_whole_image_where_tokens_are_hidden():
    denoiser = small_denoiser(self_cond=True)
    x, sigma, cond = inputs({})
    mask = random_mask(2, 16, 0.5)
    hidden = mask.mask.view(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    t = sigma.log() / 4
    assert not torch.allclose(
        denoiser.model(x + hidden, t, cond, mask), denoiser.model(x, t, cond, mask)
    )
    fixed = {"summary": denoiser.model.summary(x, t, cond)}
    torch.testing.assert_close(
        denoiser.model(x + hidden, t, cond, mask, **fixed),
        denoiser.model(x, t, cond, mask, **fixed),
    )


@torch.no_grad()
def test_guidance_leaves_out_the_condition_but_not_the_external_features():
    denoiser = small_denoiser(ext_feature_dim=5)
    x, _, cond = inputs({"ext_feature_dim": 5})
    without = torch.cat([torch.zeros(2, 6), cond[:, 6:]], dim=1)
    expected = 3 * denoiser(x, 1.0, cond) - 2 * denoiser(x, 1.0, without)
    torch.testing.assert_close(guided(denoiser, cond, 3.0, cond_dim=6)(x, 1.0), expected)


@torch.no_grad()
def test_features_without_condition_are_enough():
    denoiser = build_denoiser("DiT-T/2", 8, 4, 0, depth=1, decoder_depth=1, ext_feature_dim=5)
    assert denoiser(torch.randn(2, 4, 8, 8), 1.0, torch.randn(2, 5)).isfinite().all()
    with pytest.raises(ValueError, match="needs 5 external features"):
        denoiser(torch.randn(2, 4, 8, 8), 1.0)


def test_the_learned_perturbation_acts_in_training_only():
    denoiser = small_denoiser(perturbation=True)
    x, _, cond = inputs({})

    def losses(count: int) -> list[torch.Tensor]:
        """Return losses that differ in the random numbers of the learned perturbation alone."""
        zeros = {"normal": torch.zeros(2, 1, 1, 1), "noise": torch.zeros_like(x)}
        numbers = [replace(random_for_loss(denoiser, x, cond), **zeros) for _ in range(count)]
        return [edm_loss(denoiser, x, cond, random) for random in numbers]

    first, second = losses(2)
    assert torch.equal(first, second)
    denoiser.train()
    first, second = losses(2)
    assert not torch.allclose(first, second)


def test_the_learned_perturbation_leaves_no_condition_alone():
    perturbator = small_denoiser(perturbation=True).model.y_embedder.perturbator
    y = torch.randn(3, 6)
    y[1] = 0
    perturbed = perturbator(y, torch.randn(3, 6))
    assert (perturbed[1] == 0).all()
    torch.testing.assert_close(perturbed[[0, 2]].norm(dim=1), torch.ones(2))


def test_the_default_mlp_has_the_published_tanh_gelu_bit_for_bit():
    mlp, x = Mlp(8, 32), torch.randn(2, 3, 8)
    expected = mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x), approximate="tanh"))
    assert torch.equal(mlp(x), expected)
    assert Architecture(8, 4, 6, 1, 8, 2, 2).mlp == Model().mlp == "gelu_tanh"


def test_the_exact_gelu_is_another_function_but_close_to_its_approximation():
    x = torch.linspace(-8, 8, 4001).view(1, -1, 1)
    approximate, exact = Mlp(1, 1), Mlp(1, 1, "gelu")
    for mlp in (approximate, exact):
        for layer in (mlp.fc1, mlp.fc2):
            torch.nn.init.ones_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    assert 1e-4 < (approximate(x) - exact(x)).abs().max() < 5e-4


@torch.no_grad()
def test_weights_trained_with_one_gelu_work_with_the_other():
    approximate, exact = small_denoiser(), small_denoiser(mlp="gelu")
    exact.load_state_dict(approximate.state_dict())
    x, sigma, cond = inputs({})
    difference = (exact(x, sigma, cond) - approximate(x, sigma, cond)).abs().max()
    assert 0 < difference < 1e-3


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="perturbation is of the condition"):
        build_denoiser("DiT-T/2", 8, 4, 0, perturbation=True)
