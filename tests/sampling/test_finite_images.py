"""Images are finite, or one line says why not; every combination of precisions gives images."""

from itertools import product

import pytest
import torch
from tiny import DIM, RESOLUTION, make_overflowing, make_tiny_config, make_tiny_denoiser

from utils.base.errors import UserError
from utils.config.sampling_sections import Sampling
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.sampling.generate import generate

AMPS, PRECISIONS = ("no", "bf16", "fp16"), ("float32", "bf16", "fp16")


def generated(autoencoder, conds=None, denoiser=None, **sampling) -> torch.Tensor:
    """Return two images."""
    conds = torch.ones(2, DIM) if conds is None else conds
    options = Sampling(**{"num_steps": 2, "cfg_scale": 2.0} | sampling)
    batches = generate(denoiser or make_tiny_denoiser(), autoencoder, conds, [0, 1], options)
    return torch.cat([images for _, images in batches])


@pytest.mark.parametrize(("precision", "amp"), [*product(PRECISIONS, AMPS)])
def test_every_combination_of_precisions_encodes_and_samples_on_a_cpu(encoders, precision, amp):
    config = make_tiny_config(encoders, encoders={"precision": precision})
    autoencoder, clip = load_config_autoencoder(config), load_config_clip(config.encoders)
    exact = load_config_autoencoder(make_tiny_config(encoders))
    pixels = torch.randint(0, 256, (2, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8)
    assert clip.encode_images(pixels).isfinite().all()
    conds = clip.encode_texts(["a man", "a face"])
    assert autoencoder.encode_moments(pixels.float() / 127.5 - 1).isfinite().all()
    images = generated(autoencoder, conds, amp=amp)
    expected = generated(exact, conds, amp="no")
    assert (images.int() - expected.int()).abs().float().mean() < 4


@pytest.mark.parametrize("amp", AMPS)
def test_guidance_that_overflows_is_refused_by_name(encoders, amp):
    autoencoder, denoiser = (
        load_config_autoencoder(make_tiny_config(encoders)),
        make_tiny_denoiser(),
    )
    with torch.no_grad():
        denoiser.model.final_layer.linear.weight.mul_(1e34)
    with pytest.raises(UserError, match=r"infinite latents; .*sampling\.cfg_scale \(1000000\.0\)"):
        generated(autoencoder, denoiser=denoiser, cfg_scale=1e6, amp=amp)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_vae_that_overflows_in_float32_too_is_refused_with_the_setting(tmp_path, precision):
    config = make_tiny_config(tmp_path, encoders={"precision": precision})
    make_overflowing(tmp_path / "vae", 3e38)
    with pytest.raises(UserError, match=r"the VAE gave NaN or infinite pixels; .*precision"):
        generated(load_config_autoencoder(config))


def test_a_vae_that_overflows_in_float16_alone_decodes_in_float32_and_says_so_once(
    tmp_path, capsys
):
    config = make_tiny_config(tmp_path, encoders={"precision": "fp16"})
    make_overflowing(tmp_path / "vae", 6e4)
    images = generated(load_config_autoencoder(config))
    exact = generated(load_config_autoencoder(make_tiny_config(tmp_path)))
    assert (
        images == exact
    ).float().mean() > 0.9  # weights are rounded, and pixels are black or white
    assert capsys.readouterr().err.count("decoded again in float32") == 1
    autoencoder = load_config_autoencoder(config)
    for _ in range(2):
        assert torch.equal(generated(autoencoder), images)
    assert autoencoder.rescued == 4
    assert capsys.readouterr().err.count("decoded again in float32") == 1


def test_only_the_images_that_overflow_are_decoded_again(tmp_path):
    config = make_tiny_config(tmp_path, encoders={"precision": "fp16"})
    latents = torch.randn(16, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    make_overflowing(tmp_path / "vae", 1.0)
    exact = load_config_autoencoder(make_tiny_config(tmp_path))
    size = exact.vae.decode(exact.unscaled(latents)).abs().amax(dim=(1, 2, 3))
    ordered = size.sort().values
    between = (ordered[7] + ordered[8]) / 2  # half of the images are above it
    make_overflowing(tmp_path / "vae", 65504 / float(between))
    half = load_config_autoencoder(config)
    plain = half.vae.decode(half.unscaled(latents).half())
    together, alone = half.decode(latents), [half.decode(latents[i : i + 1]) for i in range(16)]
    overflowing = size > between
    assert not plain[overflowing].isfinite().flatten(1).all(dim=1).any()
    assert torch.equal(together[~overflowing], plain[~overflowing].float().clamp(-1, 1))
    assert together.isfinite().all() and half.rescued == 16
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-2)


def test_a_condition_that_is_not_finite_is_refused(encoders):
    autoencoder = load_config_autoencoder(make_tiny_config(encoders))
    with pytest.raises(UserError, match="the condition holds NaN"):
        generated(autoencoder, torch.full((2, DIM), float("nan")))


def test_a_network_that_breaks_in_sampling_is_refused(encoders):
    denoiser = make_tiny_denoiser()
    with torch.no_grad():
        denoiser.model.final_layer.linear.weight[0, 0] = float("nan")
    autoencoder = load_config_autoencoder(make_tiny_config(encoders))
    with pytest.raises(UserError, match="the network gave NaN or infinite latents"):
        generated(autoencoder, denoiser=denoiser)
