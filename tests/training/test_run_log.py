"""Run logs: one record for each log step, also after a restart; aligned lines; progress bars."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.base.progress import progress
from utils.training.run_log import Pace, RunLog, metrics_line, time_text

METRICS = {
    "kimg": 1.28,
    "loss": 0.5,
    "lr": 1e-4,
    "mask_ratio": 0.5,
    "grad_norm": 0.25,
    "images_per_s": 99.5,
    "memory_gb": 1.5,
    "data_wait": 0.01,
}


def steps(folder: Path) -> list[int]:
    """Return the steps of the lines of metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_each_log_step_is_a_line_of_metrics(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    log.metrics(10, METRICS)
    log.metrics(20, METRICS)
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"step": 20, **METRICS}


def test_metrics_are_on_file_before_the_log_is_closed(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    log.metrics(10, METRICS)
    assert steps(tmp_path) == [10]
    log.close()


def test_a_continued_run_drops_later_records_and_a_torn_line(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    for step in (10, 20, 30):
        log.metrics(step, METRICS)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')
    continued = RunLog(tmp_path, step=20, tensorboard=False)
    continued.metrics(30, METRICS)
    continued.close()
    assert steps(tmp_path) == [10, 20, 30]


def test_console_and_log_txt_say_the_same(tmp_path, capsys):
    log = RunLog(tmp_path, tensorboard=False)
    log.info("continuing")
    log.metrics(10, METRICS)
    log.close()
    shown = capsys.readouterr().out.splitlines()
    written = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[-len(text) :] for line, text in zip(written, shown, strict=True)] == shown


def test_lines_are_aligned_whatever_the_values():
    other = {**METRICS, "kimg": 38400.0, "loss": 12.25, "images_per_s": 12345.6}
    first, second = metrics_line(7, METRICS), metrics_line(300000, other)
    for label in ("kimg", "loss", "lr", "mask", "grad", "images/s", "GB", "data"):
        assert first.index(label) == second.index(label)


def test_a_line_says_how_far_the_training_is_and_stays_aligned():
    lines = [metrics_line(7, METRICS, Pace(900, 200)), metrics_line(800, METRICS, Pace(900, 5e5))]
    assert lines[0].startswith("step        7 of 900  kimg") and lines[0].endswith("  3 min left")
    assert lines[1].endswith("5 d 19 h left") and len(lines[0]) == len(lines[1])
    assert "left" not in metrics_line(900, METRICS, Pace(900, 0))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3500, "58 min"), (3590, "1 h 00 min"),
        (7500, "2 h 05 min"), (86399, "1 d 00 h"), (90000, "1 d 01 h"),
    ],
)  # fmt: skip
def test_a_duration_is_said_in_its_largest_units(seconds, text):
    assert time_text(seconds) == text


def test_tensorboard_holds_each_step_once_after_a_continuation(tmp_path):
    log = RunLog(tmp_path)
    for step, loss in ((10, 1.0), (20, 2.0), (30, 3.0)):
        log.metrics(step, {"loss": loss})
    log.close()
    continued = RunLog(tmp_path, step=20)
    continued.metrics(30, {"loss": 4.0})
    continued.scalars(30, {"fid": 5.0}, "eval")
    continued.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 1), (20, 2), (30, 4)]
    assert events.Scalars("eval/fid")[0].value == 5.0


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    log = RunLog(tmp_path / "run")
    log.info("hello")
    log.metrics(1, METRICS)
    log.close()
    assert list(progress(range(3), "faces", unit="image")) == [0, 1, 2]
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_progress_names_what_it_counts(capsys):
    assert list(progress(range(3), "embedding", unit="image")) == [0, 1, 2]
    shown = capsys.readouterr().err
    assert "embedding" in shown and "3/3" in shown and "image/s" in shown


def test_every_figure_of_an_evaluation_is_a_scalar_and_no_setting_is(tmp_path):
    log = RunLog(tmp_path)
    metrics = {"frechet_distance": 5.0, "clip_score": None, "kid": 0.25, "recall_dinov2": 0.5}
    log.evaluation(30, "guidance 2", {"n": 256, "cfg_scale": 2.0, "seconds": 3.0, **metrics})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    group = "eval, guidance 2"
    assert logged == {
        f"{group}/frechet_distance": 5.0,
        f"{group}/kid": 0.25,
        f"{group}/recall_dinov2": 0.5,
    }
