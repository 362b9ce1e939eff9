"""CLIP: all file formats, and embeddings equal to those of plain open_clip."""

import copy
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import crude_face
from openai_clip import openai_tensors, random_clip, save_archive
from PIL import Image
from plain_clip import TEXTS, as_tensor, assert_same_as, open_clip_embeddings
from safetensors.torch import save_file
from tiny import make_tiny_clip, make_tiny_config

from models.clip import load_clip
from models.clip_towers import _as_value_error, _set_openai_preprocessing, _tokenizer_of
from models.weights import read_tensors
from utils.pretrained.encoders import load_config_clip

pytestmark = pytest.mark.bits  # of `make test-machines`

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 64, "image_size": 32, "patch_size": 8, "head_width": 64},
    "text_cfg": {"layers": 1, "width": 64, "context_length": 77, "vocab_size": 49408, "heads": 1},
}


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    return random_clip(**TINY)


@pytest.fixture(scope="module")
def archive(model, tmp_path_factory) -> Path:
    return save_archive(openai_tensors(model), tmp_path_factory.mktemp("clip") / "tiny.pt")


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    """Register the tiny architecture, with its plain GELU, at open_clip; return its name."""
    path = tmp_path_factory.mktemp("configs") / "tiny-test-clip.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return path.stem


def face(size: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(-20, 20, (size, size, 3))
    generated = np.asarray(crude_face(1, size)).astype(int) + noise
    return Image.fromarray(generated.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [32, 50, 128])
def test_openai_archive_embeds_as_plain_open_clip_does(archive, size):
    plain = open_clip.load_openai_model(str(archive), precision="fp32", device="cpu")
    assert_same_as(load_clip(archive), plain, face(size))


def test_openai_weights_run_with_the_quick_gelu(archive, model):
    plain = copy.deepcopy(model).float()
    expected, _ = open_clip_embeddings(plain, face(32))
    for block in plain.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU()
    other, _ = open_clip_embeddings(plain, face(32))
    embedding = load_clip(archive).encode_images(as_tensor(face(32)))
    torch.testing.assert_close(embedding, expected)
    assert (embedding - other).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["bare tensors", "named archive", "mask in archive", "folder"])
def test_every_form_of_a_clip_gives_the_same_encoder(tmp_path, archive, model, name, form):
    source = tmp_path / "clip.pt"
    if form == "bare tensors":
        torch.save(openai_tensors(model), source)
    elif form == "named archive":
        source = f"{name}:{archive}"
    elif form == "mask in archive":
        mask = {"transformer.resblocks.0.attn_mask": torch.zeros(77, 77)}
        save_archive(openai_tensors(model) | mask, source)
    else:
        source = tmp_path / "folder"
        source.mkdir()
        save_file(model.float().state_dict(), source / "open_clip_model.safetensors")
        text = json.dumps({"model_cfg": TINY | {"quick_gelu": True}})
        (source / "open_clip_config.json").write_text(text)
    loaded, expected = load_clip(source), load_clip(archive)
    assert loaded.identity == expected.identity
    images = as_tensor(face(40))
    assert torch.equal(loaded.encode_images(images), expected.encode_images(images))
    assert torch.equal(loaded.encode_texts(TEXTS), expected.encode_texts(TEXTS))


@pytest.mark.parametrize("form", ["pt", "safetensors", "training checkpoint"])
def test_open_clip_checkpoint_embeds_as_plain_open_clip_does(tmp_path, name, form):
    torch.manual_seed(1)
    weights = open_clip.create_model(name).state_dict()
    path = tmp_path / ("clip.safetensors" if form == "safetensors" else "clip.pt")
    if form == "pt":
        torch.save(weights, path)
    elif form == "safetensors":
        save_file(weights, path)
    else:
        wrapped = {f"module.{key}": value for key, value in weights.items()}
        torch.save({"epoch": 3, "name": "x", "state_dict": wrapped, "optimizer": {}}, path)
    plain = open_clip.create_model(name, pretrained=str(path)).eval()
    assert_same_as(load_clip(f"{name}:{path}"), plain, face(48))


def test_open_clip_checkpoint_without_its_name_is_refused_with_advice(tmp_path, name):
    torch.save(open_clip.create_model(name).state_dict(), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"give its open_clip name in front, e.g. ViT-B-32:"):
        load_clip(tmp_path / "clip.pt")


def test_weights_of_another_architecture_are_refused(tmp_path, name):
    other = open_clip.CLIP(**(TINY | {"embed_dim": 8}))
    torch.save(other.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"cannot load a CLIP from .*clip.pt: .*size mismatch"):
        load_clip(f"{name}:{tmp_path / 'clip.pt'}")


def test_the_code_of_an_archive_is_not_looked_at(tmp_path, archive):
    """An archive whose code is garbage gives the same tensors; torch.jit.load would refuse it."""
    changed = tmp_path / "clip.pt"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            is_code = "/code/" in entry.filename
            new.writestr(entry, b"import os; os.abort()" if is_code else old.read(entry))
    assert load_clip(changed).identity == load_clip(archive).identity


class Payload:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["archive", "torch file", "folder"])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path, archive, form):
    payload, path = Payload(tmp_path / "was_run"), tmp_path / "clip.pt"
    if form == "archive":
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                hostile = entry.filename.endswith("/data.pkl")
                new.writestr(entry, pickle.dumps(payload) if hostile else old.read(entry))
    elif form == "torch file":
        torch.save({"visual.proj": payload}, path)
    else:
        folder = make_tiny_clip(tmp_path / "folder")
        (folder / "open_clip_model.safetensors").unlink()
        torch.save({"visual.proj": payload}, folder / "open_clip_pytorch_model.bin")
        path = folder
    with pytest.raises(ValueError, match=str(path)):
        load_clip(path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("damage", ["truncated", "short tensor", "no pickle", "out of bounds"])
def test_a_damaged_archive_is_refused_with_its_path(tmp_path, archive, damage):
    path = tmp_path / "clip.pt"
    if damage == "truncated":
        path.write_bytes(archive.read_bytes()[:-5000])
    else:
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                content = old.read(entry)
                if damage == "short tensor" and entry.filename.endswith("/data/0"):
                    content = content[:-1]
                if damage == "out of bounds" and entry.filename.endswith("/data.pkl"):
                    # The offset of the first tensor of 64 numbers becomes 9.
                    assert b"K\x00(K@t" in content
                    content = content.replace(b"K\x00(K@t", b"K\x09(K@t", 1)
                if damage != "no pickle" or not entry.filename.endswith("/data.pkl"):
                    new.writestr(entry, content)
    with pytest.raises(ValueError, match="clip.pt is not a file of weights"):
        load_clip(path)


def test_tensors_of_an_archive_are_those_that_torch_reads(archive):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(archive)).state_dict()
    tensors = read_tensors(archive)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert all(tensors[key].dtype == expected[key].dtype for key in expected)


@pytest.mark.parametrize("precision, tolerance", [("bf16", 0.05), ("fp16", 0.005)])
def test_half_precision_is_used_and_answers_in_float32(tmp_path, precision, tolerance):
    images = as_tensor(face(16))
    exact = load_config_clip(make_tiny_config(tmp_path).encoders).encode_images(images)
    clip = load_config_clip(make_tiny_config(tmp_path, encoders={"precision": precision}).encoders)
    rounded = clip.encode_images(images)
    assert rounded.dtype == clip.encode_texts(TEXTS).dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < tolerance * exact.abs().max()


def test_captions_of_any_length_come_back_in_their_order(archive):
    texts = [f"{'a ' * (i * 7 % 20)}face {i}" for i in range(150)]
    clip = load_clip(archive)
    alone = torch.cat([clip.encode_texts([text]) for text in texts[:20]])
    torch.testing.assert_close(clip.encode_texts(texts)[:20], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_turns_embeddings_by_little(archive):
    exact, rounded = (load_clip(archive, dtype=d) for d in (torch.float32, torch.bfloat16))
    images = as_tensor(face(32))
    for a, b in (
        (exact.encode_images(images), rounded.encode_images(images)),
        (exact.encode_texts(TEXTS), rounded.encode_texts(TEXTS)),
    ):
        assert torch.cosine_similarity(a, b).min() > 0.999


def test_embeddings_are_not_normalised_and_carry_no_gradient(archive):
    clip = load_clip(archive)
    for embedding in (clip.encode_images(as_tensor(face(32))), clip.encode_texts(TEXTS)):
        assert embedding.is_inference()
        assert (embedding.norm(dim=1) - 1).abs().min() > 0.01


@pytest.mark.parametrize("source", ["assets/no.pt", "/nowhere/clip", "ViT-B-32:no/file.pt"])
def test_missing_path_is_named(source):
    with pytest.raises(FileNotFoundError, match=source.rpartition(":")[2]):
        load_clip(source)


@pytest.mark.parametrize("source", ["ViT-B-32", "ViT-X:openai"])
def test_unknown_name_is_named(source):
    with pytest.raises(ValueError, match=source):
        load_clip(source)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (
            TypeError,
            lambda: _as_value_error("here", open_clip.load_checkpoint),
        ),  # without arguments
        (AttributeError, lambda: _as_value_error("here", _set_openai_preprocessing, None)),
        (TypeError, lambda: _as_value_error("here", _tokenizer_of, "ViT-B-16-SigLIP", None)),
    ],
)
def test_a_mistake_of_this_program_keeps_its_traceback(kind, call):
    with pytest.raises(kind):
        call()


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": "wide"},
        {"vision_cfg": None},
        {"text_cfg": {"heads": "two"}},
        {"unknown": 1},
    ],
)
def test_a_folder_with_a_wrong_description_is_one_line(tmp_path, change):
    folder = make_tiny_clip(tmp_path / "clip")
    file = folder / "open_clip_config.json"
    described = json.loads(file.read_text())
    described["model_cfg"] |= change
    file.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=f"cannot load a CLIP from {folder}: ") as refused:
        load_clip(folder)
    assert len(str(refused.value).splitlines()) == 1
