"""Faults of a training: kills, signals, full disks and lost processes, done to real processes."""

import os
import signal
from pathlib import Path

import pytest
from harness import fill_disk, seeded, small_disk
from training_runs import (
    CKPT_EVERY,
    SETTINGS,
    STEPS,
    interrupt,
    outcome,
    start,
    start_ranks,
)
from trainings import FEW_BLOCKS, metrics, run

from utils.base.errors import LOST_PROCESS, NOT_SAVED
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def whole(faces) -> Path:
    """Return the folder of an uninterrupted training."""
    return run(faces, faces.parent / "whole", *SETTINGS)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]
)
def test_a_training_interrupted_at_random_moments_ends_bit_identical(
    faces, whole, tmp_path, number
):
    rng, folder = seeded(f"training, {number.name}"), tmp_path / "run"
    for _ in range(2):
        with start(faces, folder) as training:
            (code,) = interrupt([training], folder, rng, number, within=0.3)
        assert code in (0, -number if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGKILL:
            assert metrics(folder)[-1]["step"] <= max(list_checkpoints(folder / "checkpoints"))
    with start(faces, folder) as training:
        assert training.wait() == 0
    assert outcome(folder) == outcome(whole)
    assert list(list_checkpoints(folder / "checkpoints"))[-1] == STEPS


def test_a_kill_costs_no_more_than_the_steps_since_the_last_checkpoint(faces, tmp_path):
    folder = tmp_path / "run"
    with start(faces, folder, "train.max_num_steps=100000") as training:
        training.wait_until(lambda: (folder / "metrics.jsonl").exists() and metrics(folder)[8:])
        training.kill()
    reached = metrics(folder)[-1]["step"]
    saved = max(list_checkpoints(folder / "checkpoints"))
    # Checkpoints are written while training goes on: the kill may destroy the one being written.
    assert reached - saved <= 2 * CKPT_EVERY
    assert load_checkpoint(folder / "checkpoints" / f"{saved:07d}.pt")["step"] == saved


@pytest.mark.parametrize("is_compiled", [False, True])
def test_two_processes_see_the_batches_and_numbers_of_one(faces, whole, tmp_path, is_compiled):
    folder, settings = tmp_path / "two", ()
    if is_compiled:
        whole = run(faces, tmp_path / "whole", *SETTINGS, *FEW_BLOCKS)
        settings = (*FEW_BLOCKS, "train.compile=true")
    ranks = start_ranks(faces, folder, *settings)
    codes = [training.wait() for training in ranks]
    assert codes == [0, 0]
    for one, two in zip(metrics(whole), metrics(folder), strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    state, expected = (
        load_checkpoint(f / "checkpoints" / f"{STEPS:07d}.pt") for f in (folder, whole)
    )
    assert all((a == b).all() for a, b in zip(state["rng"], expected["rng"], strict=True))
    assert state["data_position"] == expected["data_position"]


def test_two_processes_train_with_muon_like_one(faces, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(faces, one, *SETTINGS, "train.optimizer=muon")
    assert [rank.wait() for rank in start_ranks(faces, two, "train.optimizer=muon")] == [0, 0]
    for alone, together in zip(metrics(one), metrics(two), strict=True):
        assert together == pytest.approx(alone, rel=1e-3)


def test_a_training_goes_on_with_another_number_of_processes(faces, whole, tmp_path):
    rng, folder = seeded("other processes"), tmp_path / "run"
    ranks = start_ranks(faces, folder)
    interrupt(ranks, folder, rng, signal.SIGKILL, within=0.1)
    for path in list(list_checkpoints(folder / "checkpoints").values())[2:]:
        path.unlink()
    with start(faces, folder) as training:
        assert training.wait() == 0
    for one, mixed in zip(metrics(whole), metrics(folder), strict=True):
        assert mixed == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_others_with_the_cause(faces, tmp_path, number):
    folder = tmp_path / "run"
    endless = ("train.max_num_steps=100000", "train.step_timeout=3", "log.ckpt_every=100000")
    first, second = start_ranks(faces, folder, *endless)
    try:
        first.wait_until(lambda: (folder / "metrics.jsonl").exists() and metrics(folder))
        second.send(number)
        assert first.wait(60) == LOST_PROCESS
        assert "process 0: another process is gone or does not answer" in first.said()
    finally:
        first.kill()
        second.kill()


def test_a_full_disk_stops_no_training_and_loses_nothing(faces, tmp_path):
    endless = ("train.max_num_steps=100000", "log.use_tensorboard=true", "log.keep_last=1")
    with small_disk(tmp_path / "disk", 8_000_000) as disk:
        folder = disk / "run"
        output = tmp_path / "output.txt"
        with start(faces, folder, *endless, output=output) as training:
            training.wait_until(lambda: list_checkpoints(folder / "checkpoints"))
            filler = fill_disk(disk)
            training.wait_until(lambda: "no space" in training.said())
            saved = max(list_checkpoints(folder / "checkpoints"))
            filler.unlink()
            training.wait_until(lambda: max(list_checkpoints(folder / "checkpoints")) > saved)
            training.send(signal.SIGTERM)
            assert training.wait() == 128 + signal.SIGTERM
        steps = [line["step"] for line in metrics(folder)]
        assert steps == list(range(4, steps[-1] + 1, 4))
        assert not list((folder / "checkpoints").glob(".*"))
    assert "WARNING" in training.said() and "next attempt in 1 s" in training.said()


def test_a_run_whose_last_checkpoint_finds_no_room_says_so_by_its_exit_code(faces, tmp_path):
    with small_disk(tmp_path / "disk", 8_000_000) as disk:
        folder = disk / "run"
        output = tmp_path / "output.txt"
        with start(faces, folder, "train.max_num_steps=100000", output=output) as training:
            training.wait_until(lambda: list_checkpoints(folder / "checkpoints"))
            fill_disk(disk)
            training.send(signal.SIGTERM)
            assert training.wait() == NOT_SAVED
    assert "NOT SAVED" in training.said()


def test_a_second_training_in_one_folder_is_refused_and_names_the_first(faces, tmp_path):
    folder = tmp_path / "run"
    with start(faces, folder, "train.max_num_steps=100000") as first:
        first.wait_until(lambda: any((folder / "checkpoints").glob("*.pt")))
        with start(faces, folder) as second:
            assert second.wait() == 2
        assert f"process {first.pid} on host {os.uname().nodename}" in second.said()
        assert first.poll() is None
        first.kill()
    with start(faces, folder, "train.max_num_steps=100000") as third:  # the lock left is stale
        third.wait_until(lambda: "continuing" in third.said())
