"""Files from elsewhere: no file runs code when it is read, and each refusal is one clear line."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from payload import Payload
from tiny import make_tiny_clip, make_tiny_config, make_tiny_vae

from models.weights import read_tensors
from utils.base.errors import UserError
from utils.config.load import load_config
from utils.data.embeddings import read_image_mean
from utils.data.name_lists import read_names
from utils.evaluation.feature_networks import DinoFeatures, InceptionFeatures
from utils.evaluation.references import load_stats
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip


def torch_file(path: Path, payload: Payload) -> None:
    """Write a torch file that has the names of a checkpoint and of a VAE."""
    torch.save({"model": {"a": payload}, "ema": {}, "encoder.conv_in.weight": payload}, path)


def old_torch_file(path: Path, payload: Payload) -> None:
    """Write a torch file of the time before torch files were zip archives."""
    torch.save({"model": payload, "a": payload}, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path, payload: Payload) -> None:
    """Write a pickled list of names with the payload among them."""
    path.write_bytes(pickle.dumps(["1.jpg", payload], 2))


def archive(path: Path, payload: Payload) -> None:
    """Write a TorchScript archive whose pickle is the payload."""
    good = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            is_pickle = entry.filename.endswith("/data.pkl")
            new.writestr(entry, pickle.dumps(payload) if is_pickle else old.read(entry))


def npz(path: Path, payload: Payload) -> None:
    """Write reference statistics whose mean holds the payload."""
    with open(path, "wb") as file:
        np.savez(file, mu=np.array([payload], object), sigma=np.eye(1))


def npy(path: Path, payload: Payload) -> None:
    """Write a numpy array that holds the payload."""
    with open(path, "wb") as file:
        np.save(file, np.array([payload], object), allow_pickle=True)


def yaml_object(path: Path, payload: Payload) -> None:
    """Write a config that calls os.mkdir by a tag of PyYAML."""
    path.write_text(f"data: !!python/object/apply:os.mkdir ['{payload.target}']\n")


def load_vae(path: Path) -> None:
    """Load the VAE of a config that names `path`."""
    load_config_autoencoder(make_tiny_config(path.parent, encoders={"vae": str(path)}))


def load_clip(path: Path) -> None:
    """Load the CLIP of a config that names `path`."""
    load_config_clip(make_tiny_config(path.parent, encoders={"clip": str(path)}).encoders)


def vae_folder(path: Path, payload: Payload) -> None:
    """Write a folder of a VAE whose weights are a torch file with the payload."""
    make_tiny_vae(path)
    (path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"encoder.conv_in.weight": payload}, path / "diffusion_pytorch_model.bin")


def clip_folder(path: Path, payload: Payload) -> None:
    """Write a folder of a CLIP whose weights are a torch file with the payload."""
    make_tiny_clip(path)
    (path / "open_clip_model.safetensors").unlink()
    torch.save({"visual.proj": payload}, path / "open_clip_pytorch_model.bin")


@pytest.mark.parametrize(
    ("name", "make", "load"),
    [
        ("0000001.pt", torch_file, load_denoiser),
        ("0000001.pt", old_torch_file, load_denoiser),
        ("0000001.pt", plain_pickle, load_denoiser),
        ("0000001.pt", archive, load_denoiser),
        ("model.safetensors", torch_file, load_denoiser),
        ("autoencoder_kl.pth", torch_file, load_vae),
        ("autoencoder_kl.pth", old_torch_file, load_vae),
        ("vae_folder", vae_folder, load_vae),
        ("ViT-B-32.pt", torch_file, load_clip),
        ("ViT-B-32.pt", old_torch_file, load_clip),
        ("ViT-B-32.pt", archive, load_clip),
        ("clip_folder", clip_folder, load_clip),
        ("pt_inception.pth", torch_file, InceptionFeatures),
        ("pt_inception.pth", old_torch_file, InceptionFeatures),
        ("dinov2.pth", torch_file, DinoFeatures),
        ("names.pickle", plain_pickle, read_names),
        ("ref.npz", npz, load_stats),
        ("ref.npz", plain_pickle, load_stats),
        ("mean.npy", npy, lambda path: read_image_mean(path, 1)),
        ("mean.npy", plain_pickle, lambda path: read_image_mean(path, 1)),
        ("config.yaml", yaml_object, load_config),
    ],
)
def test_code_in_a_file_is_not_run_and_the_file_is_named(
    tmp_path: Path, name: str, make: Callable, load: Callable
):
    path, made = tmp_path / name, tmp_path / "made"
    make(path, Payload(made))
    with pytest.raises(UserError) as error:
        load(path)
    assert not made.exists()
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_the_payload_would_do_harm_if_it_were_unpickled(tmp_path):
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Payload(made)))
    assert made.exists()


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(9 * [f'*{a}'])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "train: {lr: *i}\n", r"train\.lr: .*got \[\["),
        (BOMB + "model: {perturbation: *i}\ntrain: {perturbation: 1}\n", "contradicts"),
        ("data: &a {resolution: *a}\n", r"data\.resolution: "),
        ("data: " + "[" * 1500, "nested too deeply"),
        ("data: " + "{a: " * 1500, "nested too deeply"),
        ("- 1\n- 2\n", "should hold sections"),
        ("just words", "should hold sections"),
        ("", "should hold sections"),
        ("? [1, 2]\n: 3\n", "a key is not text"),
        ("data: {resolution: 2001-99-99}\n", "not valid YAML: month must be in"),
        ("train: {lr: 0x" + "f" * 5000 + "}\n", r"train\.lr"),
        ("train: {lr: " + "9" * 5000 + "}\n", "Exceeds the limit"),
        ("train: {lr_warmup: 1" + "0" * 400 + "}\n", r"train\.lr_warmup: should be a learning"),
        ("data: {resolution: !!int x}\n", "not valid YAML"),
        ('"two\\nlines": 1\n', "unknown key"),
        ("1: 2\n", "1: unknown key"),
        ("data: {1: 2}\n", r"data\.1: "),
        ("data: {resolution: " + "x" * 9999 + "}\n", r"data\.resolution: "),
        ("data\0: 1\n", "not valid YAML"),
        ("data: 1\ndata: 2\n", "given twice"),
    ],
    ids=range(20),
)
def test_a_hostile_config_is_refused_in_short_lines(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_config(path)
    lines = str(error.value).splitlines()
    assert all(line.startswith(str(path)) and len(line) < 400 for line in lines), lines


@pytest.mark.parametrize("value", ["2001-99-99", "[" * 1500, "? [a]", "!!python/name:os.system"])
def test_a_hostile_override_is_one_line(value):
    with pytest.raises(UserError, match="override 'train.lr=.*not valid YAML"):
        load_config("configs/demo/demo.yaml", [f"train.lr={value}"])


@pytest.mark.parametrize(
    "content",
    [
        {"ema": {"a": 1}},
        {"ema": {1: torch.ones(1)}},
        {"ema": [torch.ones(1)]},
        {"ema": {}, "version": "new"},
        {"ema": {}, "config": "data"},
        {"ema": {}, "config": {1: 2}},
        {1: 2},
        [1],
    ],
    ids=range(8),
)
def test_a_checkpoint_of_another_form_is_one_line(tmp_path, content):
    path = tmp_path / "0000001.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=str(path)) as error:
        load_denoiser(path)
    assert len(str(error.value).splitlines()) == 1


def test_weights_that_declare_more_memory_than_they_have_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.as_strided(torch.ones(1), (10**9, 10**9), (0, 0))}, path)
    tensors = read_tensors(path)  # a view of one number takes no memory
    assert tensors["a"].untyped_storage().nbytes() == 4
