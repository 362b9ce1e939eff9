"""tools/tune.py: settings chosen on one half of the held-out images, reported on the other one."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import make_tiny_config, make_tiny_evaluation_data, make_tiny_training_data
from trainings import run

from models.samplers import SeededNoise
from tools import tune
from utils.config.load import load_config
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.metric_names import distance_of
from utils.evaluation.results import Results
from utils.pretrained.averages import kept_averages, write_average
from utils.pretrained.checkpoint_files import load_checkpoint, read_weights
from utils.release.folder import export_folder
from utils.sampling.text_to_face import TextToFace

STEPS = 12
CHOICES = ("--cfg_scales", "None,2,4", "--intervals", "all,0.3-5", "--widths", "0.07,0.28")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A training of twelve steps that kept averages, with twelve held-out images."""
    folder = tmp_path_factory.mktemp("tuned")
    config = make_tiny_config(
        folder,
        model={"mask_ratio": 0},
        train={"max_num_steps": STEPS, "power_ema": [0.05, 0.1]},
        log={"ckpt_every": 2, "log_every": 4, "sample_every": 0, "use_tensorboard": False},
        sampling={"num_steps": 2},
    )
    make_tiny_training_data(config, 20, seed=0)
    make_tiny_evaluation_data(config, 12)
    (folder / "config.yaml").write_text(config.to_yaml())
    return run(folder / "config.yaml", folder / "run")


@pytest.fixture
def experiment(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def tuned(monkeypatch, experiment):
    """`tuned(*flags)` runs the tool on eight images a setting; returns its folder."""
    monkeypatch.setattr(tune, "HALF", 6)

    def call(*flags: object) -> Path:
        words = ["tune.py", experiment, "--num", 8, *flags]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        tune.main()
        return experiment / "tuned"

    return call


def about(folder: Path) -> dict:
    return json.loads((folder / "tuned.json").read_text())


def test_the_best_of_each_key_stays_the_other_half_reports_and_nothing_is_measured_twice(
    tuned, experiment, capsys
):
    folder = tuned(*CHOICES)
    said, tuning = capsys.readouterr(), about(folder)
    trials = [(t["settings"], distance_of(t["record"])) for t in tuning["trials"]]
    assert [s["cfg_scale"] for s, _ in trials[:3]] == [2.0, None, 4.0]  # 2 was the setting before
    chosen, least = next(t for t in trials if t[0] == tuning["chosen"]), min(t[1] for t in trials)
    assert least <= chosen[1] < least / 0.99 and tuning["before"] == trials[0][0]
    assert {s["width"] for s, _ in trials} == {None, 0.07}
    assert "too few checkpoints for the widths 0.28" in said.err
    halves = [{t["record"]["reference"] for t in tuning["trials"]}]
    halves.append({record["reference"] for record in tuning["report"].values()})
    assert all(len(half) == 1 for half in halves) and halves[0] != halves[1]
    assert "chose nothing, the Fréchet distance is" in said.out
    settings = yaml.safe_load((folder / "tuned.yaml").read_text())["sampling"]
    assert settings == {k: v for k, v in chosen[0].items() if k != "width"}
    measured = len(Results(folder).records)
    tuned(*CHOICES)
    assert len(Results(folder).records) == measured and about(folder) == tuning


def test_sampling_evaluation_and_export_take_what_was_chosen(tuned, experiment):
    folder = tuned("--cfg_scales", "4", "--intervals", "all", "--widths", "0.07")
    tuning = about(folder)
    faces = TextToFace.load(folder / "tuned.safetensors", device="cpu")
    assert faces.config.sampling.cfg_scale == tuning["chosen"]["cfg_scale"]
    changes = yaml.safe_load((folder / "tuned.yaml").read_text())
    changes["sampling"]["cfg_scale"] = 3.5
    (folder / "tuned.yaml").write_text(yaml.safe_dump(changes))
    assert TextToFace.load(folder / "tuned.safetensors").config.sampling.cfg_scale == 3.5
    export_folder(folder / "tuned.safetensors", experiment / "released", device="cpu")
    card = (experiment / "released" / "README.md").read_text()
    assert "## Choice of the settings" in card and "one key after the other" in card
    assert "| 2 | all | 0.07 |" in card and f"step {STEPS}" in card
    assert f"{tuning['images_seen']} images seen" in card


def test_the_written_weights_are_the_average_that_would_have_been_tracked(experiment, tmp_path):
    checkpoint = experiment / "checkpoints" / f"{STEPS:07d}.pt"
    kept = kept_averages(checkpoint)
    assert len(kept) == STEPS  # two of each of six checkpoints
    write_average(checkpoint, kept, 0.1, tmp_path / "same.safetensors")
    own = load_checkpoint(checkpoint)["power_ema"]["weights"][1]
    weights, _ = read_weights(tmp_path / "same.safetensors")
    for name, tensor in own.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for file in files:
        write_average(checkpoint, kept, 0.07, file)
    assert len({file.read_bytes() for file in files}) == 1
    assert kept_averages(experiment / "checkpoints" / "0000002.pt")[-1].snapshot.steps == 2


def test_a_bound_on_the_clip_score_is_kept(tuned):
    folder = tuned("--cfg_scales", "-20", "--widths", "None", "--max_clip_loss", 0)
    tuning = about(folder)
    scores = {json.dumps(t["settings"]): t["record"]["clip_score"] for t in tuning["trials"]}
    assert scores[json.dumps(tuning["chosen"])] >= scores[json.dumps(tuning["before"])]
    assert "at most 0 points below" in tuning["criterion"]


def test_few_held_out_images_are_not_halved_and_it_says_so(tuned, monkeypatch, capsys):
    monkeypatch.setattr(tune, "HALF", 100)
    folder = tuned("--cfg_scales", "2", "--widths", "None", "--intervals", "all")
    assert not about(folder)["is_split"]
    assert "optimistic" in capsys.readouterr().out


def test_the_halves_share_no_image_and_no_caption(trained):
    evaluator = Evaluator(load_config(trained / "config.yaml"))
    noise = [SeededNoise(list(range(200))) for _ in range(2)]
    chosen = [evaluator.half(i).choose_captions(noise[i])[:, 0].unique().tolist() for i in (0, 1)]
    assert chosen == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    rows = np.concatenate([evaluator.half(i).reference.features for i in (0, 1)])
    assert {row.tobytes() for row in rows} == {r.tobytes() for r in evaluator.reference.features}
    whole = np.cov(evaluator.half(1).reference.features.astype(float), rowvar=False)
    np.testing.assert_allclose(evaluator.half(1).reference.sigma, whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step", 7], "no checkpoint of step 7; there are 2 to 12"),
        (["--intervals", "5-0.3"], "--intervals '5-0.3': should look like"),
        (["--widths", "wide"], "'wide': should be positive numbers"),
        (["--num", 1], "--num 1: a Fréchet distance needs at least 2 images"),
        (["--max_clip_loss", "nan"], "--max_clip_loss nan: should be a number"),
    ],
)
def test_mistakes_give_one_line(tuned, capsys, flags, message):
    with pytest.raises(SystemExit):
        tuned(*flags)
    assert message in capsys.readouterr().err
