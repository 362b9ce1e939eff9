"""Encoders of the hub without network: one attempt, one line, and a cache that is used at once."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
from conftest import ROOT
from file_server import FileServer
from PIL import Image
from tiny import make_tiny_vae

from utils.pretrained.hub import OPENAI_CLIP, answers, clip_place

NO_PROXY = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """The address of a port where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def run(
    code: str,
    endpoint: str,
    cache: Path,
    cwd: Path = ROOT,
    imported: str = "utils.pretrained.encoders",
) -> tuple[list[str], float]:
    """Run Python code with another hub and cache; return the lines of stderr, and the seconds.

    The seconds are those of the code itself, without the module `imported` before its first line.
    """
    started = f"import time, atexit, {imported}\nbegin = time.time()\n"
    ended = "atexit.register(lambda: print(time.time() - begin))\n"
    env = {**os.environ, **NO_PROXY, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache)}
    env["PYTHONPATH"] = str(ROOT)
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", started + ended + code],
        env=env,
        cwd=cwd,
        text=True,
        capture_output=True,
    )
    return made.stderr.splitlines(), float(made.stdout.splitlines()[-1])


def preprocessing(tmp_path: Path, *overrides: str) -> str:
    """Code that runs README's first command on a folder with one image."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (300, 260)).save(images / "1.png")
    config = ROOT / "configs" / "others" / "own_images.yaml"
    argv = ["x", "--config", str(config), "--with_clip", "--split", "train", "--device", "cpu"]
    argv += [f"data.image_dir={images}", f"data.root={tmp_path / 'z'}"]
    argv += [f"data.feat_path={tmp_path / 'clip_img'}", *overrides]
    script = "preprocess_scripts.create_latentspace_lmdb"
    return f"import sys\nsys.argv = {argv}\nfrom {script} import main\nmain()"


@pytest.mark.parametrize("network", ["closed", "silent"])
def test_without_network_all_missing_encoders_are_one_line_within_seconds(
    tmp_path, network, request
):
    endpoint = request.getfixturevalue(network)
    (tmp_path / "empty").mkdir()
    lines, seconds = run(preprocessing(tmp_path), endpoint, tmp_path / "hf", tmp_path / "empty")
    assert len(lines) == 1
    assert lines[0] == (
        "error: encoders.vae (stabilityai/sd-vae-ft-ema) and encoders.clip (ViT-B-32:openai): not "
        f"on this machine, and {endpoint} does not answer; on a machine with network, run python "
        "download_assets.py --name vae --name clip; then copy autoencoder_kl.pth here to "
        "assets/stable_diffusion/autoencoder_kl.pth and set "
        "encoders.vae=assets/stable_diffusion/autoencoder_kl.pth; copy ViT-B-32.pt here to "
        "assets/ViT-B-32.pt"
    )
    assert seconds < 5
    assert not (tmp_path / "z").exists()


def test_the_first_commands_line_comes_before_the_encoders_libraries_are_imported(tmp_path, closed):
    heavy = {"open_clip", "torchvision", "timm", "diffusers", "matplotlib"}
    shown = f"atexit.register(lambda: print('HEAVY', {heavy} & set(sys.modules), file=sys.stderr))"
    lines, _ = run(f"import sys\n{shown}\n{preprocessing(tmp_path)}", closed, tmp_path / "hf")
    assert lines[0].startswith("error: encoders.vae")
    assert lines[1:] == ["HEAVY set()"]


@pytest.mark.parametrize("source", OPENAI_CLIP)
def test_the_usual_clip_lies_where_open_clip_looks_for_it(source):
    listed = open_clip.get_pretrained_cfg(*source.split(":"))["hf_hub"]
    assert clip_place(source) == (listed.rstrip("/"), "")


def test_a_vae_that_is_no_published_file_is_to_be_copied_with_its_cache(tmp_path, closed):
    code = preprocessing(tmp_path, "encoders.vae=some/vae")
    lines, _ = run(code, closed, tmp_path / "hf", tmp_path)
    assert len(lines) == 1
    assert "--all-needed --config …" in lines[0]
    assert f"copy its folder {tmp_path / 'hf' / 'hub' / 'models--some--vae'} here" in lines[0]


def test_a_vae_in_the_cache_is_loaded_without_network_and_without_waiting(tmp_path, silent):
    repository = tmp_path / "hf" / "hub" / "models--some--vae"
    commit = "0" * 40
    make_tiny_vae(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from utils.config.load import config_from_dict\n"
        "from utils.pretrained import encoders\n"
        "config = config_from_dict({'encoders': {'vae': 'some/vae'}})\n"
        "encoders.load_config_autoencoder(config)"
    )
    lines, seconds = run(code, silent, tmp_path / "hf", imported="models.autoencoder")
    assert lines == []
    assert seconds < 5


def test_a_server_that_knows_nothing_answers_and_a_silent_one_does_not(monkeypatch, silent, closed):
    for name, value in NO_PROXY.items():
        monkeypatch.setenv(name, value)
    with FileServer() as server:
        assert answers(server.url)
    begin = time.monotonic()
    assert not answers(silent, 0.3)
    assert not answers(closed, 0.3)
    assert time.monotonic() - begin < 10  # on a busy machine; a silent server never answers


def test_a_proxy_that_does_not_answer_is_no_network(monkeypatch, closed):
    monkeypatch.setenv("http_proxy", closed)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert not answers("http://example.invalid", 0.5)
