"""Networks as ONNX files: they generate the images of PyTorch, on a machine without it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ftfy
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tiny import make_tiny_checkpoint, make_tiny_config

from models.clip import load_clip
from models.tokenizers import text_only
from tools import export_onnx
from tools.onnx_networks import export_tokenizer
from utils.config.schema import Config
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import read_config
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.sampling.conditions import embed_rows
from utils.sampling.generate import generate
from utils.sampling.prompts import Row, text_prompt

MISSING = [name for name in export_onnx.PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{MISSING} missing: pip install -r requirements-onnx.txt"
)
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a face", "the other face, with a hat"]
SEEDS = [3, 2**31 + 7]
# A machine without these packages: importing one of them fails.
BARE = "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'PIL', 'open_clip', 'ftfy']); "
WORDS = [
    "it's",
    "they’re",
    "“Zoë”",
    "blue-green",
    "don't",
    "3½",
    "Ⅷ",
    "x²",
    "&amp;",
    "O'Neil",
    "'tis",
]


def export(monkeypatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", *map(str, flags)])
    export_onnx.main()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A tiny network that moves captions towards images, and its exported folder."""
    folder = tmp_path_factory.mktemp("exported")
    make_tiny_config(folder)
    mean = np.random.default_rng(0).normal(size=16).astype(np.float32) / 4
    np.save(folder / "mean.npy", mean)
    config = make_tiny_config(folder, encoders={"image_mean": folder / "mean.npy"})
    checkpoint = make_tiny_checkpoint(folder / "0000001.pt", config)
    with pytest.MonkeyPatch.context() as monkeypatch:
        export(monkeypatch, "--ckpt", checkpoint, "--out", folder / "onnx", "--compare", 3)
    return SimpleNamespace(checkpoint=checkpoint, folder=folder / "onnx", config=config)


def sampled_by_torch(checkpoint: Path, config: Config) -> torch.Tensor:
    """The images of t2f.py in float32, (N, H, W, 3) uint8."""
    denoiser, _ = load_denoiser(checkpoint, config=config)
    rows = [Row(((text_prompt(prompt), 1.0),)) for prompt in PROMPTS]
    conditions = embed_rows(rows, load_config_clip(config.encoders), config).embeddings
    autoencoder = load_config_autoencoder(config)
    batches = generate(denoiser, autoencoder, conditions, SEEDS, config.sampling, batch_size=2)
    return torch.cat([images for _, images in batches])


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampling.preset=paper", "sampling.num_steps=5"],
        ["sampling.solver=euler", "sampling.cfg_scale=null"],
        ["sampling.solver=dpmpp_2m", "sampling.num_steps=7", "sampling.guidance_interval=[0.1,5]"],
        ["sampling.num_steps=1", "encoders.image_mean=null"],
        [
            "sampling.solver=dpmpp_2m",
            "sampling.num_steps=1",
            "data.norm_feature=false",
            "encoders.image_mean=null",
        ],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_the_exported_sampler_gives_the_images_of_t2f(made, tmp_path, overrides):
    config = read_config(made.checkpoint, overrides)
    denoiser, _ = load_denoiser(made.checkpoint, config=config)
    folder = tmp_path / "onnx"
    folder.mkdir()
    for file in made.folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "settings.json").unlink()
    settings = export_onnx.settings_of(config, denoiser)
    (folder / "settings.json").write_text(json.dumps(settings))
    from sampler import Sampler

    images = Sampler(folder).generate(PROMPTS, SEEDS)
    ours = sampled_by_torch(made.checkpoint, config).numpy()
    assert ours.std() > 10  # not one grey
    assert np.abs(images.astype(int) - ours).max() <= 1


def test_the_folder_works_alone_on_a_machine_without_pytorch(made, tmp_path):
    flags = ["generate.py", *PROMPTS, "--seeds", *map(str, SEEDS), "--out", str(tmp_path)]
    script = str(made.folder / "generate.py")
    code = f"{BARE} sys.argv = {flags}; runpy.run_path({script!r}, {{}}, '__main__')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(made.folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 images in ")
    generated = [np.asarray(Image.open(tmp_path / f"{i:02d}_{SEEDS[i]:03d}.png")) for i in range(2)]
    ours = sampled_by_torch(made.checkpoint, read_config(made.checkpoint)).numpy()
    assert np.abs(np.stack(generated).astype(int) - ours).max() <= 1
    other = [sys.executable, script, "another prompt", "--out", str(tmp_path)]
    refused = subprocess.run(other, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "holds faces of other prompts; name another folder with --out" in refused.stderr


def test_the_script_compares_both_and_shows_the_images(made, monkeypatch, capsys, tmp_path):
    export(monkeypatch, "--ckpt", made.checkpoint, "--out", tmp_path / "new", "--compare", 2)
    said = capsys.readouterr().out
    assert "denoiser.onnx" in said and "2 images compared: " in said
    percent = float(said.partition("images compared: ")[2].split()[0])
    assert percent < 1 and said.split(" at most;")[0].split()[-1] in "01"
    width, height = Image.open(tmp_path / "new" / "comparison.png").size
    assert height > width / 2  # two rows of two


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["sampling.S_churn=10"], "the ONNX sampler does not know sampling.S_churn"),
        (["sampling.schedule=ve"], "the ONNX sampler does not know sampling.schedule"),
        (["--out", "{folder}"], "is there already: delete it, or choose another --out"),
        (["--ckpt", "none.pt"], "none.pt"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(made, monkeypatch, capsys, tmp_path, flags, said):
    flags = [flag.replace("{folder}", str(made.folder)) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        export(monkeypatch, "--ckpt", made.checkpoint, "--out", tmp_path / "out", *flags)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and said in line
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_the_export_says_what_to_install(made, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(export_onnx, "PACKAGES", ("onnx", "a_package_that_is_not_there"))
    with pytest.raises(SystemExit) as stop:
        export(monkeypatch, "--ckpt", made.checkpoint, "--out", tmp_path / "out")
    said = "a_package_that_is_not_there missing: pip install -r requirements-onnx.txt"
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.fixture(scope="module", params=["demo", "openai"])
def tokenizers(request, tmp_path_factory):
    """The tokenizer of open_clip and ours, with the demo's vocabulary or OpenAI's."""
    from clip_tokenizer import Tokenizer

    clip = load_clip(ROOT / "assets" / "demo" / "clip")
    if request.param == "openai":
        import open_clip

        clip.tokenizer = text_only(open_clip.get_tokenizer("ViT-B-32"))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    export_tokenizer(clip, path)
    return clip.tokenizer, Tokenizer(path)


@pytest.mark.parametrize(
    "text", [" ".join(WORDS), "<end_of_text> a<start_of_text> &lt;END_OF_TEXT> x", "", "word " * 99]
)
def test_a_sentence_has_the_tokens_of_open_clip(tokenizers, text):
    theirs, ours = tokenizers
    assert ours(text) == theirs([text])[0].tolist()


# Characters that this Python's Unicode does not know may be letters in another one's.
@given(st.text(st.characters(exclude_categories=("Cn", "Cs")), max_size=40))
def test_any_text_has_the_tokens_of_open_clip(tokenizers, text):
    theirs, ours = tokenizers
    text = ftfy.fix_text(text)  # the one step that needs a package
    assume(text == ftfy.fix_text(text))  # open_clip takes it again
    assert ours(text) == theirs([text])[0].tolist()


def test_another_tokenizer_is_refused_in_one_line(tmp_path):
    clip = SimpleNamespace(tokenizer=object())
    with pytest.raises(export_onnx.UserError, match=r"knows CLIP's own tokenizer only, not object"):
        export_tokenizer(clip, tmp_path / "tokenizer.json")


@pytest.mark.parametrize("shape", [(4, 2, 2), (4, 32, 32), (16, 7, 5)])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_the_noise_of_a_seed_is_that_of_pytorch(shape, seed):
    from sampler import randn

    expected = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(randn(shape, seed), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("seed", [2**32, 2**40 + 5, -1])
def test_a_seed_beyond_the_limit_gives_no_noise(seed):
    from sampler import randn

    with pytest.raises(ValueError, match=r"Seed must be between 0 and 2\*\*32 - 1"):
        randn((4, 2, 2), seed)
