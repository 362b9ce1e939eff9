"""Reference runs are read whole, and plotted under one's own run by fractions of the training."""

import json

import numpy as np
import pytest
from faults.harness import Run
from matplotlib.figure import Figure

from utils.evaluation.training_curves import PANELS, own_curve, plot_training, reference_curves


@pytest.fixture
def run(tmp_path):
    """A folder with the metrics of 60 of 100 steps; every second line has an observation."""
    lines = [{"step": step, "loss": 1 / step, "seen_loss": None} for step in (20, 40, 60)]
    lines[1] |= {"seen_loss": 0.5, "cond_gain": 0.1, "update_ratio": 0.01, "ema_distance": 0.02}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


def test_the_reference_runs_have_every_panel_and_end_at_their_last_step():
    runs = reference_curves()
    assert {run.name.split(",")[0] for run in runs} == {"demo", "own_small", "photographs"}
    for run in runs:
        assert run.progress[-1] == 1
        assert all(np.isfinite(run.metrics[keys[0]]).sum() > 5 for *_, keys in PANELS)


def test_a_run_in_progress_is_drawn_over_them_as_far_as_it_is(run):
    own, axis = own_curve(run, 100), Figure().subplots()
    plot_training(axis, 0, own, reference_curves())
    *references, line = axis.get_lines()
    assert line.get_color() == "black"
    assert list(line.get_xdata()) == [0.2, 0.4, 0.6]
    assert len(references) == 3
    axis.clear()
    plot_training(axis, 1, own, [])
    (line,) = axis.get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.4], [0.5])


def test_the_tool_writes_the_plot_beside_the_metrics_and_refuses_other_folders(run, tmp_path):
    with Run("tools/curves.py", [run], tmp_path / "said.txt") as process:
        assert process.wait() == 0, process.said()
    assert (run / "curves.png").stat().st_size > 10_000
    (tmp_path / "other").mkdir()
    for lines, message in ((None, "holds no metrics.jsonl"), ('{"loss": 1}', "is not of a trai")):
        if lines:
            (tmp_path / "other" / "metrics.jsonl").write_text(lines)
        output = tmp_path / f"{message}.txt"
        with Run("tools/curves.py", [tmp_path / "other"], output) as process:
            assert process.wait() == 2
        assert message in process.said() and process.said().count("\n") == 1
