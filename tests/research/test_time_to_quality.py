"""research/recipes/time_to_quality.py and research/study/run.py as processes: two small recipes,
continued."""

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
from research.recipes.trainings import PROBE_STEPS, PROBE_WINDOWS, PROBES
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
    vae, clip = load_config_autoencoder(config), load_config_clip(config)
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
        "base": str(ROOT / "configs/demo/recipes/today.yaml"),
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

    def __init__(self, folder: Path, faces: Path, recipes: list[Path]) -> None:
        self.work, self.out = folder / "work", folder / "out.json"
        self.command = [
            sys.executable,
            "research/recipes/time_to_quality.py",
            "--seconds",
            str(SECONDS),
        ]
        self.command += ["--num", "24", "--points", "2", "--threads", "1", "--data", str(faces)]
        self.command += ["--work", str(self.work), "--out", str(self.out)]
        self.command += ["--judge", str(faces / "judge.safetensors"), "--not_averaged", "slow"]
        self.command += ["--recipes", *map(str, recipes)]

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
    harness = Harness(tmp_path, faces, recipes)
    run = harness.work / "small" / f"{SECONDS}s_seed0"
    for recipe, count in zip(recipes, (PROBES - 1, PROBES), strict=True):
        harness.keep_probes(recipe, count)

    process = harness.start()
    said = harness.when(run / "metrics.jsonl", signal.SIGTERM, process, group=False)
    assert process.returncode == 2, said
    assert "stopped; the same command goes on" in said.splitlines()[-1]
    assert list((run / "checkpoints").glob("*.pt"))
    probes = (harness.work / "small" / "probes.json").read_bytes()
    assert len(json.loads(probes)["probes"]) == PROBES

    process = harness.start()
    harness.when(run / "judged_24.json", signal.SIGKILL, process, group=True)
    evaluated = json.loads((run / "judged_24.json").read_text())["ema"]["points"]
    assert len(evaluated) == 1 and not harness.out.exists()

    content = harness.finish()
    assert (harness.work / "small" / "probes.json").read_bytes() == probes
    labels = {run["label"]: run for run in content["runs"]}
    assert set(labels) == {"small", "slow", "slow, not averaged"}
    assert labels["small"]["points"][: len(evaluated)] == evaluated  # they are not judged again
    for label, one in labels.items():
        *_, last = one["points"]
        assert len(one["points"]) == 2 and last["step"] == one["steps"], label
        assert SECONDS / 3 < last["seconds"] < SECONDS * 3
        assert last["frechet_distance_low"] <= last["frechet_distance"]
        assert 0 <= last["recall"] <= 1 and 0 <= last["attributes"] <= 100
    assert labels["small"]["points"][-1]["loss"] < labels["slow"]["points"][-1]["loss"]
    assert harness.out.with_suffix(".png").stat().st_size > 10_000

    # A further seed is judged at its end alone; a recipe without YAML stays in the table.
    recipes[1].unlink()
    harness.command = [word for word in harness.command if word != str(recipes[1])]
    content = harness.finish("--seeds", "0,1")
    points = {(run["label"], run["seed"]): len(run["points"]) for run in content["runs"]}
    assert points[("small", 0)] == 2 and points[("small", 1)] == 1
    assert {row["recipe"] for row in content["rows"]} == {
        "small",
        "slow (dropped)",
        "slow, not averaged (dropped)",
    }


def test_missing_faces_are_one_line(recipes, tmp_path):
    harness = Harness(tmp_path, tmp_path / "nowhere", recipes)
    process = harness.start()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("error: ") and "make the faces" in said


def test_the_study_trains_judges_and_goes_on(faces, recipes, tmp_path):
    runs = {
        "seconds": 2,
        "pictures": 24,
        "tables": {"all": {"recipes": ["small", "slow"], "seeds": "0"}},
        "starts": {"slow": "small"},
    }
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
    work, out = tmp_path / "work", tmp_path / "out.json"
    windows = [1.0] * PROBE_WINDOWS  # so that two seconds are ten steps
    for recipe in recipes:
        kept = {"settings": read_recipe(recipe).settings, "probes": [windows] * PROBES}
        write_json(work / recipe.stem / "probes.json", kept)
    command = [sys.executable, "research/study/run.py", "--runs", str(tmp_path / "runs.yaml")]
    command += ["--data", str(faces), "--work", str(work), "--out", str(out), "--threads", "1"]
    command += ["--judge", str(faces / "judge.safetensors")]

    def study(*words: str) -> str:
        done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    study("slow", "--seeds", "1")
    content = json.loads(out.read_text())
    steps = 2 * PROBE_STEPS // PROBE_WINDOWS
    found = {(run["recipe"], run["seed"]): run["steps"] for run in content["runs"]}
    # The recipe from which another one starts is trained and judged first.
    assert found == {("small", 0): steps, ("slow", 1): steps}
    log = (work / "slow" / "2s_seed1" / "log.txt").read_text()
    assert "start.safetensors" in log

    evaluated = work / "slow" / "2s_seed1" / "judged_24.json"
    before = evaluated.stat().st_mtime_ns
    study()
    assert evaluated.stat().st_mtime_ns == before
    content = json.loads(out.read_text())
    assert {(r["recipe"], r["seed"]) for r in content["runs"]} == {*found, ("slow", 0)}
    assert {row["recipe"] for row in content["rows"]} == {"small", "slow"}
