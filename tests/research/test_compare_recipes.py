"""research/recipes/compare.py as a process: two small recipes, stopped, killed, continued."""

import json
import signal
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from faults.harness import Run

from demo.make_faces import make_split
from research.attributes.classifier import load_faces
from research.recipes.compare import main
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
SECONDS = 2  # of each training
COST = 0.025  # processor seconds of a step of the small network, about


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Render faces, and make the databases and the reference that the demo's config names."""
    folder = tmp_path_factory.mktemp("faces")
    for split, count in (("train", 64), ("test", 24)):
        make_split(folder, split, count, num_captions=6, workers=1)
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
    """Write two recipes of a small network: `slow` hardly learns."""
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
    return [tmp_path / "slow.yaml", tmp_path / "small.yaml"]


class Harness:
    """The command: as a process with a group of its own, or in the test's process."""

    def __init__(self, folder: Path, faces: Path, **runs) -> None:
        self.work, self.out, self.runs = folder / "work", folder / "out.json", folder / "runs.yaml"
        values = {"seconds": SECONDS, "images": 24, "sentence_images": 4, **runs}
        self.runs.write_text(yaml.safe_dump(values, sort_keys=False))
        self.command = ["research/recipes/compare.py", str(self.runs)]
        self.command += ["--threads", "1", "--data", str(faces), "--work", str(self.work)]
        self.command += ["--out", str(self.out)]
        self.command += ["--classifier", str(faces / "classifier.safetensors")]

    def keep_probes(self, recipe: Path, count: int) -> None:
        """Write the first `count` probes of a recipe, as an earlier start leaves them."""
        windows = [COST * PROBE_STEPS / PROBE_WINDOWS] * PROBE_WINDOWS
        kept = {"settings": read_recipe(recipe).settings, "probes": [windows] * count}
        write_json(self.work / recipe.stem / "probes.json", kept)

    def interrupt(self, file: Path, number: signal.Signals) -> tuple[int, str]:
        """Start the command, and send it a signal once a file is there; SIGKILL to its group too.

        Returns the exit code and what it printed.
        """
        output = self.runs.with_name("said.txt")
        output.unlink(missing_ok=True)
        with Run(self.command[0], self.command[1:], output) as process:
            there = process.wait_until(lambda: file.exists() and file.stat().st_size, 600)
            assert there, process.said()
            process.kill() if number == signal.SIGKILL else process.send(number)
            return process.wait(), process.said()

    def finish(self, monkeypatch, *options: str) -> dict:
        """Run to the end; return the JSON."""
        monkeypatch.setattr(sys, "argv", [*self.command, *options])
        main()
        return json.loads(self.out.read_text())


def test_a_comparison_that_is_stopped_and_killed_goes_on_and_equals_its_parts(
    faces, recipes, tmp_path, monkeypatch, capsys, own_cores
):
    seeds, starts = {"small": [0], "slow": [0]}, {"small": "slow"}
    harness = Harness(tmp_path, faces, seeds=seeds, starts=starts)
    run = harness.work / "slow" / f"{SECONDS}s_seed0"
    for recipe, count in zip(recipes, (PROBES, PROBES - 1), strict=True):
        harness.keep_probes(recipe, count)

    # The recipe from which another one starts is trained and evaluated first.
    code, said = harness.interrupt(run / "config.yaml", signal.SIGTERM)
    assert code == 2, said
    assert "stopped; the same command goes on" in said.splitlines()[-1]
    probes = (harness.work / "small" / "probes.json").read_bytes()
    assert len(json.loads(probes)["probes"]) == PROBES

    harness.interrupt(run / "slow_24x4.json", signal.SIGKILL)
    evaluated = json.loads((run / "slow_24x4.json").read_text())

    content = harness.finish(monkeypatch)
    assert (harness.work / "small" / "probes.json").read_bytes() == probes
    found = {run["recipe"]: run for run in content["runs"]}
    assert set(found) == {"small", "slow"}
    assert found["slow"] == evaluated  # it is not evaluated again
    assert found["slow"]["steps"] == SECONDS / COST <= found["small"]["steps"]
    log = (harness.work / "small" / f"{SECONDS}s_seed0" / "log.txt").read_text()
    assert "start.safetensors" in log
    for one in found.values():
        metrics = one["metrics"]
        assert metrics["frechet_distance_low"] <= metrics["frechet_distance"]
        assert 0 <= metrics["recall"] <= 1 and 0 <= metrics["attributes"] <= 100
    assert found["small"]["metrics"]["loss"] < found["slow"]["metrics"]["loss"]

    # A recipe that has left the list stays in the table.
    harness = Harness(tmp_path, faces, seeds={"slow": [0]})
    content = harness.finish(monkeypatch, "--seeds", "0,1")
    assert {(run["recipe"], run["seed"]) for run in content["runs"]} == {
        ("slow", 0),
        ("slow", 1),
        ("small", 0),
    }
    assert {row["recipe"] for row in content["rows"]} == {"small", "slow"}

    # Runs with other numbers of images do not mix.
    harness = Harness(tmp_path, faces, seeds={"slow": [0]}, sentence_images=None)
    with pytest.raises(SystemExit):
        harness.finish(monkeypatch)
    assert "sentence_images = 4, these have None" in capsys.readouterr().err


def test_missing_faces_are_one_line(recipes, tmp_path, monkeypatch, capsys, own_cores):
    harness = Harness(tmp_path, tmp_path / "nowhere", seeds={"small": [0]})
    with pytest.raises(SystemExit) as stop:
        harness.finish(monkeypatch)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: ") and "make the faces" in said
