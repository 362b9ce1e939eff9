"""research/recipes/compare.py as a process: two small recipes, stopped, killed, continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from research.attributes.classifier import load_faces
from research.recipes.recipe import read_recipe
from research.recipes.training import PROBE_STEPS, PROBE_WINDOWS, PROBES
from utils.base.files import write_json
from utils.config.load import load_config
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.feature_networks import ClipFeatures
from utils.evaluation.image_set import ImageSet
from utils.evaluation.references import save_stats
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip

pytestmark = pytest.mark.e2e
SECONDS = 3  # of each training
COST = 0.025  # processor seconds of a step of the small network, about


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Render faces, and make the databases and the reference that the demo's config names."""
    folder = tmp_path_factory.mktemp("faces")
    command = [sys.executable, "demo/make_faces.py", "--out", str(folder), "--workers", "1"]
    command += ["--num_train", "96", "--num_test", "24"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    config = load_config(ROOT / "configs/demo/demo.yaml")
    vae, clip = load_config_autoencoder(config), load_config_clip(config.encoders)
    images = load_faces(folder / "train")[0]
    latents = vae.mean_latents(vae.encode_moments(images.float() / 127.5 - 1))
    embeddings = clip.encode_images(images)[:, None]
    for name, kind, values in (("z", "z", latents), ("clip_img", "y", embeddings)):
        with LMDBWriter(folder / "lmdb" / name, kind, {}, len(values)) as writer:
            writer.append(values.numpy())
    reference = ImageSet([ClipFeatures(clip)])
    reference.update(load_faces(folder / "test")[0], range(24))
    save_stats(folder / "reference.npz", reference.references()[0])
    return folder


@pytest.fixture
def recipes(faces, tmp_path) -> list[Path]:
    """Write two recipes of a small network."""
    lmdb = faces / "lmdb"
    values = {
        "base": str(ROOT / "configs/demo/recipes/v0_2.yaml"),
        "data": {"root": str(lmdb / "z"), "feat_path": str(lmdb / "clip_img")},
        "eval": {"ref_path": str(faces / "reference.npz")},
        "model": {"depth": 1, "hidden_size": 32, "num_heads": 2, "decoder_depth": 1},
        "train": {"batchsize": 8},
        "sampling": {"num_steps": 2},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    slow = {"base": "small.yaml", "train": {"lr": 1e-5}}
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump(slow))
    return [tmp_path / "small.yaml", tmp_path / "slow.yaml"]


class Harness:
    """The command, started in a process group of its own."""

    def __init__(self, folder: Path, faces: Path, **runs) -> None:
        self.work, self.out, self.runs = folder / "work", folder / "out.json", folder / "runs.yaml"
        self.runs.write_text(yaml.safe_dump({"seconds": SECONDS, "images": 24, **runs}))
        self.command = [sys.executable, "research/recipes/compare.py", str(self.runs)]
        self.command += ["--threads", "1", "--data", str(faces), "--work", str(self.work)]
        self.command += ["--out", str(self.out)]
        self.command += ["--classifier", str(faces / "classifier.safetensors")]

    def keep_probes(self, recipe: Path, count: int) -> None:
        """Write the first `count` probes of a recipe, as an earlier start leaves them."""
        windows = [COST * PROBE_STEPS / PROBE_WINDOWS] * PROBE_WINDOWS
        kept = {"settings": read_recipe(recipe).settings, "probes": [windows] * count}
        write_json(self.work / recipe.stem / "probes.json", kept)

    def start(self, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*self.command, *options],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def when(self, file: Path, number: signal.Signals, process: subprocess.Popen, group: bool):
        """Send a signal to the process, or to its group too, as soon as a file is there."""
        deadline = time.monotonic() + 1200
        while not (file.exists() and file.stat().st_size):
            if process.poll() is not None or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(process.communicate()[0])
            time.sleep(0.02)
        (os.killpg if group else os.kill)(process.pid, number)
        return process.communicate(timeout=300)[0]

    def finish(self, *options: str) -> dict:
        """Run to the end; return the JSON."""
        process = self.start(*options)
        said = process.communicate(timeout=1800)[0]
        assert process.returncode == 0, said
        return json.loads(self.out.read_text())


def test_a_comparison_that_is_stopped_and_killed_goes_on_and_equals_its_parts(
    faces, recipes, tmp_path
):
    harness = Harness(tmp_path, faces, seeds={"small": [0], "slow": [0]})
    run = harness.work / "small" / f"{SECONDS}s_seed0"
    for recipe, count in zip(recipes, (PROBES - 1, PROBES), strict=True):
        harness.keep_probes(recipe, count)

    process = harness.start()
    said = harness.when(run / "config.yaml", signal.SIGTERM, process, group=False)
    assert process.returncode == 2, said
    assert "stopped; the same command goes on" in said.splitlines()[-1]
    probes = (harness.work / "small" / "probes.json").read_bytes()
    assert len(json.loads(probes)["probes"]) == PROBES

    process = harness.start()
    harness.when(run / "small_24.json", signal.SIGKILL, process, group=True)
    evaluated = json.loads((run / "small_24.json").read_text())

    content = harness.finish()
    assert (harness.work / "small" / "probes.json").read_bytes() == probes
    found = {run["recipe"]: run for run in content["runs"]}
    assert set(found) == {"small", "slow"}
    assert found["small"] == evaluated  # it is not evaluated again
    for one in found.values():
        metrics = one["metrics"]
        assert metrics["frechet_distance_low"] <= metrics["frechet_distance"]
        assert 0 <= metrics["recall"] <= 1 and 0 <= metrics["attributes"] <= 100
    assert found["small"]["metrics"]["loss"] < found["slow"]["metrics"]["loss"]

    # A recipe that has left the list stays in the table.
    harness = Harness(tmp_path, faces, seeds={"small": [0]})
    content = harness.finish("--seeds", "0,1")
    assert {(run["recipe"], run["seed"]) for run in content["runs"]} == {
        ("small", 0),
        ("small", 1),
        ("slow", 0),
    }
    assert {row["recipe"] for row in content["rows"]} == {"small", "slow"}


def test_missing_faces_are_one_line(recipes, tmp_path):
    harness = Harness(tmp_path, tmp_path / "nowhere", seeds={"small": [0]})
    process = harness.start()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("error: ") and "make the faces" in said


def test_a_training_starts_from_the_network_of_another_recipe(faces, recipes, tmp_path):
    seeds, starts = {"small": [0], "slow": [0]}, {"slow": "small"}
    harness = Harness(tmp_path, faces, seeds=seeds, starts=starts)
    windows = [SECONDS / 2] * PROBE_WINDOWS  # so that the training takes ten steps
    for recipe in recipes:
        kept = {"settings": read_recipe(recipe).settings, "probes": [windows] * PROBES}
        write_json(harness.work / recipe.stem / "probes.json", kept)
    content = harness.finish("slow", "--seeds", "1")
    steps = 2 * PROBE_STEPS // PROBE_WINDOWS
    found = {(run["recipe"], run["seed"]): run["steps"] for run in content["runs"]}
    # The recipe from which another one starts is trained and evaluated first.
    assert found == {("small", 0): steps, ("slow", 1): steps}
    log = (harness.work / "slow" / f"{SECONDS}s_seed1" / "log.txt").read_text()
    assert "start.safetensors" in log
