"""`sampling.preview`: a tiny autoencoder decodes a training's sample grids, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from preprocessing import Z
from safetensors.torch import load_file
from tiny import make_tiny_vae

from models.autoencoder import load_autoencoder
from utils.base.errors import UserError
from utils.config.load import config_from_dict, load_config
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import export_safetensors
from utils.pretrained.effective_config import read_config
from utils.pretrained.encoders import load_config_autoencoder, load_config_preview
from utils.pretrained.latent_statistics import read_latent_statistics


def save_tiny(folder: Path, channels: int = 4, levels: int = 4, **options: object) -> Path:
    """Write a tiny autoencoder with random weights; return its folder."""
    torch.manual_seed(1)
    widths, counts = (8,) * levels, (1,) * levels
    AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=counts,
        num_decoder_blocks=counts,
        latent_channels=channels,
        **options,
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("own", [{}, {"scaling_factor": 0.7, "shift_factor": 0.2}])
def test_it_decodes_the_latents_as_its_vae_scales_them_whatever_the_network_sees(project, own):
    project.run(Z, "--split", "train")
    folder = save_tiny(project.folder / "preview", **own)
    statistics = project.train / "z" / "latent_statistics.json"
    plain = load_autoencoder(project.folder / "vae")
    encoders = {"latent_statistics": str(statistics), "scale_factor": plain.scale_factor}
    values = project.config.to_dict()
    values["sampling"]["preview"] = str(folder)
    tiny = load_autoencoder(folder)
    raw = torch.randn(3, 4, 2, 2)
    expected = tiny.decode(plain.scaled(raw))
    for changed in ({}, encoders, {"scale_factor": 3.0}):
        values["encoders"] |= {"latent_statistics": None, "scale_factor": None} | changed
        config = config_from_dict(values)
        vae = load_config_autoencoder(config)
        seen = vae.scaled(raw)
        torch.testing.assert_close(
            load_config_preview(config, vae).decode(seen), expected, rtol=1e-3, atol=1e-4
        )
    found = read_latent_statistics(statistics)
    assert (found.std - 1).abs().max() > 0.01  # otherwise nothing was tested


def test_only_the_grids_of_a_training_are_previews(project):
    config, plain = project.train_and_generate("a face")
    title = Image.open(project.folder / "own" / "samples" / "0000002.png").info["Title"]
    assert "preview" not in title
    without = project.folder / "without"
    for name in ("own", "generated"):
        (project.folder / name).rename(without.with_name(f"without {name}"))
    preview = save_tiny(project.folder / "preview")
    sampling = config.sampling.model_copy(update={"preview": str(preview)})
    config = load_config(project.yaml).model_copy(update={"sampling": sampling})
    project.yaml.write_text(config.to_yaml())
    _, out = project.train_and_generate("a face")
    runs = [project.folder / name for name in ("without own", "own")]
    grids = [Image.open(run / "samples" / "0000002.png") for run in runs]
    assert grids[1].info["Title"].endswith("decoded by sampling.preview")
    assert np.abs(np.asarray(grids[0]).astype(int) - np.asarray(grids[1])).max() > 50
    checkpoints = [run / "checkpoints" / "0000002.pt" for run in runs]
    weights = [load_checkpoint(path)["ema"] for path in checkpoints]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    images = [
        np.asarray(Image.open(p / "00_000.png")) for p in (out.with_name("without generated"), out)
    ]
    np.testing.assert_array_equal(*images)
    assert "preview" not in Image.open(out / "00_000.png").info
    export_safetensors(checkpoints[1], project.folder / "dit.safetensors")
    assert load_file(project.folder / "dit.safetensors")
    assert read_config(project.folder / "dit.safetensors").sampling.preview is None


@pytest.mark.parametrize(
    ("preview", "said"),
    [
        (lambda at: at / "nowhere.pth", "no VAE at .*or set sampling.preview=null"),
        (lambda at: make_tiny_vae(at), "is no tiny autoencoder"),
        (lambda at: save_tiny(at, channels=16), "of 16 channels, 8 times down, and .* has 4, 8"),
        (lambda at: save_tiny(at, levels=3), "of 4 channels, 4 times down, and .* has 4, 8"),
    ],
)
def test_another_network_is_one_line(project, preview, said):
    values = project.config.to_dict()
    values["sampling"]["preview"] = str(preview(project.folder / "preview"))
    config = config_from_dict(values)
    with pytest.raises(UserError, match=f"sampling.preview: .*{said}") as fault:
        load_config_preview(config, load_config_autoencoder(config))
    assert "\n" not in str(fault.value)
