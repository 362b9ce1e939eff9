"""`train_latent_t2f.py --export FOLDER`: what a release folder holds, and what it generates."""

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from conftest import crude_face
from diffusers import AutoencoderKL
from ldm_vae import ldm_names
from openai_clip import openai_tensors, random_clip, save_archive
from PIL import Image
from tiny import (
    DIM,
    make_tiny_checkpoint,
    make_tiny_config,
    make_tiny_evaluation_data,
)

import t2f
import train_latent_t2f
from models.embedding_prior import EmbeddingPrior
from utils.base.errors import UserError
from utils.evaluation.results import Results
from utils.pretrained.checkpoint_files import read_weights
from utils.pretrained.encoders import load_config_clip
from utils.pretrained.priors import save_prior
from utils.release import folder as release_folder
from utils.release.folder import export_folder
from utils.release.pipeline import TextToFacePipeline
from utils.sampling.text_to_face import TextToFace

PROBE = crude_face(3, 48)
RECORD = {
    "step": 10,
    "cfg_scale": 2.0,
    "num_steps": 3,
    "solver": "heun",
    "n": 24,
    "network": "clip",
    "reference": "/home/somebody/ref.npz",
    "frechet_distance": 12.345,
    "frechet_distance_low": 11.5,
    "frechet_distance_high": 13.25,
    "clip_score": 31.5,
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    """Make the folder of a training with one checkpoint, its log and its evaluation."""
    folder = tmp_path_factory.mktemp("tiny run")
    config = make_tiny_config(folder, encoders={"image_mean": folder / "image_mean.npy"})
    np.save(folder / "image_mean.npy", np.linspace(-1, 1, 16, dtype=np.float32))
    make_tiny_checkpoint(folder / "checkpoints" / "0000010.pt", config)
    Results(folder / "evaluation").add(RECORD)
    Results(folder / "evaluation").add({**RECORD, "step": 5, "frechet_distance": 99.9})
    (folder / "images.json").write_text(json.dumps({"count": 1234}))
    log = [{"step": step, "cpu_s": 1800.0} for step in (5, 10, 15)]
    torn = '{"step": 20, "cpu'  # as a full disk or a power cut leave it
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log) + torn)
    return folder


@pytest.fixture(scope="module")
def released(experiment, tmp_path_factory) -> Path:
    """Export the checkpoint; return the release folder."""
    out = tmp_path_factory.mktemp("released") / "my-faces"
    export_folder(experiment / "checkpoints" / "0000010.pt", out, device="cpu")
    return out


def test_it_holds_safetensors_text_and_images_only(released):
    files = {
        path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_file()
    }
    code = {name for name in files if name.startswith("code/")}
    assert files - code == {
        "LICENSE", "README.md", "app.py", "model_index.json", "pipeline.py", "requirements.txt",
        "samples.png", "clip/text_to_face.py", "clip/open_clip/merges.txt.gz",
        "clip/open_clip/open_clip_config.json", "clip/open_clip/open_clip_model.safetensors",
        "denoiser/config.json", "denoiser/diffusion_pytorch_model.safetensors",
        "denoiser/text_to_face.py", "settings/config.yaml",
        "settings/image_mean/image_mean.safetensors", "settings/text_to_face.py",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert {"code/models/maskdit.py", "code/utils/sampling/text_to_face.py"} < code
    assert {Path(name).suffix for name in code} == {".py"}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in released.rglob("*"))


def test_its_requirements_bring_every_package_that_its_code_imports(released):
    def plain(name: str) -> str:
        return re.split(r"[^\w.-]", name)[0].lower().replace("_", "-")

    named = {plain(line) for line in (released / "requirements.txt").read_text().split()}
    brought = named | {plain(need) for name in named for need in requires(name) or ()}
    imported = set()
    for path in released.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
    for module in imported - set(sys.stdlib_module_names) - {"gradio"}:  # a Space brings gradio
        assert brought & {plain(name) for name in packages_distributions()[module]}, module
    assert "pillow" not in named  # gradio brings another version


def test_no_file_tells_a_place_of_this_machine(released, experiment):
    for path in released.rglob("*"):
        if path.is_file():
            assert str(experiment).encode() not in path.read_bytes(), path
            assert b"/home/somebody" not in path.read_bytes(), path


def test_command_line_python_and_pipeline_generate_equal_images_elsewhere(
    released, tmp_path, monkeypatch
):
    """The pipeline runs in a process that cannot import this project."""
    folder = tmp_path / "elsewhere" / "faces"
    shutil.copytree(released, folder)
    crude_face(3, 48).save(tmp_path / "face.png")
    script = f"""
import importlib.util, json, sys
for name in ("models", "utils", "t2f", "tiny"):
    assert importlib.util.find_spec(name) is None, name
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, custom_pipeline={str(folder)!r}, trust_remote_code=True)
images = pipe("a hat", {str(tmp_path / "face.png")!r}, num_images_per_prompt=2).images
for index, image in enumerate(images):
    image.save({str(tmp_path)!r} + f"/{{index}}.png")
"""  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    faces = TextToFace.load(folder, device="cpu")
    generation = faces.generate(["a hat", tmp_path / "face.png"], num=2)
    flags = ["--ckpt", folder, "--prompt", "a hat", "--image", tmp_path / "face.png", "--num", 2]
    flags += ["--out", tmp_path / "out", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["t2f.py", *map(str, flags)])
    t2f.main()
    for index, image in enumerate(generation.results):
        by_command = np.asarray(Image.open(tmp_path / "out" / image.file_name))
        by_pipeline = np.asarray(Image.open(tmp_path / f"{index}.png"))
        np.testing.assert_array_equal(np.asarray(image.image), by_command)
        np.testing.assert_array_equal(np.asarray(image.image), by_pipeline)


def test_it_generates_what_the_checkpoint_generates(released, experiment):
    """Its weights are rounded to float16, so that pixels may differ a little."""
    checkpoint = experiment / "checkpoints" / "0000010.pt"
    ours, theirs = (
        TextToFace.load(place, device="cpu").generate("a hat") for place in (checkpoint, released)
    )
    torch.testing.assert_close(ours.embeddings, theirs.embeddings)
    a, b = (np.asarray(generation.images[0]).astype(int) for generation in (ours, theirs))
    assert np.abs(a - b).max() <= 3


def test_its_own_encoders_come_before_those_of_the_current_folder(released, tmp_path, monkeypatch):
    wanted = TextToFace.load(released, device="cpu").embed("a hat")
    make_tiny_config(tmp_path / "trap")
    (tmp_path / "trap" / "settings").mkdir()
    monkeypatch.chdir(tmp_path / "trap" / "settings")
    torch.testing.assert_close(TextToFace.load(released, device="cpu").embed("a hat"), wanted)


def test_overrides_change_the_released_settings(experiment, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--export", out, "--ckpt_path", experiment / "checkpoints" / "0000010.pt"]
    command = ["train_latent_t2f.py", *flags, "sampling.cfg_scale=1.75"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    train_latent_t2f.main()
    assert f"{out}: a release folder of" in capsys.readouterr().out
    assert TextToFace.load(out, device="cpu").config.sampling.cfg_scale == 1.75


def test_an_interrupted_export_leaves_nothing(experiment, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(release_folder, "model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_folder(experiment / "checkpoints" / "0000010.pt", tmp_path / "out", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_overwritten(experiment, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    flags = ["--export", tmp_path, "--ckpt_path", experiment / "checkpoints" / "0000010.pt"]
    monkeypatch.setattr(sys, "argv", ["train_latent_t2f.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        train_latent_t2f.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is there already; delete it, or name another folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("denoiser/diffusion_pytorch_model.safetensors", Path.unlink, "is missing; copy the whole"),
        ("settings/config.yaml", Path.unlink, "settings/config.yaml is missing"),
        ("vae/config.json", Path.unlink, "encoders.vae: "),
        ("clip/open_clip/open_clip_model.safetensors", Path.unlink, "encoders.clip: "),
        ("settings/image_mean/image_mean.safetensors", Path.unlink, "encoders.image_mean: "),
        ("model_index.json", Path.unlink, "is no release folder"),
        ("denoiser/diffusion_pytorch_model.safetensors", "cut", "is damaged or not a safetensors"),
        ("vae/diffusion_pytorch_model.safetensors", "cut", "encoders.vae: "),
        ("clip/open_clip/open_clip_model.safetensors", "cut", "encoders.clip: "),
        ("settings/config.yaml", "cut", "config.yaml"),
    ],
)
def test_a_missing_or_damaged_file_gives_one_clear_line(released, tmp_path, name, spoil, message):
    folder = tmp_path / "faces"
    shutil.copytree(released, folder)
    if spoil == "cut":
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 3] + b"\n}{")
    else:
        spoil(folder / name)
    with pytest.raises(UserError) as fault:
        TextToFace.load(folder, device="cpu").generate("a hat")
    assert message in str(fault.value) and "\n" not in str(fault.value)


def test_the_card_says_how_it_was_trained_and_how_good_it_is(released):
    card = (released / "README.md").read_text(encoding="utf-8")
    _, front, text = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["pipeline_tag"] == "text-to-image"
    assert metadata["license"] == "mit"
    assert (metadata["sdk"], metadata["app_file"]) == ("gradio", "app.py")  # for a Space
    results = metadata["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"]: metric["value"] for metric in results} == {
        "frechet_distance_clip": 12.345,
        "clip_score": 31.5,
    }
    assert "on images only, without any caption" in text
    assert "1,234 images" in text and "10 steps of 8" in text and "1 h 00 min" in text
    assert "| 2 | 3 heun | 24 | 12.35 (11.5 to 13.25) | 31.50 |" in text
    assert "99.9" not in text  # of another step
    assert "mask_image=" in text and "vary=" not in text  # words need a prior
    assert "gaussian, 1.2" in text and "in this folder" in text and "24 tokens" in text
    assert huggingface_hub.ModelCard(card).data.library_name == "diffusers"


def test_the_card_of_a_network_without_evaluation_says_so(experiment, tmp_path):
    shutil.copy(experiment / "checkpoints" / "0000010.pt", tmp_path / "0000010.pt")
    export_folder(tmp_path / "0000010.pt", tmp_path / "out", device="cpu")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Not evaluated: no evaluation of this step was found" in card
    assert "model-index" not in card


def test_the_samples_show_captions_of_the_test_images_if_they_are_there(
    tmp_path, tiny_faces, monkeypatch
):
    tiny_faces(10, 32, "test")
    config = make_tiny_config(tmp_path)
    make_tiny_evaluation_data(config)
    checkpoint = make_tiny_checkpoint(tmp_path / "0000010.pt", config)
    export_folder(checkpoint, tmp_path / "out", device="cpu")
    assert "a rendered face" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "a rendered face" in Image.open(tmp_path / "out" / "samples.png").text["prompt"]


def test_a_training_starts_from_the_released_weights(released):
    weights = released / "denoiser" / "diffusion_pytorch_model.safetensors"
    tensors, config = read_weights(weights)
    assert config is None and all(tensor.dtype == torch.float16 for tensor in tensors.values())


def test_encoders_of_other_formats_become_safetensors(tmp_path):
    """An OpenAI archive and an LDM file become what open_clip and diffusers read."""
    model = random_clip(
        embed_dim=16,
        vision_cfg={"layers": 2, "width": 64, "patch_size": 8, "image_size": 32},
        text_cfg={"layers": 2, "width": 64, "heads": 1, "context_length": 77, "vocab_size": 49408},
    )
    save_archive(openai_tensors(model), tmp_path / "clip.pt")
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    torch.save({"state_dict": ldm_names(vae)}, tmp_path / "vae.pth")
    encoders = {"clip": tmp_path / "clip.pt", "vae": tmp_path / "vae.pth"}
    config = make_tiny_config(tmp_path, encoders=encoders)
    checkpoint = make_tiny_checkpoint(tmp_path / "0000010.pt", config)
    wanted = TextToFace.load(checkpoint, device="cpu").generate(["a hat", PROBE], num=2)
    export_folder(checkpoint, tmp_path / "out", device="cpu")
    for name in ("clip.pt", "vae.pth"):
        (tmp_path / name).unlink()
    found = TextToFace.load(tmp_path / "out", device="cpu").generate(["a hat", PROBE], num=2)
    torch.testing.assert_close(found.embeddings, wanted.embeddings)
    for a, b in zip(found.images, wanted.images, strict=True):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 3


def test_public_encoders_are_named_and_not_copied(tmp_path):
    """Their names stand in the folder; they are loaded from the hub or its cache."""
    config = make_tiny_config(tmp_path)
    faces = TextToFace.load(make_tiny_checkpoint(tmp_path / "0000010.pt", config), device="cpu")
    public = config.encoders.model_copy(update={"vae": "owner/vae", "clip": "ViT-B-32:openai"})
    faces.config = config.model_copy(update={"encoders": public})
    TextToFacePipeline.holding(faces).save_pretrained(tmp_path / "out")
    out = tmp_path / "out"
    for name, source in (("vae", "owner/vae"), ("clip", "ViT-B-32:openai")):
        assert json.loads((out / name / "config.json").read_text())["source"] == source
        assert not list((out / name).rglob("*.safetensors"))
    index = json.loads((out / "model_index.json").read_text())
    assert index["vae"] == ["text_to_face", "Component"]
    encoders = yaml.safe_load((out / "settings" / "config.yaml").read_text())["encoders"]
    assert (encoders["vae"], encoders["clip"]) == ("owner/vae", "ViT-B-32:openai")


def test_the_prior_of_freedom_comes_along(tmp_path):
    config = make_tiny_config(tmp_path, encoders={"prior": tmp_path / "prior.safetensors"})
    clip = load_config_clip(config.encoders)
    torch.manual_seed(0)
    save_prior(EmbeddingPrior(DIM, 32, 1), tmp_path / "prior.safetensors", clip.identity)
    checkpoint = make_tiny_checkpoint(tmp_path / "0000010.pt", config)
    export_folder(checkpoint, tmp_path / "out", ["sampling.freedom=0.8"], device="cpu")
    (tmp_path / "prior.safetensors").unlink()
    released = TextToFace.load(tmp_path / "out", device="cpu")
    assert released.config.sampling.freedom == 0.8
    assert len(released.generate("a hat", num=2).images) == 2
