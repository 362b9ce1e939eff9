"""The network MaskDiT: names, shapes and values of the published code, masks, mask schedules."""

import json

import pytest
import torch
from golden_models import GOLDEN_MODELS, assert_golden, golden_denoiser, golden_mask, small_denoiser

from models.batch_random import BatchRandom
from models.edm import build_denoiser
from models.samplers import guided
from models.token_mask import random_mask, restore
from utils.training.schedules import mask_ratio_at

pytestmark = pytest.mark.bits  # of `make test-machines`


@pytest.mark.parametrize("name", GOLDEN_MODELS)
@torch.no_grad()
def test_denoised_images_meet_the_published_network(golden, name):
    denoiser, t = golden_denoiser(golden, name)
    assert_golden(denoiser(t["x"], t["sigma"], t["labels"]), t["eval/denoised"])
    assert_golden(denoiser(t["x"], t["sigma"]), t["eval/denoised_unconditional"])
    assert_golden(denoiser(t["x"], 1.5, t["labels"]), t["eval/denoised_scalar_sigma"])


@pytest.mark.parametrize("name", GOLDEN_MODELS)
@torch.no_grad()
def test_guided_images_meet_the_published_network(golden, name):
    denoiser, t = golden_denoiser(golden, name)

    def at_each_images_noise(x, _, cond):
        """Denoise each image at its own noise level; guidance doubles the batch."""
        return denoiser(x, t["sigma"].repeat(len(x) // len(t["sigma"])), cond)

    images = guided(at_each_images_noise, t["labels"], 4.0)(t["x"], 1.0)
    assert_golden(images, t["eval/cfg_scale_4"])


@pytest.mark.parametrize("name", GOLDEN_MODELS)
@torch.no_grad()
def test_masked_forward_meets_the_published_network(golden, name):
    denoiser, t = golden_denoiser(golden, name)
    denoised = denoiser(t["x"], t["sigma"], t["labels"], golden_mask(t))
    assert_golden(denoised, t["train/denoised_masked"])


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_fixed_positions_are_the_published_ones_and_are_not_trained(golden, name):
    denoiser, _ = golden_denoiser(golden, name)
    loaded = denoiser.model.pos_embed.clone()
    denoiser.model.reset_parameters()
    torch.testing.assert_close(denoiser.model.pos_embed, loaded)
    assert not denoiser.model.pos_embed.requires_grad


@pytest.mark.parametrize("name", ["DiT-XL/2", "DiT-H/2", "DiT-B/2", "DiT-S/4"])
def test_published_sizes_have_the_published_names_shapes_and_counts(golden, name):
    entries = json.loads((golden / "state_dict_shapes.json").read_text())
    key = next(key for key in entries if key.startswith(f"{name} "))
    expected, options = entries[key], json.loads(key.removeprefix(name))
    with torch.device("meta"):
        denoiser = build_denoiser(name, 32, 4, 512, **options)
    shapes = {key: list(value.shape) for key, value in denoiser.state_dict().items()}
    assert list(shapes.items()) == list(
        expected["shapes"].items()
    )  # an optimizer's state depends on the order
    parameters = list(denoiser.parameters())
    assert sum(p.numel() for p in parameters) == expected["parameters"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == expected["trainable"]


def test_untrained_network_predicts_zero():
    model = build_denoiser("DiT-T/2", 8, 4, 6, depth=1, decoder_depth=1).model
    assert model(torch.randn(2, 4, 8, 8), torch.randn(2), torch.randn(2, 6)).abs().max() == 0


@torch.no_grad()
def test_hidden_patches_do_not_reach_the_encoder():
    denoiser, x, cond = small_denoiser(), torch.randn(2, 4, 8, 8), torch.randn(2, 6)
    mask = random_mask(2, 16, 0.5, rng=BatchRandom(torch.Generator().manual_seed(1)))
    hidden = mask.mask.view(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    t = torch.zeros(2)
    changed = denoiser.model(x + 10 * hidden, t, cond, mask)
    torch.testing.assert_close(changed, denoiser.model(x, t, cond, mask))


@torch.no_grad()
def test_keeping_every_token_in_shuffled_order_changes_nothing():
    denoiser, x, cond = (
        small_denoiser(pad_cls_token=True),
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 6),
    )
    unmasked = denoiser(x, 1.0, cond)
    torch.testing.assert_close(denoiser(x, 1.0, cond, random_mask(2, 16, 0.0)), unmasked)


def test_every_trainable_weight_gets_a_gradient_with_and_without_mask():
    for mask in (None, random_mask(2, 16, 0.5)):
        denoiser = small_denoiser(pad_cls_token=True).train()
        denoiser(torch.randn(2, 4, 8, 8), 1.0, torch.randn(2, 6), mask).square().mean().backward()
        missing = [k for k, p in denoiser.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []


def test_no_condition_is_the_zero_condition():
    denoiser, x = small_denoiser(), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(denoiser(x, 1.0), denoiser(x, 1.0, torch.zeros(2, 6)))


def test_unconditional_network_has_no_condition_weights():
    denoiser = build_denoiser("DiT-T/2", 8, 4, 0, depth=1, decoder_depth=1)
    assert not [name for name in denoiser.state_dict() if "y_embedder" in name]
    assert denoiser(torch.randn(2, 4, 8, 8), 1.0).shape == (2, 4, 8, 8)


def test_bfloat16_autocast_stays_close_to_float32():
    denoiser, x, cond = small_denoiser(), torch.randn(2, 4, 8, 8), torch.randn(2, 6)
    exact = denoiser(x, 1.0, cond, mask := random_mask(2, 16, 0.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = denoiser(x, 1.0, cond, mask)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, exact, rtol=0.05, atol=0.05)


def test_gradients_under_bfloat16_autocast_stay_close_to_float32():
    denoiser, x, cond = small_denoiser(), torch.randn(4, 4, 8, 8), torch.randn(4, 6)
    gradients = []
    for enabled in (False, True):
        denoiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            denoiser(x, 1.0, cond).square().mean().backward()
        gradients.append(denoiser.model.blocks[0].attn.qkv.weight.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_random_mask_keeps_the_stated_share_and_is_consistent():
    mask = random_mask(50, 16, 0.4, rng=BatchRandom(torch.Generator().manual_seed(0)))
    kept = int(16 * 0.6)
    assert mask.ids_keep.shape == (50, kept)
    assert (mask.mask.sum(dim=1) == 16 - kept).all()
    assert (mask.mask.gather(1, mask.ids_keep) == 0).all()
    tokens = torch.arange(16.0).repeat(50, 1)[:, :, None]
    restored = restore(tokens.gather(1, mask.ids_keep[:, :, None]), None, mask)
    torch.testing.assert_close(restored, tokens * (1 - mask.mask[:, :, None]))
    assert len({tuple(row.tolist()) for row in mask.mask}) > 40


@pytest.mark.parametrize("ratio", [1.0, 0.99, -0.5])
def test_mask_ratio_that_makes_no_sense_is_refused(ratio):
    with pytest.raises(ValueError, match="mask ratio"):
        random_mask(2, 16, ratio)


def test_mask_schedules_meet_the_published_ones(golden):
    expected = json.loads((golden / "mask_schedules.json").read_text())
    for schedule, values in expected["value"].items():
        ours = [
            mask_ratio_at(schedule, x, expected["ratio"], expected["ratio_min"])
            for x in expected["x"]
        ]
        assert ours == pytest.approx(values, abs=1e-9), schedule


def test_unknown_mask_schedule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="cosine7.*cosine6"):
        mask_ratio_at("cosine7", 0.5, 0.5, 0.0)


def test_unknown_model_type_names_a_close_one():
    with pytest.raises(ValueError, match="did you mean 'DiT-XL/2'"):
        build_denoiser("DiT-XXL/2", 32, 4, 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ext_feature_dim": 8, "self_cond": True}, "self_cond .* ext_feature_dim"),
        ({"use_decoder": False, "self_cond": True}, "self_cond needs use_decoder"),
        ({"patch_size": 3}, "patch size 3"),
        ({"num_heads": 7}, "7 attention heads"),
        ({"decoder_hidden_size": 18}, "multiples of 4"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_denoiser("DiT-T/2", 8, 4, 6, **options)


def test_a_larger_initial_scale_lets_the_condition_speak_louder():
    def size_of_condition(**options: float) -> float:
        """Return the standard deviation of the embedded condition of a new network."""
        torch.manual_seed(0)
        model = build_denoiser("DiT-T/2", 8, 4, 64, depth=1, decoder_depth=1, **options).model
        return model.y_embedder(torch.eye(64)).std().item()

    assert size_of_condition() == pytest.approx(0.02, rel=0.1)
    assert size_of_condition(cond_init_std=0.5) == pytest.approx(0.5, rel=0.1)
