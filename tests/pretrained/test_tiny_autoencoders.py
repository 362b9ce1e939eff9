"""Tiny autoencoders as `encoders.vae`: diffusers' AutoencoderTiny, and published pairs of files.

Their weights are random, but for those of TAEF2 in the folder that PHOTOS names.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import crude_face
from diffusers import AutoencoderTiny, DiffusionPipeline
from PIL import Image
from plain_clip import as_tensor
from preprocessing import Z
from safetensors.torch import save_file
from tiny import RESOLUTION

from models.autoencoder import load_autoencoder
from models.encoder_files import latent_layout
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.data.image_batches import iterate_batches
from utils.data.lmdb_reader import LMDBReader
from utils.pretrained.encoders import load_config_autoencoder
from utils.release.folder import export_folder
from utils.sampling.text_to_face import TextToFace

PHOTOS = Path(os.environ.get("PHOTOS", "no folder"))
SHAPES = {
    "published": {},
    "small": {
        "latent_channels": 16,
        "encoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 2, 1),
        "decoder_block_out_channels": (16, 16, 16),
        "num_decoder_blocks": (2, 0, 1),
        "scaling_factor": 0.5,
        "shift_factor": 0.1,
    },
}


def tiny(shape: str = "small") -> AutoencoderTiny:
    """Return a network of diffusers with random weights."""
    torch.manual_seed(0)
    return AutoencoderTiny(**SHAPES[shape]).eval()


def pair_of(vae: AutoencoderTiny) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of both halves with their published names, in which the bound counts."""
    halves = {"encoder": {}, "decoder": {}}
    for name, tensor in vae.state_dict().items():
        half, _, number, rest = name.split(".", 3)
        halves[half][f"{int(number) + (half == 'decoder')}.{rest}"] = tensor.contiguous()
    return halves


def save_pair(folder: Path, halves: dict, name: str = "taesd", suffix: str = ".pth") -> Path:
    """Write a pair of files as published; return their folder."""
    folder.mkdir(exist_ok=True)
    for half, weights in halves.items():
        save = save_file if suffix == ".safetensors" else torch.save
        save(weights, folder / f"{name}_{half}{suffix}")
    return folder


def pooled() -> dict[str, dict[str, torch.Tensor]]:
    """Return the halves of a small autoencoder, 8 times down, whose inner blocks are pooled."""
    torch.manual_seed(0)
    widths, counts = (8,) * 4, (1, 1, 1, 1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=counts,
        num_decoder_blocks=counts,
    )
    halves = pair_of(vae)
    for half, block in (("encoder", 7), ("decoder", 3)):
        halves[half] |= {
            f"{block}.pool.0.weight": torch.randn(16, 8, 1, 1),
            f"{block}.pool.1.weight": torch.rand(16),
            f"{block}.pool.1.bias": torch.randn(16),
            f"{block}.pool.3.weight": torch.randn(8, 16, 1, 1),
        }
    return halves


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_of_diffusers_encodes_and_decodes_as_diffusers_does(tmp_path, shape):
    theirs = tiny(shape)
    theirs.save_pretrained(tmp_path)
    ours, images = load_autoencoder(tmp_path), as_tensor(crude_face(0, 48)) / 127.5 - 1
    with torch.no_grad():
        z = theirs.encode(images).latents
        decoded = theirs.decode(z).sample.clamp(-1, 1)
    scale, shift = (theirs.config.get(key) for key in ("scaling_factor", "shift_factor"))
    expected = (z - shift) * scale
    torch.testing.assert_close(ours.mean_latents(ours.encode_moments(images)), expected)
    torch.testing.assert_close(ours.decode(expected), decoded)
    assert latent_layout(tmp_path) == (ours.latent_channels, ours.downsample)
    assert z.shape[1:] == (ours.latent_channels, 48 // ours.downsample, 48 // ours.downsample)
    assert decoded.std() > 0.01 and not ours.has_posterior


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pair_of_files_is_named_by_its_folder_or_by_either_file(tmp_path, suffix):
    vae = tiny("published")
    vae.save_pretrained(tmp_path / "diffusers")
    folder = save_pair(tmp_path / "pair", pair_of(vae), suffix=suffix)
    expected = load_autoencoder(tmp_path / "diffusers")
    for path in (folder, folder / f"taesd_encoder{suffix}", folder / f"taesd_decoder{suffix}"):
        loaded = load_autoencoder(path)
        assert loaded.identity == expected.identity
        assert loaded.scale_factor == 1 and latent_layout(path) == (4, 8)


def test_slices_give_what_all_images_at_once_give(tmp_path):
    whole, sliced = (
        load_autoencoder(save_pair(tmp_path, pooled()), memory=memory)
        for memory in ("full", "sliced")
    )
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    latents = whole.encode_moments(images)
    torch.testing.assert_close(sliced.encode_moments(images), latents)
    torch.testing.assert_close(sliced.decode(latents), whole.decode(latents))


def without_decoder(folder: Path) -> None:
    (folder / "taesd_decoder.pth").unlink()


def with_another_pair(folder: Path) -> None:
    save_pair(folder, pair_of(tiny("published")), "taesdxl")


def with_the_decoder_of_another(folder: Path) -> None:
    torch.save(pair_of(tiny("small"))["decoder"], folder / "taesd_decoder.pth")


def with_other_weights(folder: Path) -> None:
    for half in ("encoder", "decoder"):
        torch.save({"0.weight": torch.ones(3)}, folder / f"taesd_{half}.pth")


def cut(folder: Path) -> None:
    halves = pair_of(tiny("published"))
    del halves["encoder"]["4.conv.2.bias"]
    save_pair(folder, halves)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_decoder, r"taesd_decoder.pth is missing"),
        (with_another_pair, r"several tiny autoencoders; .*: taesd_encoder.pth, taesdxl_encoder"),
        (with_the_decoder_of_another, "gives 4 channels at 4 levels, its decoder takes 16 at 3"),
        (with_other_weights, "cannot load a VAE from .*taesd_encoder.pth: "),
        (cut, r"Missing key.*encoder\.layers\.4\.conv\.2\.bias"),
    ],
)
def test_a_wrong_pair_is_one_line(tmp_path, spoil, said):
    folder = save_pair(tmp_path / "pair", pair_of(tiny("published")))
    spoil(folder)
    with pytest.raises(UserError, match=said) as fault:
        load_config_autoencoder(config_from_dict({"encoders": {"vae": str(folder)}}))
    assert "\n" not in str(fault.value)


def test_another_activation_and_tiles_are_one_line(tmp_path):
    vae = tiny()
    vae.register_to_config(act_fn="silu")
    vae.save_pretrained(tmp_path / "silu")
    vae.register_to_config(act_fn="relu")
    vae.save_pretrained(tmp_path / "relu")
    for name, memory, said in (
        ("silu", "full", "asks for act_fn silu"),
        ("relu", "tiled", "tiles"),
    ):
        encoders = {"vae": str(tmp_path / name), "vae_memory": memory}
        with pytest.raises(UserError, match=said):
            load_config_autoencoder(config_from_dict({"encoders": encoders}))


def test_latents_of_one_image_have_no_distribution_to_store(project, capsys):
    project.without_sizes(vae=save_pair(project.folder / "tiny", pooled()))
    for store in ("sample", "moments"):
        assert f"--store {store}" in project.fails(capsys, Z, "--store", store)
    assert not project.train.exists()


@pytest.mark.parametrize("form", ["diffusers", "pooled pair"])
def test_it_goes_from_image_to_training_to_image_and_into_a_release_folder(project, form):
    place = project.folder / "tiny"
    if form == "diffusers":
        tiny("published").save_pretrained(place)
    else:
        save_pair(place, pooled())
    project.without_sizes(vae=place)
    config, out = project.train_and_generate("a face")
    latents = LMDBReader(config.data.root).read(range(9))
    assert latents.shape == (9, 4, RESOLUTION // 8, RESOLUTION // 8)
    generated = np.asarray(Image.open(out / "00_000.png")).astype(int)
    assert generated.shape == (RESOLUTION, RESOLUTION, 3) and generated.std() > 1

    release = project.folder / "released"
    export_folder(project.folder / "own" / "checkpoints" / "0000002.pt", release, device="cpu")
    place.rename(project.folder / "elsewhere")
    released = np.asarray(TextToFace.load(release, device="cpu").generate("a face").images[0])
    pipe = DiffusionPipeline.from_pretrained(
        release, custom_pipeline=str(release), trust_remote_code=True
    )
    np.testing.assert_array_equal(np.asarray(pipe("a face").images[0]), released)
    assert np.abs(released.astype(int) - generated).max() <= 3  # its network is in float16
    pipe.save_pretrained(project.folder / "again")
    again = TextToFace.load(project.folder / "again", device="cpu").generate("a face")
    np.testing.assert_array_equal(np.asarray(again.images[0]), released)


def test_taef2_rebuilds_test_photographs_at_33_db():
    if not (PHOTOS / "vae").is_dir():
        pytest.skip("PHOTOS names no folder with the autoencoder TAEF2")
    vae = load_autoencoder(PHOTOS / "vae")
    paths = sorted((PHOTOS / "test" / "images").iterdir())[:20]
    images = next(iterate_batches(paths, 128, len(paths))) / 127.5 - 1
    rebuilt = vae.decode(vae.mean_latents(vae.encode_moments(images)))
    error = (rebuilt - images).div(2).square().mean(dim=(1, 2, 3))
    assert (-10 * error.log10()).mean() >= 33
    assert latent_layout(PHOTOS / "vae") == (32, 8)
