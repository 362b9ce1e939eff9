"""research/recipes/compare.py on photographs: databases, a training, all metrics."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from research.photos.traits import read_sentences
from research.recipes import check_photos, compare
from research.recipes.recipe import read_recipe
from research.recipes.training import PROBE_STEPS, PROBE_WINDOWS, PROBES
from utils.base.files import write_json
from utils.data.lmdb_reader import LMDBReader

PHOTOS = os.environ.get("PHOTOS")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not PHOTOS, reason="PHOTOS names no folder of photographs"),
]
TRAIN, TEST = 32, 8  # images


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Copy a few photographs: two of each trait, some without captions; link the encoders."""
    data = tmp_path_factory.mktemp("photos")
    photos, source = Path(PHOTOS or ""), data / "source"
    for split, of_each, count in (("train", 2, TRAIN), ("test", 1, TEST)):
        images, captions = (photos / split / part for part in ("images", "captions"))
        files = {path.stem: path for path in sorted(images.iterdir())}
        texts = {path.stem: path.read_text().splitlines() for path in sorted(captions.iterdir())}
        chosen: list[str] = []
        for trait in read_sentences().traits.values():
            shown = [name for name in texts if set(texts[name]) & set(trait.captions)]
            chosen += [name for name in shown if name not in chosen][:of_each]
        chosen += [name for name in files if name not in texts][: count - len(chosen)]
        assert len(chosen) == count
        for part in ("images", "captions"):
            (source / split / part).mkdir(parents=True)
        for name in chosen:
            shutil.copy(files[name], source / split / "images")
            if name in texts:
                shutil.copy(captions / f"{name}.txt", source / split / "captions")
    for encoder in ("vae", "clip"):
        (source / encoder).symlink_to(photos / encoder)
    return data


def test_a_recipe_with_some_captions_is_trained_and_evaluated_on_photographs(
    world, tmp_path, monkeypatch, capsys, own_cores
):
    train = world / "lmdb" / "train"
    values = {
        "base": str(ROOT / "configs/photos/study/mixed_literal.yaml"),
        "data": {
            "root": str(train / "z"),
            "feat_path": str(world / "study" / "mixed" / "clip_txt"),
        },
        "encoders": {name: str(world / "source" / name) for name in ("vae", "clip")},
        "model": {"depth": 1, "hidden_size": 32, "num_heads": 2},
        "train": {"batchsize": 8},
        "sampling": {"num_steps": 2},
    }
    values["encoders"]["latent_statistics"] = str(train / "z" / "latent_statistics.json")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(values))
    runs = {"world": "photos", "seconds": 2, "images": TEST, "seeds": {"small": [0]}}
    runs["sentence_images"] = 2
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
    work = tmp_path / "work"
    windows = [1.0] * PROBE_WINDOWS  # so that the training takes ten steps
    kept = {"settings": read_recipe(recipe).settings, "probes": [windows] * PROBES}
    write_json(work / "small" / "probes.json", kept)
    command = ["research/recipes/compare.py", str(tmp_path / "runs.yaml")]
    command += ["--data", str(world), "--work", str(work), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", command)
    compare.main()

    (run,) = json.loads((work / "results.json").read_text())["runs"]
    metrics = run["metrics"]
    assert run["steps"] == 2 * PROBE_STEPS // PROBE_WINDOWS
    for key in ("frechet_distance", "frechet_distance_other", "colour_distance", "loss"):
        assert metrics[key] > 0
    assert 0 <= metrics["retrieval_1"] <= metrics["retrieval_5"] <= 100
    assert {key for key in metrics["real"]["traits"]} == set(read_sentences().traits)
    assert len(metrics["sentences"]) == len(read_sentences().stated)
    assert metrics["to_training"] > 0
    counts = LMDBReader(world / "study" / "mixed" / "clip_txt").info.counts
    assert len(counts) == TRAIN and counts.min() == 1 and counts.max() >= 2
    assert "own caption is among the nearest 5" in capsys.readouterr().out

    command = ["research/recipes/check_photos.py", "--data", str(world)]
    command += ["--images", "4", "--seeds", "1", "--out", str(tmp_path / "check.json")]
    command.append(str(work / "small" / "2s_seed0" / "checkpoints" / "0000010.pt"))
    monkeypatch.setattr(sys, "argv", command)
    check_photos.main()
    checked = json.loads((tmp_path / "check.json").read_text())
    rows = {row["sentence"]: row for row in checked["rows"]}
    assert len(rows) == len(read_sentences().stated)
    assert rows["a person wearing a hat"]["in training photographs"].endswith("n = 2")
    assert rows["a redhead"]["in held-out photographs"] == "–"
    assert checked["metrics"]["sentences"]["a redhead"]["n"] == 1
