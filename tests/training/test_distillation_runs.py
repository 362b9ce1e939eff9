"""Distillations as whole trainings: they learn, continue, and leave a student that says so."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import (
    make_tiny_checkpoint,
    make_tiny_config,
    make_tiny_evaluation_data,
    make_tiny_training_data,
)
from trainings import final_state, metrics, run, run_script

from utils.base.errors import UserError
from utils.config.load import load_config
from utils.pretrained.checkpoint_files import list_checkpoints, load_checkpoint
from utils.pretrained.denoisers import denoiser_from_config, export_safetensors, load_denoiser
from utils.training.checkpoint import save_checkpoint

SIGMAS = (20.0, 2.0)


@pytest.fixture(scope="module")
def teacher(faces) -> Path:
    """Return a checkpoint of random weights that depend on every input."""
    config, path = load_config(faces), faces.parent / "teacher" / "0000007.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = denoiser_from_config(config)
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
    save_checkpoint(path, {"ema": denoiser.state_dict(), "step": 7, "config": config.to_dict()})
    return path


def settings(teacher: Path, *more: str) -> tuple[str, ...]:
    """Return the overrides of a distillation into two steps."""
    return (
        f"distill.teacher={teacher}", f"distill.sigmas={list(SIGMAS)}", "distill.cfg_scale=2",
        "distill.teacher_steps=2", "sampling.preset=instant", "sampling.cfg_scale=null",
        "model.class_dropout_prob=0", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(faces, teacher) -> Path:
    """Return the folder of a finished distillation of twelve steps."""
    return run(faces, faces.parent / "student", *settings(teacher))


def test_a_student_begins_with_the_averaged_weights_of_its_teacher(faces, teacher, tmp_path):
    folder = run(
        faces, tmp_path / "run", *settings(teacher, "train.max_num_steps=1"), "train.lr=1e-9"
    )
    student = load_checkpoint(folder / "checkpoints" / "0000001.pt")
    ema = load_checkpoint(teacher)["ema"]
    for which in ("model", "ema"):
        assert all(torch.allclose(student[which][n], w, atol=1e-6) for n, w in ema.items())
    assert f"the averaged weights of {teacher}" in (folder / "log.txt").read_text()


def test_a_student_learns_all_tokens_however_its_teacher_was_masked(faces, teacher, tmp_path):
    more = ("train.max_num_steps=150", "train.lr=3e-3", "log.log_every=25", "train.grad_accum=1")
    folder = run(faces, tmp_path / "run", *settings(teacher, *more), "log.ckpt_every=150")
    lines = metrics(folder)
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert {line["mask_ratio"] for line in lines} == {0}


def test_a_continued_distillation_equals_the_uninterrupted_one_bit_for_bit(
    finished, faces, teacher, tmp_path
):
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    (copy / "checkpoints" / "0000012.pt").unlink()
    run(faces, copy, *settings(teacher))
    assert final_state(copy) == final_state(finished)
    assert metrics(copy) == metrics(finished)


def test_another_teacher_is_another_run(finished, faces, teacher, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    other = Path(shutil.copy(teacher, tmp_path / "0000008.pt"))
    with pytest.raises(UserError, match=r"distill\.teacher is .*0000007\.pt there and"):
        run(faces, copy, *settings(other))


def test_a_released_student_says_how_it_is_sampled(finished, tmp_path):
    export_safetensors(finished / "checkpoints" / "0000012.pt", tmp_path / "student.safetensors")
    student, config = load_denoiser(tmp_path / "student.safetensors")
    sampling = config.sampling
    assert student.distilled_sigmas == sampling.sigmas == SIGMAS
    assert (sampling.solver, sampling.num_steps, sampling.cfg_scale) == ("euler", 2, None)


def test_grids_and_evaluation_sample_with_the_sampler_of_the_student(tmp_path):
    config = make_tiny_config(
        tmp_path,
        train={"max_num_steps": 2},
        eval={"fid_sample_size": 8, "caption_dir": None},
        log={"ckpt_every": 2, "sample_every": 2, "num_samples": 2, "use_tensorboard": False},
    )
    make_tiny_training_data(config)
    make_tiny_evaluation_data(config)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    teacher = make_tiny_checkpoint(tmp_path / "0000001.pt", config)
    folder = run(tmp_path / "config.yaml", tmp_path / "run", *settings(teacher), enable_eval=True)
    (record,) = (folder / "evaluation" / "results.jsonl").read_text().splitlines()
    assert '"sigmas": [20.0, 2.0]' in record and '"solver": "euler"' in record
    title = Image.open(folder / "samples" / "0000002.png").info["Title"]
    assert "no guidance" in title and "noise" not in title


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("distill.teacher=none.pt",), r"none\.pt"),
        (("distill.teacher=null",), r"set distill\.teacher \(or --teacher\)"),
        (("model.hidden_size=64",), "does not fit the configured model"),
        (("model.sigma_data=1",), r"trained with model\.sigma_data=0\.5"),
        (("model.perturbation=true",), "a learned perturbation cannot be a teacher"),
        (("sampling.preset=fast",), "distilled for Euler steps at sigmas=.20,2."),
    ],
)
def test_a_distillation_that_cannot_work_is_refused_in_one_line(
    faces, teacher, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message) as caught:
        run(faces, tmp_path / "run", *settings(teacher, *changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_student_teaches_a_student_of_fewer_steps(faces, finished, tmp_path):
    teacher = finished / "checkpoints" / "0000012.pt"
    fewer = ("distill.sigmas=[20]", "distill.cfg_scale=null", "train.max_num_steps=150")
    folder = run(
        faces, tmp_path / "run", *settings(teacher, *fewer), "train.lr=3e-3", "log.log_every=25"
    )
    lines = metrics(folder)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    student, config = load_denoiser(folder / "checkpoints" / "0000150.pt")
    assert student.distilled_sigmas == config.sampling.sigmas == (20,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("distill.sigmas=[20]",), r"cfg_scale=2: .*0000012\.pt is a student"),
        (
            ("distill.sigmas=[20,5]", "distill.cfg_scale=null"),
            r"distill\.sigmas: .* noise levels \[20\.0, 2\.0\], and 5 is none of them",
        ),
    ],
)
def test_what_a_student_cannot_teach_is_refused(faces, finished, tmp_path, changes, message):
    student = finished / "checkpoints" / "0000012.pt"
    with pytest.raises(UserError, match=message):
        run(faces, tmp_path / "run", *settings(student, *changes))


def test_a_student_is_not_taken_for_a_denoiser(faces, finished):
    with pytest.raises(UserError, match=r"settings ask for no student.* distill\.sigmas=\[20,2\]"):
        load_denoiser(finished / "checkpoints" / "0000012.pt", config=load_config(faces))


def test_the_command_line_names_the_teacher(faces, teacher, tmp_path):
    words = ["--config", faces, "--teacher", teacher, "--results_dir", tmp_path]
    words += ["--exp_name", "run", "train.max_num_steps=1", *settings(teacher)[1:]]
    assert run_script(*words) == 0
    assert load_config(tmp_path / "run" / "config.yaml").distill.teacher == teacher
    assert list(list_checkpoints(tmp_path / "run" / "checkpoints")) == [1]
