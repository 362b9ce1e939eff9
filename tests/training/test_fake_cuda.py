"""Tensors of a GPU on a machine without one: a tensor made on the wrong device fails here.

A fake tensor has a shape, a type and a device, and no numbers. Operations on fake tensors of
different devices fail as real ones do. The backward pass needs a real GPU (`make gpu-check`).
"""

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from tiny import DIM, NETWORK
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from models.adapters import adapt, plain_weights
from models.alignment import AlignedDenoiser
from models.batch_random import WHOLE_BATCH, RankSlice
from models.choices import Adaptation, PerturbationKind
from models.distillation import Segments, distillation_loss
from models.editing import AgainstCondition, Trait, keeping, with_trait
from models.edm import EDMPrecond, build_denoiser, edm_loss, random_for_loss
from models.embedding_prior import EmbeddingPrior, prior_loss
from models.geometry import towards_images
from models.perturbation import Perturbation, perturb
from models.samplers import (
    SamplerSettings,
    SeededNoise,
    guided,
    invert,
    last_part,
    sample,
)
from utils.config.load import config_from_dict
from utils.training.batches import make_condition
from utils.training.ema import EMA
from utils.training.step_guard import StepGuard, skip_unless
from utils.training.step_window import Window

CUDA = torch.device("cuda", 0)
BATCH, SIDE = 4, 8  # images, and side of their latents


@pytest.fixture(autouse=True)
def fake(monkeypatch) -> Iterator[None]:
    """Run a test with fake tensors, of which those made without a device lie on the CPU."""
    monkeypatch.setattr("torch.nn.init.trunc_normal_", torch.nn.init.normal_)  # it reads numbers
    with FakeTensorMode():
        yield


def on_cuda(*tensors: torch.Tensor) -> bool:
    return all(tensor.device == CUDA for tensor in tensors)


class WithoutCopies(TorchDispatchMode):
    """Fails at a copy between CPU and GPU, for which the host waits; reading a number fails too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and compare the devices of its first input and its output."""
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            assert source.device.type == out.device.type, f"{func} waits for the device"
        return out


def network(cond_dim: int = DIM, size: str = "DiT-S/2", **options: object) -> EDMPrecond:
    """A denoiser on the fake GPU."""
    with torch.device(CUDA):
        return build_denoiser(size, SIDE, 4, cond_dim, **NETWORK | options)


def data(width: int = DIM) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and conditions."""
    latents = torch.randn(BATCH, 4, SIDE, SIDE, device=CUDA)
    return latents, torch.randn(BATCH, width, device=CUDA)


NETWORKS = {
    "decoder": {},
    "no decoder": {"use_decoder": False},
    "class token": {"pad_cls_token": True},
    "no mask token": {"mae_loss_coef": 0.0},
    "self-conditioning": {"self_cond": True},
    "external features": {"ext_feature_dim": 3},
    "learned perturbation": {"perturbation": True},
    "exact GELU": {"mlp": "gelu"},
    "activation checkpointing": {},
    "U-ViT": {"size": "UViT-S/2", "use_decoder": False},
}


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_forward_stays_on_the_device(name, mask_ratio):
    denoiser = network(**NETWORKS[name]).train()
    denoiser.model.activation_checkpointing = name == "activation checkpointing"
    latents, cond = data(denoiser.model.cond_width)
    random = random_for_loss(denoiser, latents, cond, mask_ratio)
    assert on_cuda(random.normal, random.noise)
    encoder = network(**NETWORKS[name]).eval()
    with WithoutCopies():
        losses = edm_loss(denoiser, latents, cond, random, mae_loss_coef=0.1, encoder=encoder)
    assert on_cuda(losses) and losses.shape == (BATCH,)


@pytest.mark.parametrize("size", ["DiT-S/2", "UViT-S/2"])
@pytest.mark.parametrize("kind", get_args(Adaptation))
def test_an_adapted_network_stays_on_the_device(kind, size):
    denoiser = network(size=size, use_decoder=False)
    adapt(denoiser, kind, rank=2)
    latents, cond = data()
    assert on_cuda(denoiser(latents, 1.5, cond), *denoiser.parameters())
    assert on_cuda(*plain_weights(denoiser.state_dict()).values())


def test_an_aligned_training_stays_on_the_device():
    latents, cond = data()
    with torch.device(CUDA):
        aligned = AlignedDenoiser(network(), features=6, depth=1)
    random = random_for_loss(aligned.denoiser, latents, cond, 0.5)
    features = torch.randn(BATCH, 6, SIDE // 2, SIDE // 2, device=CUDA)
    with WithoutCopies():
        _, distances = aligned(latents, 1.5, cond, random.mask, features=features)
    assert on_cuda(distances) and distances.shape == (BATCH,)


def test_edits_stay_on_the_device():
    latents, y = data()
    matrix, number = torch.randn(DIM, DIM, device=CUDA), torch.randn((), device=CUDA)
    trait = Trait(y[0], y[1], matrix, y[2], number, number)
    assert on_cuda(with_trait(y, trait))
    away = AgainstCondition(network(), y[3])
    mask = torch.ones(1, SIDE, SIDE, device=CUDA)
    known = keeping(guided(away, y, 2.0), latents[0], mask)
    settings = SamplerSettings(num_steps=3)
    noise = invert(guided(network(), y), latents, settings)
    assert on_cuda(sample(known, noise, last_part(settings, 0.6)))


def test_a_noise_level_that_is_a_number_goes_to_the_device():
    latents, cond = data()
    assert on_cuda(network()(latents, 1.5, cond))


def test_a_network_evaluation_does_not_wait_for_a_copy_of_its_noise_level():
    denoiser, (latents, cond) = network(), data()
    with WithoutCopies():
        denoiser(latents, 1.5, cond)
        denoiser.summary(latents, 80, cond)


@pytest.mark.parametrize("kind", [k for k in get_args(PerturbationKind) if k != "learnable"])
@pytest.mark.parametrize("rng", [WHOLE_BATCH, RankSlice(2, BATCH, 8).random(None)], ids=str)
def test_a_perturbed_embedding_stays_on_the_device(kind, rng):
    _, y = data()
    assert on_cuda(perturb(y, Perturbation(kind, 0.8), rng))


@pytest.mark.parametrize("perturbation", [0, 0.5])
@pytest.mark.parametrize("features", [0, 3])
def test_a_training_condition_stays_on_the_device(perturbation, features):
    config = config_from_dict(
        {
            "data": {"norm_feature": True},
            "model": {"num_classes": DIM, "ext_feature_dim": features},
            "train": {"perturbation": perturbation},
        }
    )
    _, y = data(DIM + features)
    assert on_cuda(make_condition(y, config, WHOLE_BATCH))


SAMPLERS = {
    "heun": SamplerSettings(num_steps=3),
    "euler": SamplerSettings("euler", num_steps=3),
    "dpmpp_2m": SamplerSettings("dpmpp_2m", num_steps=3),
    "churn": SamplerSettings(num_steps=3, S_churn=10),
    "ablation": SamplerSettings(
        num_steps=3, discretization="vp", schedule="vp", scaling="vp", S_churn=10
    ),
}


@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_with_guidance_stays_on_the_device(name, scale):
    noise = SeededNoise(range(BATCH), CUDA)
    latents, (_, cond) = noise.randn((4, SIDE, SIDE)), data()
    denoise = guided(network(), cond, scale, (0.1, 50.0))
    with WithoutCopies():
        x = sample(denoise, latents, SAMPLERS[name], torch.randn_like)
    assert on_cuda(x) and x.dtype == torch.float64
    assert on_cuda(noise.randint(9))


def test_a_distillation_stays_on_the_device_and_waits_for_no_copy():
    student, teacher, (latents, cond) = network(), network(), data()
    segments = Segments((80.0, 5.0, 1.0), teacher_steps=2)
    with WithoutCopies():
        losses = distillation_loss(
            student,
            lambda cond: guided(teacher, cond, 2.0),
            latents,
            cond,
            torch.randn_like(latents),
            segments,
            scale=0.1,
        )
    assert on_cuda(losses)


def test_the_prior_stays_on_the_device_and_waits_for_no_copy():
    with torch.device(CUDA):
        prior = EmbeddingPrior(DIM, width=8, depth=1)
        y, bank = torch.randn(BATCH, DIM), torch.randn(9, DIM)
    with WithoutCopies():
        assert on_cuda(prior.sample(y, torch.randn_like(y), freedom=0.7))
        assert on_cuda(prior_loss(prior, y, bank, (1.0, 10.0)))


def test_the_record_of_a_step_waits_for_no_copy():
    guard, window = StepGuard(CUDA), Window(CUDA)
    loss, norm = torch.ones((), device=CUDA), torch.ones((), device=CUDA)
    with WithoutCopies():
        verdict = guard.check(loss, norm)
        window.add(loss, norm, verdict)
        skip_unless(verdict.good, torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]))


def test_a_copy_that_waits_does_fail():
    x = torch.ones(2, device=CUDA)
    for copy in (lambda: torch.as_tensor(1.5, device=CUDA), x.cpu, lambda: x.new_tensor([1.0])):
        with pytest.raises(AssertionError, match="waits"), WithoutCopies():
            copy()


def test_an_average_of_the_weights_stays_on_the_device(monkeypatch):
    # PyTorch copies a fake tensor into another fake mode, so a second network is the copy.
    with monkeypatch.context() as patch:
        patch.setattr("copy.deepcopy", lambda *_: network())
        ema = EMA(network())
    ema.update(0.9)
    assert on_cuda(*ema.module.parameters())


def test_a_caption_is_moved_on_the_device_of_its_embedding():
    _, y = data()
    assert on_cuda(towards_images(y, torch.zeros(DIM, device=CUDA)))


def test_a_tensor_on_another_device_does_fail():
    latents, cond = data()
    with pytest.raises(RuntimeError, match="two devices"):
        network()(latents, torch.ones(BATCH), cond.cpu())
