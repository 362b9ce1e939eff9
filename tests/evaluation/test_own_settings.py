"""Evaluation knows an experiment or a file by its name alone: no `--config` is needed."""

import json
import sys
from pathlib import Path

import pytest
from conftest import crude_face
from tiny import RESOLUTION, make_tiny_checkpoint, make_tiny_config, make_tiny_evaluation_data

import eval_latent_t2f
from preprocess_scripts import fid_ref
from research.attributes import check_prompts
from research.gap import angle
from utils.config.schema import Config
from utils.evaluation.references import load_stats
from utils.pretrained.denoisers import export_safetensors


@pytest.fixture
def config(tmp_path, tiny_faces) -> Config:
    """Make the config of an experiment whose settings are neither the demo's nor the defaults."""
    images, captions = tiny_faces(10, RESOLUTION)
    made = make_tiny_config(
        tmp_path,
        eval={
            "batchsize": 8,
            "image_dir": images,
            "caption_dir": captions,
            "fid_sample_size": 12,
        },
        sampling={"num_steps": 2},
    )
    make_tiny_evaluation_data(made)
    return made


@pytest.fixture
def experiment(config, tmp_path) -> Path:
    """Make an experiment folder with one checkpoint and its config.yaml."""
    folder = tmp_path / "exp"
    make_tiny_checkpoint(folder / "checkpoints" / "0000010.pt", config)
    (folder / "config.yaml").write_text(config.to_yaml())
    return folder


@pytest.fixture
def call(monkeypatch):
    """Return a function that runs a script's main() with a command line."""

    def run(main, *words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, words)])
        main()

    return run


@pytest.fixture
def evaluate(call, tmp_path):
    """Return a function: evaluate(*flags) -> the script's output stays to be read by capsys."""

    def run(*flags: object) -> None:
        call(eval_latent_t2f.main, "--results_dir", tmp_path / "results", *flags)

    return run


def records_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_an_experiment_is_evaluated_with_its_own_settings(evaluate, experiment, capsys):
    evaluate("--experiment_dir", experiment)
    (record,) = records_in(experiment / "evaluation")
    assert (record["n"], record["num_steps"], record["step"]) == (12, 2, 10)
    assert f"the settings are those of {experiment}/config.yaml" in capsys.readouterr().err


def test_keys_and_flags_change_the_experiments_settings(evaluate, experiment):
    evaluate("--experiment_dir", experiment, "eval.fid_sample_size=9", "--num_steps", 3)
    (record,) = records_in(experiment / "evaluation")
    assert (record["n"], record["num_steps"]) == (9, 3)


def test_an_old_experiment_without_config_file_is_evaluated_with_its_checkpoints_settings(
    evaluate, experiment
):
    evaluate("--experiment_dir", experiment)
    (experiment / "config.yaml").unlink()
    evaluate("--experiment_dir", experiment)
    assert len(records_in(experiment / "evaluation")) == 1  # the settings were equal


def test_a_demo_that_is_there_is_evaluated_with_its_own_settings(evaluate, experiment, tmp_path):
    demo = tmp_path / "results" / "demo"
    demo.parent.mkdir()
    experiment.rename(demo)
    evaluate()
    assert records_in(demo / "evaluation")[0]["n"] == 12


def test_one_checkpoint_of_an_experiment_is_evaluated_into_its_folder(evaluate, experiment):
    evaluate("--experiment_dir", experiment)
    evaluate("--ckpt", experiment / "checkpoints" / "0000010.pt")
    assert len(records_in(experiment / "evaluation")) == 1


def test_a_file_alone_is_evaluated(evaluate, experiment, config, tmp_path, capsys):
    checkpoint = experiment / "checkpoints" / "0000010.pt"
    released = tmp_path / "sent" / "dit.safetensors"
    export_safetensors(checkpoint, released)
    best = tmp_path / "sent" / "best.pt"
    checkpoint.rename(best)
    for path in (released, best):
        evaluate("--ckpt", path)
        folder = tmp_path / "results" / path.stem / "evaluation"
        (record,) = records_in(folder)
        assert (record["step"], record["n"], record["checkpoint"]) == (10, 12, path.name)
        assert f"{folder}/: report.html" in capsys.readouterr().out
        assert (folder / "report.html").exists()
    evaluate("--ckpt", best, "--out", tmp_path / "out")
    assert len(records_in(tmp_path / "out")) == 1


def test_another_file_of_the_same_name_is_noted(evaluate, config, tmp_path, capsys):
    for seed, name in enumerate(("one", "two")):
        path = make_tiny_checkpoint(tmp_path / name / "0000010.pt", config, seed)
        evaluate("--ckpt", path)
        said = "results of other files too; --out keeps them apart" in capsys.readouterr().err
        assert said == (name == "two")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--experiment_dir", "nowhere"], "nowhere: holds no config.yaml, and no checkpoint"),
        (["--ckpt", "nowhere.pt"], "nowhere.pt does not exist"),
        (
            ["--ckpt", "README.md"],
            "README.md is not a checkpoint, the .pt file of a training; name",
        ),
        (["--ckpt", "docs"], "docs: is no release folder"),
        (["--ckpt", "x.pt", "--experiment_dir", "y"], "exclude each other"),
        (["--ckpt", "x.pt", "--ckpt_ids", "3"], "--ckpt names one file; leave --ckpt_ids"),
        ([], "results/demo/checkpoints: holds no checkpoints"),
    ],
)
def test_mistakes_give_one_clear_line(evaluate, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        evaluate(*flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_the_overview_among_generated_images_is_not_evaluated(
    evaluate, experiment, config, tmp_path, capsys
):
    generated = tmp_path / "made"
    generated.mkdir()
    for seed in range(5):
        crude_face(seed, RESOLUTION).save(generated / f"00_{seed:03d}.png")
    flags = ("--images", generated, "--experiment_dir", experiment, "--metrics_out")
    evaluate(*flags, tmp_path / "without.json")
    assert "left out" not in capsys.readouterr().err
    crude_face(9, 4 * RESOLUTION).save(generated / "grid.png")
    evaluate(*flags, tmp_path / "with.json")
    assert "made: left out grid.png, an overview" in capsys.readouterr().err
    without, beside = (
        json.loads((tmp_path / f"{n}.json").read_text()) for n in ("without", "with")
    )
    assert beside == without and beside["n"] == 5


def test_statistics_and_angles_follow_an_experiment_too(call, experiment, config, tmp_path, capsys):
    config.eval.ref_path.unlink()
    call(fid_ref.main, "--experiment_dir", experiment)
    assert load_stats(config.eval.ref_path).n == 10
    call(
        angle.main,
        *("fixed:0.8", "--experiment_dir", experiment, "--out", tmp_path / "angle"),
        *("--embeddings", config.eval.image_feat_path),
    )
    (experiment / "config.yaml").write_text("data: {feat_path: nothing/clip_img}")
    with pytest.raises(SystemExit):
        call(angle.main, "fixed:0.8", "--experiment_dir", experiment)
    assert "nothing/clip_img" in capsys.readouterr().err


def test_the_check_of_encoders_asks_the_checkpoint_for_them(call, capsys):
    with pytest.raises(SystemExit):
        call(check_prompts.main, "--ckpt", "nowhere.pt")
    assert capsys.readouterr().err == "error: nowhere.pt does not exist\n"
