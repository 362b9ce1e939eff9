"""A pipeline on the hub: it goes there and comes back, becomes a Space, is missing in one line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from equal_images import assert_equal_images
from hub_server import HubServer
from PIL import Image
from tiny import make_tiny_checkpoint, make_tiny_config

from utils.release.pipeline import TextToFacePipeline
from utils.sampling.text_to_face import TextToFace

TOKEN = "hf_" + "secret" * 5
PUSH = """
import os
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(os.path.abspath("mine"), trust_remote_code=True)
print(pipe.push_to_hub("someone/faces"))
print(pipe.push_to_hub("someone/page", repo_type="space"))
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> TextToFace:
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = make_tiny_checkpoint(folder / "0000010.pt", make_tiny_config(folder))
    return TextToFace.load(checkpoint, device="cpu")


class Published(NamedTuple):
    """A pipeline in the folder `mine` of `folder`, on the hub as a model and as a Space."""

    folder: Path
    hub: HubServer
    said: str  # by the process that published it


@pytest.fixture(scope="module")
def published(faces, tmp_path_factory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    TextToFacePipeline.holding(faces).save_pretrained(folder / "mine")
    (folder / "mine" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    with HubServer() as hub:
        done = run(PUSH, hub.url, folder / "cache", folder, TOKEN)
        assert done.returncode == 0, done.stderr
        yield Published(folder, hub, done.stdout + done.stderr)


def run(
    code: str, hub: str, cache: Path, cwd: Path, token: str = ""
) -> subprocess.CompletedProcess:
    """Run Python code with another hub and cache."""
    env = {**os.environ, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "HF_ENDPOINT": hub}
    env |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    env |= {"HF_TOKEN": token, "PYTHONPATH": os.pathsep.join(sys.path)} if token else {}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True
    )


def test_a_model_goes_to_the_hub_and_comes_back(published, faces, tmp_path):
    fetch = """
import sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("someone/faces", trust_remote_code=True)
pipe("red hair").images[0].save("pipeline.png")
"""
    load = """
from utils.sampling.text_to_face import TextToFace
TextToFace.load("someone/faces", device="cpu").generate("red hair").images[0].save("python.png")
"""
    hub, mine = published.hub, published.folder / "mine"
    assert f"{hub.url}/someone/faces" in published.said
    assert hub.tokens == {TOKEN}
    pushed = hub.repositories["someone/faces"]
    here = [p for p in mine.rglob("*") if p.is_file()]
    assert {p.relative_to(mine).as_posix(): p.read_bytes() for p in here} == pushed
    done = run(fetch, hub.url, tmp_path / "other cache", tmp_path)
    assert done.returncode == 0, done.stderr
    hub.fetched.clear()
    done = run(load, hub.url, tmp_path / "third cache", tmp_path, "hf_other")
    assert done.returncode == 0, done.stderr
    assert hub.fetched and not [f for f in hub.fetched if f.endswith(".py")]  # data only
    wanted = faces.generate("red hair").images
    assert_equal_images([Image.open(tmp_path / "pipeline.png")], wanted)
    assert_equal_images([Image.open(tmp_path / "python.png")], wanted)
    again = run(load, "http://127.0.0.1:9", tmp_path / "third cache", tmp_path, "hf_other")
    assert again.returncode == 0, again.stderr  # from the cache, without network

    written = [p for folder in (published.folder, tmp_path) for p in folder.rglob("*")]
    leaks = [p for p in written if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert leaks == [] and TOKEN not in published.said


def test_a_release_becomes_a_space_whose_page_shows_its_images(published, faces, tmp_path):
    show = """
import shutil, sys
sys.path.insert(0, ".")
import app
for files in app.generate("red hair", 2, 5):
    for number, file in enumerate(files):
        shutil.copy(file, f"{number}.png")
face = app.Image.open("0.png")
layer = app.Image.new("RGBA", face.size)
layer.paste("red", (0, 0, face.width, face.height // 2))
painted = {"background": face.convert("RGBA"), "layers": [layer]}
for file in app.edit(painted, "", "", "a hat", 0.7, 3):
    shutil.copy(file, "edited.png")
"""
    for name, content in published.hub.repositories["someone/page"].items():
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_bytes(content)
    done = run(show, "http://127.0.0.1:9", tmp_path / "cache", tmp_path / "space")
    assert done.returncode == 0, done.stderr
    shown = [Image.open(tmp_path / "space" / f"{number}.png") for number in range(2)]
    assert [image.text["seed"] for image in shown] == ["5", "6"]
    assert_equal_images(shown, faces.generate("red hair", seeds=[5, 6]).images)
    mask = Image.new("L", shown[0].size)
    mask.paste(255, (0, 0, mask.width, mask.height // 2))
    given = {"prompts": ["a hat"], "strength": 0.7, "mask": mask, "seeds": [3]}
    edited = Image.open(tmp_path / "space" / "edited.png")
    assert_equal_images([edited], faces.edit(shown[0], **given).images)


@pytest.mark.parametrize("answers", [True, False])
def test_a_name_that_the_hub_does_not_have_gives_one_line(answers, tmp_path):
    with HubServer() as hub:
        url = hub.url if answers else "http://127.0.0.1:9"
        flags = ["t2f.py", "--ckpt", "nobody/nothing", "--prompt", "x", "--device", "cpu"]
        code = f"import sys\nsys.argv = {flags}\nimport t2f\nt2f.main()"
        done = run(code, url, tmp_path / "cache", tmp_path, "hf_some")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "nobody/nothing: is neither a file or folder here nor" in line
    assert ("check the name" if answers else "does not answer") in line
