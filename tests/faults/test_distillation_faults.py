"""Distillations as real processes: killed, continued, and shared by two."""

import signal
from pathlib import Path

import pytest
from harness import seeded
from training_runs import SETTINGS, STEPS, interrupt, outcome, start, start_ranks
from trainings import metrics, run

from utils.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def student(faces) -> Path:
    """Return the config file of a distillation; its teacher has been trained for twelve steps."""
    teacher = run(faces, faces.parent / "teacher") / "checkpoints" / "0000012.pt"
    path = faces.parent / "student.yaml"
    path.write_text(
        f"base: {faces.name}\n"
        f"distill: {{teacher: {teacher}, sigmas: [20, 2], cfg_scale: 2, teacher_steps: 2}}\n"
        "sampling: {preset: instant, cfg_scale: null}\n"
    )
    return path


@pytest.fixture(scope="module")
def whole(student) -> Path:
    """Return the folder of an uninterrupted distillation."""
    return run(student, student.parent / "whole", *SETTINGS)


def test_a_distillation_killed_at_random_moments_ends_bit_identical(student, whole, tmp_path):
    rng, folder = seeded("distillation"), tmp_path / "run"
    for _ in range(2):
        with start(student, folder) as training:
            interrupt([training], folder, rng, signal.SIGKILL, within=0.3)
    with start(student, folder) as training:
        assert training.wait() == 0
    assert outcome(folder) == outcome(whole)
    assert list(list_checkpoints(folder / "checkpoints"))[-1] == STEPS


def test_two_processes_distil_what_one_does(student, whole, tmp_path):
    ranks = start_ranks(student, tmp_path / "two")
    assert [rank.wait() for rank in ranks] == [0, 0]
    for one, two in zip(metrics(whole), metrics(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_a_sharded_student_learns_from_a_whole_teacher(student, whole, tmp_path):
    ranks = start_ranks(student, tmp_path / "sharded", "train.shard=true")
    assert [rank.wait() for rank in ranks] == [0, 0]
    for one, two in zip(metrics(whole), metrics(tmp_path / "sharded"), strict=True):
        assert two == pytest.approx(one, rel=1e-3)
