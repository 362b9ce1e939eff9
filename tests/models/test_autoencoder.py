"""The VAE: all file formats, and its latents."""

import json
import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from ldm_vae import ldm_names
from safetensors.torch import load_file, save_file
from tiny import make_tiny_config, make_tiny_vae

from models.autoencoder import Autoencoder, load_autoencoder, vae_with
from models.vae_network import VaeConfig
from utils.pretrained.encoders import load_config_autoencoder

# A reference file of 5 MB, which the repository does not carry.
LDM_FILE = Path(os.environ.get("GOLDEN", "tests/golden"), "ldm_vae_tiny.pth")


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Autoencoder:
    return load_autoencoder(make_tiny_vae(tmp_path_factory.mktemp("vae")))


def images(n: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def two_level_vae() -> AutoencoderKL:
    """Return a VAE with random weights; its levels differ in width, so that none can be swapped."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
    ).eval()


@pytest.mark.skipif(not LDM_FILE.exists(), reason=f"GOLDEN names no folder with {LDM_FILE.name}")
def test_ldm_file_meets_the_published_encoder_and_decoder(golden):
    expected = load_file(golden / "ldm_vae_tiny_io.safetensors")
    vae = load_autoencoder(LDM_FILE)
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    moments = vae.encode_moments(expected["image"])
    torch.testing.assert_close(moments, expected["moments"], **tolerance)
    decoded = vae.decode(expected["scaled_latent"])
    torch.testing.assert_close(decoded, expected["decoded"].clamp(-1, 1), **tolerance)
    assert (vae.scale_factor, vae.latent_channels, vae.downsample) == (0.18215, 4, 8)


def in_hub_cache(folder: Path, name: str, monkeypatch) -> Path:
    """Make a folder that the hub's library, offline, takes for its cached copy of a repository."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = folder / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


def with_old_attention_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename attention weights as in the published folder sd-vae-ft-ema."""
    pieces = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in weights.items():
        for new, old in pieces.items():
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{old}")
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize(
    "form", ["pth", "pth_in_checkpoint", "safetensors", "diffusers", "bin", "old_names", "hub"]
)
def test_every_form_of_a_vae_gives_the_same_autoencoder(tmp_path, monkeypatch, form):
    original = two_level_vae()
    weights, path = ldm_names(original), tmp_path / f"vae.{form[:3]}"
    if form == "pth":
        torch.save(weights, path)
    elif form == "pth_in_checkpoint":
        whole = {f"first_stage_model.{name}": tensor for name, tensor in weights.items()}
        torch.save({"state_dict": whole | {"other.weight": torch.zeros(1)}, "epoch": 3}, path)
    elif form == "safetensors":
        save_file(weights, path := tmp_path / "vae.safetensors")
    elif form == "hub":
        path = "somebody/some-vae"
        original.save_pretrained(in_hub_cache(tmp_path, path, monkeypatch))
    else:
        original.save_pretrained(path := tmp_path / "folder")
        file = path / "diffusion_pytorch_model.safetensors"
        if form == "bin":
            torch.save(load_file(file), file.with_suffix(".bin"))
            file.unlink()
        elif form == "old_names":
            save_file(with_old_attention_names(load_file(file)), file, {"format": "pt"})
    vae = load_autoencoder(path)
    network = vae_with(original.state_dict(), VaeConfig.from_dict(original.config), "a VAE")
    assert vae.identity == Autoencoder(network, 1.0, torch.device("cpu"), torch.float32).identity
    with torch.no_grad():
        expected = original.encode(images()).latent_dist.parameters
    torch.testing.assert_close(vae.encode_moments(images()), expected)
    assert vae.scale_factor == pytest.approx(0.18215)


@pytest.mark.parametrize("memory", ["full", "sliced", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [32, 40, 72])
@torch.inference_mode()
def test_the_network_computes_what_that_of_diffusers_computes(memory, dtype, size):
    theirs = two_level_vae()
    ours = vae_with(theirs.state_dict(), VaeConfig.from_dict(theirs.config), "a VAE").to(dtype)
    torch.nn.Module.to(theirs, dtype)
    ours.memory = memory
    if memory != "full":
        theirs.enable_slicing()
    if memory == "tiled":
        theirs.enable_tiling()
    moments = theirs.encode(images(3, size).to(dtype)).latent_dist.parameters
    assert torch.equal(ours.encode(images(3, size).to(dtype)), moments)
    assert torch.equal(ours.decode(moments[:, :4]), theirs.decode(moments[:, :4]).sample)


def test_a_vae_with_other_layers_is_refused(tmp_path):
    make_tiny_vae(tmp_path / "vae")
    file = tmp_path / "vae" / "config.json"
    for change in ({"act_fn": "gelu"}, {"down_block_types": ["AttnDownEncoderBlock2D"]}):
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        with pytest.raises(ValueError, match="vae: its config.json asks for .*, which is not"):
            load_autoencoder(tmp_path / "vae")


def test_scale_factor_can_be_given_instead_of_the_stated_one(tmp_path):
    folder = make_tiny_vae(tmp_path / "vae")
    assert load_autoencoder(folder, scale_factor=0.5).scale_factor == 0.5


def test_other_weights_have_another_identity(tmp_path, vae):
    same, other = (load_autoencoder(make_tiny_vae(tmp_path / f"{s}", s)) for s in (0, 1))
    assert same.identity == vae.identity != other.identity


def test_moments_and_latents_have_the_stated_shapes(vae):
    moments = vae.encode_moments(images(3, 32))
    assert moments.shape == (3, 8, 4, 4)
    assert vae.mean_latents(moments).shape == (3, 4, 4, 4)
    assert vae.decode(vae.mean_latents(moments)).shape == (3, 3, 32, 32)


def test_mean_latents_are_decoded_to_the_vaes_own_reconstruction(vae):
    moments = vae.encode_moments(images())
    with torch.no_grad():
        expected = vae.vae.decode(moments[:, :4]).clamp(-1, 1)
    torch.testing.assert_close(vae.decode(vae.mean_latents(moments)), expected)


def test_sampled_latents_follow_the_posterior(vae):
    mean, log_variance = torch.full((4000, 1), 3.0), torch.full((4000, 1), -1.0)
    moments = torch.cat([mean, log_variance], dim=1)[:, :, None, None]
    latents = vae.sample_latents(moments, torch.Generator().manual_seed(0)) / vae.scale_factor
    assert latents.mean().item() == pytest.approx(3.0, abs=0.05)
    assert latents.var().log().item() == pytest.approx(-1.0, abs=0.1)


def test_sampled_latents_repeat_with_the_generator(vae):
    moments = vae.encode_moments(images())
    samples = [vae.sample_latents(moments, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*samples)


def test_decoded_images_stay_in_range(vae):
    assert vae.decode(100 * torch.randn(1, 4, 2, 2)).abs().max() <= 1


@pytest.mark.parametrize("precision, tolerance", [("bf16", 0.05), ("fp16", 0.005)])
def test_half_precision_is_used_and_answers_in_float32(tmp_path, precision, tolerance):
    exact = load_config_autoencoder(make_tiny_config(tmp_path)).encode_moments(images())
    config = make_tiny_config(tmp_path, encoders={"precision": precision})
    vae = load_config_autoencoder(config)
    moments = vae.encode_moments(images())
    assert moments.dtype == vae.decode(vae.mean_latents(moments)).dtype == torch.float32
    assert moments.is_inference()
    assert 0 < (moments - exact).abs().max() < tolerance * exact.abs().max()


def test_slices_and_tiles_need_less_memory_for_the_same_images():
    """Slices are exact; tiles of an image larger than in the training blend at their seams."""
    source = Path(__file__).parents[2] / "assets" / "demo" / "vae"
    full, sliced, tiled = (load_autoencoder(source, memory=m) for m in ("full", "sliced", "tiled"))
    small, large = torch.zeros(2, 4, 16, 16), torch.zeros(1, 4, 24, 24)
    for z in (small, large):
        z[:, :, 4:12, 2:8] = torch.tensor([1.0, -0.5, 0.5, 0.2])[:, None, None]
    expected = full.decode(small)
    assert expected.std() > 0.1
    for vae in (sliced, tiled):
        torch.testing.assert_close(vae.decode(small), expected, rtol=1e-4, atol=1e-5)
    encoded = full.encode_moments(expected)
    torch.testing.assert_close(sliced.encode_moments(expected), encoded, rtol=1e-4, atol=1e-4)
    assert 0 < (tiled.decode(large) - full.decode(large)).abs().mean() < 0.1


@pytest.mark.parametrize("form", ["vae.pth", "folder"])
def test_file_with_code_in_it_is_refused_and_not_run(tmp_path, form):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was_run",))

    path = tmp_path / form
    if form == "folder":
        two_level_vae().save_pretrained(path)
        (path / "diffusion_pytorch_model.safetensors").unlink()
    file = path / "diffusion_pytorch_model.bin" if form == "folder" else path
    torch.save({"encoder.conv_in.weight": Payload()}, file)
    with pytest.raises(ValueError, match=form):
        load_autoencoder(path)
    assert not (tmp_path / "was_run").exists()


def test_what_is_not_a_vae_is_refused_with_its_path(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    weights = ldm_names(two_level_vae())
    del weights["decoder.conv_out.bias"]
    torch.save(weights, tmp_path / "incomplete.pth")
    (tmp_path / "folder").mkdir()
    for name in ("broken.safetensors", "other.pth", "incomplete.pth", "folder"):
        with pytest.raises(ValueError, match=name):
            load_autoencoder(tmp_path / name)


@pytest.mark.parametrize("source", ["assets/nothing_here", "/nowhere/vae", "vae_missing.pth"])
def test_missing_path_is_named(source):
    with pytest.raises(FileNotFoundError, match=source):
        load_autoencoder(source)
