"""Statistics of each channel of the latents: measured by preprocessing, applied everywhere."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from preprocessing import N_TRAIN, Z

from models.autoencoder import load_autoencoder
from utils.base.errors import UserError
from utils.config.load import load_config
from utils.config.schema import Config
from utils.data.latent_dataset import LatentDataset, data_differences, open_data
from utils.data.lmdb_reader import LMDBReader
from utils.pretrained.denoisers import export_safetensors, load_denoiser
from utils.pretrained.encoders import load_config_autoencoder
from utils.pretrained.latent_statistics import read_latent_statistics
from utils.release.folder import export_folder
from utils.release.pipeline import TextToFacePipeline
from utils.sampling.text_to_face import TextToFace

NAME = "latent_statistics.json"


@pytest.fixture
def encoded(project) -> Config:
    """Latents of a project, and its config, which names their statistics."""
    project.run(Z, "--with_clip")
    return with_statistics(project)


def with_statistics(project, place: str | None = NAME) -> Config:
    """Let a project's config name a file beside its latents; return it."""
    path = None if place is None else project.train / "z" / place
    encoders = project.config.encoders.model_copy(update={"latent_statistics": path})
    config = project.config.model_copy(update={"encoders": encoders})
    project.yaml.write_text(config.to_yaml())
    return load_config(project.yaml)


def test_preprocessing_measures_the_training_latents_alone(encoded, project):
    latents = LMDBReader(project.train / "z").read(range(N_TRAIN)).astype(np.float64)
    found = json.loads((project.train / "z" / NAME).read_text())
    np.testing.assert_allclose(found["mean"], latents.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found["std"], latents.std(axis=(0, 2, 3)), rtol=1e-6)
    assert found["images"] == N_TRAIN and not (project.test / "z" / NAME).exists()


def test_moments_count_as_the_latents_that_are_sampled_from_them(project):
    project.run(Z, "--split", "train", "--store", "moments")
    found = read_latent_statistics(project.train / "z" / NAME)
    data = LatentDataset(project.train / "z")
    torch.manual_seed(0)
    sampled = torch.cat([data.batch(torch.arange(N_TRAIN))[0] for _ in range(3000)])
    torch.testing.assert_close(found.mean.flatten(), sampled.mean((0, 2, 3)), rtol=0.05, atol=0.01)
    torch.testing.assert_close(found.std.flatten(), sampled.std((0, 2, 3)), rtol=0.02, atol=0)


def test_shards_and_a_second_run_give_the_same_file(encoded, project, tmp_path):
    whole = project.train / "z" / NAME
    content, changed = whole.read_bytes(), whole.stat().st_mtime_ns
    project.run(
        Z
    )  # the database need not exist for the key to be set, and nothing is measured anew
    assert whole.stat().st_mtime_ns == changed
    shutil.rmtree(project.train / "z")
    for shard in (1, 0):
        assert not whole.exists()
        project.run(Z, "--split", "train", "--num_shards", "2", "--shard", str(shard))
    assert whole.read_bytes() == content


def test_training_reads_normalised_latents_and_the_vae_decodes_them(encoded, project):
    plain, data = open_data(with_statistics(project, None)), open_data(encoded)
    raw, z = (d.batch(torch.arange(N_TRAIN))[0] for d in (plain, data))
    assert z.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(z.shape[1]))
    vae, normalised = load_autoencoder(project.folder / "vae"), load_config_autoencoder(encoded)
    torch.testing.assert_close(normalised.decode(z), vae.decode(raw), rtol=1e-4, atol=1e-5)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    moments = vae.encode_moments(images)
    scaled, log_variance = normalised.scaled_moments(moments).chunk(2, dim=1)
    found = read_latent_statistics(project.train / "z" / NAME)
    expected = found.normalised(vae.mean_latents(moments))
    torch.testing.assert_close(scaled, expected, rtol=1e-4, atol=1e-4)
    wide = vae.scaled_moments(moments).chunk(2, dim=1)[1]
    torch.testing.assert_close(log_variance, wide - 2 * found.std.log())
    assert data_differences(plain.identity, data.identity)  # a run does not go on without them


def test_a_trained_network_takes_its_statistics_along(project, monkeypatch):
    with_statistics(project)
    config, out = project.train_and_generate("a face")
    expected = np.asarray(Image.open(out / "00_000.png")).astype(int)
    assert config.encoders.latent_statistics == project.train / "z" / NAME
    checkpoint = project.folder / "own" / "checkpoints" / "0000002.pt"
    release, file = project.folder / "released", project.folder / "file" / "dit.safetensors"
    export_folder(checkpoint, release, device="cpu")
    file.parent.mkdir()
    assert str(project.train / "z" / NAME) in export_safetensors(checkpoint, file)
    for name in ("vae", "clip"):
        shutil.copytree(project.folder / name, file.parent / name)
    shutil.copy(project.train / "z" / NAME, file.parent)
    elsewhere = project.folder / "elsewhere"
    elsewhere.mkdir()
    for place in (release, file.parent):
        shutil.move(place, elsewhere)
    for name in ("lmdb", "vae", "clip"):
        (project.folder / name).rename(project.folder / f"old {name}")
    monkeypatch.chdir(elsewhere)
    for source in ("released", "file/dit.safetensors"):
        faces = TextToFace.load(source, device="cpu")
        image = np.asarray(faces.generate("a face").images[0]).astype(int)
        assert np.abs(image - expected).max() <= 3  # the network is in float16
        pipeline = TextToFacePipeline.holding(faces)
        np.testing.assert_array_equal(np.asarray(pipeline("a face").images[0]), image)
    encoders = faces.config.encoders.model_copy(update={"latent_statistics": None})
    with pytest.raises(UserError, match=r"was trained with encoders.latent_statistics=.*json, and"):
        load_denoiser(Path(source), config=faces.config.model_copy(update={"encoders": encoders}))


def change(**values: object):
    """Return what rewrites entries of a file of statistics."""

    def rewrite(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return rewrite


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "is not there; preprocess_scripts/create_latentspace_lmdb.py writes it"),
        (lambda path: path.write_text("{"), "cannot be read"),
        (change(std=[1.0, 0.0, 1.0, 1.0]), "deviations above 0"),
        (change(mean=[0.0] * 3, std=[1.0] * 3), "holds 3 channels, and the latents have 4"),
        (change(vae="vae-other"), "was measured with vae vae-other, and the latents have vae-"),
        (change(scale_factor=2.0), r"was measured with scale factor 2.0, and the latents have"),
    ],
)
def test_statistics_that_do_not_fit_are_one_line(encoded, spoil, said):
    spoil(encoded.encoders.latent_statistics)
    for use in (open_data, load_config_autoencoder):
        with pytest.raises(UserError, match=rf"encoders\.latent_statistics: .*{said}") as fault:
            use(encoded)
        assert "\n" not in str(fault.value)


def test_statistics_of_other_latents_are_refused_beside_and_noted_elsewhere(
    encoded, project, tmp_path, capsys
):
    kept = tmp_path / "kept.json"
    shutil.copy(project.train / "z" / NAME, kept)
    (project.folder / "train" / "images" / "000008.png").unlink()
    shutil.rmtree(project.train)
    project.run(Z, "--with_clip")
    shutil.copy(kept, project.train / "z" / NAME)
    with pytest.raises(UserError, match="other latents than those beside it; measure them again: "):
        open_data(encoded)
    shutil.copy(kept, project.train / "z" / "elsewhere.json")
    encoders = encoded.encoders.model_copy(update={"latent_statistics": kept})
    capsys.readouterr()
    open_data(encoded.model_copy(update={"encoders": encoders}))
    assert "was measured from other latents than" in capsys.readouterr().err


def test_a_file_of_means_and_deviations_alone_is_enough(encoded):
    path = encoded.encoders.latent_statistics
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: values[key] for key in ("mean", "std")}))
    z, _ = open_data(encoded).batch(torch.arange(N_TRAIN))
    assert z.mean((0, 2, 3)).abs().max() < 1e-5
