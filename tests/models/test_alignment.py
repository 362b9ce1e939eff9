"""Alignment of tokens to patch features: the loss, its gradients, and the maps themselves."""

import numpy as np
import pytest
import torch
from tiny import NETWORK

from models.alignment import AlignedDenoiser
from models.edm import LossRandom, build_denoiser, edm_loss, random_for_loss, unwrapped
from models.patch_features import deepest_as_fine, on_grid
from models.token_mask import random_mask

WIDTH, DEPTH = 24, 2


def aligned(**options) -> AlignedDenoiser:
    """Return a denoiser of latents (4, 8, 8) with a head, all weights random."""
    torch.manual_seed(0)
    network = AlignedDenoiser(
        build_denoiser("DiT-S/2", 8, 4, 6, **(NETWORK | {"depth": 3} | options)), WIDTH, DEPTH
    )
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return network.train()


def batch(mask_ratio: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, LossRandom]:
    """Return latents, conditions, patch features of three images, and numbers for their loss."""
    torch.manual_seed(1)
    clean, cond, features = torch.randn(3, 4, 8, 8), torch.randn(3, 6), torch.randn(3, WIDTH, 4, 4)
    mask = random_mask(3, 16, mask_ratio) if mask_ratio else None
    return clean, cond, features, LossRandom(torch.randn(3, 1, 1, 1), torch.randn(3, 4, 8, 8), mask)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
@pytest.mark.parametrize("options", [{}, {"pad_cls_token": True}, {"use_decoder": False}])
def test_the_loss_is_the_mean_distance_of_the_tokens_that_the_encoder_sees(mask_ratio, options):
    network = aligned(**options)
    clean, cond, features, random = batch(mask_ratio)
    seen = []
    block = network.denoiser.model.blocks[DEPTH - 1]
    block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    _, found = edm_loss(network, clean, cond, random, features=features)
    (tokens,) = seen
    tokens = tokens[:, int(network.denoiser.model.architecture.pad_cls_token) :]
    w1, b1, w2, b2 = (p.detach().numpy() for p in network.head.parameters())
    for i in range(3):
        kept = range(16) if random.mask is None else random.mask.ids_keep[i].tolist()
        distances = []
        for token, place in zip(tokens[i].detach().numpy(), kept, strict=True):
            hidden = w1 @ token + b1
            predicted = w2 @ (hidden / (1 + np.exp(-hidden))) + b2
            target = features[i, :, place // 4, place % 4].numpy()
            norms = np.linalg.norm(predicted) * np.linalg.norm(target)
            distances.append(1 - predicted @ target / norms)
        assert found[i].item() == pytest.approx(np.mean(distances), abs=1e-5)


def test_the_denoising_loss_is_that_of_the_network_alone():
    network = aligned()
    clean, cond, features, random = batch(0.5)
    alone = edm_loss(network.denoiser, clean, cond, random, mae_loss_coef=0.1)
    for given in (features, None):
        both = edm_loss(network, clean, cond, random, mae_loss_coef=0.1, features=given)
        assert torch.equal(both[0], alone)
    assert torch.equal(both[1], torch.zeros(3))


def test_the_alignment_reaches_the_blocks_before_it_and_the_head_alone():
    network = aligned()
    clean, cond, features, random = batch(0.5)
    edm_loss(network, clean, cond, random, features=features)[1].mean().backward()
    reached = {
        name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {name for name, _ in network.named_parameters() if "head." in name} < reached
    blocks = {name.split(".")[3] for name in reached if ".blocks." in name}
    assert blocks == {str(i) for i in range(DEPTH)}
    assert not any("decoder" in name or "final_layer" in name for name in reached)


def test_without_features_each_weight_of_the_head_gets_a_gradient_of_zero():
    network = aligned()
    clean, cond, _, random = batch()
    edm_loss(network, clean, cond, random).mean().backward()
    assert all(p.grad is not None and not p.grad.any() for p in network.head.parameters())


def test_the_random_numbers_do_not_depend_on_the_head():
    network = aligned(perturbation=True)
    clean, cond, _, _ = batch()
    torch.manual_seed(2)
    with_head = random_for_loss(network, clean, cond, 0.5)
    torch.manual_seed(2)
    without = random_for_loss(unwrapped(network), clean, cond, 0.5)
    assert torch.equal(with_head.noise, without.noise)
    assert torch.equal(with_head.directions, without.directions)


def test_maps_lose_their_mean_and_deviation_channel_by_channel():
    maps = 3 + 5 * torch.randn(2, 7, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = maps.double().numpy()
    plain = plain - plain.mean(axis=(2, 3), keepdims=True)
    plain /= plain.std(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(on_grid(maps, 4), plain, rtol=1e-4, atol=1e-5)


def test_channels_that_hardly_vary_are_not_blown_up():
    maps = torch.randn(1, 100, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[:, 0] = 5.0
    maps[:, 1] = 5.0 + 1e-5 * maps[:, 1]
    found = on_grid(maps, 4)
    assert found.isfinite().all()
    assert found[:, :2].abs().max() < 0.01
    assert not on_grid(torch.full((1, 3, 4, 4), 2.0), 4).any()


def test_maps_are_resized_by_the_mean_of_what_they_cover():
    fine = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.arange(2.0).repeat_interleave(4).expand(8, 8)  # left dark, right bright
    found = on_grid(torch.cat([fine, steps.expand(1, 1, 8, 8)], dim=1), 4)
    assert found.shape == (1, 4, 4, 4)
    assert (found[0, 3, :, 0] < found[0, 3, :, 1]).all()
    assert (found[0, 3, :, 1] < found[0, 3, :, 2]).all()
    torch.testing.assert_close(found[0, 3], -found[0, 3].flip(1))


def test_the_deepest_map_that_is_as_fine_as_the_grid_is_taken():
    stages = [torch.zeros(1, 2**i, 32 // 2**i, 32 // 2**i) for i in range(4)]  # 32, 16, 8, 4
    assert deepest_as_fine(stages, 8).shape[3] == 8
    assert deepest_as_fine(stages, 10).shape[3] == 16
    assert deepest_as_fine(stages, 64).shape[3] == 32
    blocks = [torch.full((1, 3, 7, 7), i) for i in range(4)]
    assert deepest_as_fine(blocks, 16).unique().item() == 3
