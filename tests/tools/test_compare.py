"""tools/compare.py: two runs on one page."""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from html_page import Page, record
from PIL import Image
from tiny import RESOLUTION, make_tiny_checkpoint, make_tiny_config

from tools import compare
from utils.evaluation.results import Results
from utils.sampling.image_files import save_png


def make_run(folder: Path, losses: list[float], distances: dict[int, float], **keys: dict) -> Path:
    """Write a run with a checkpoint, losses, evaluations of two scales, and sample grids."""
    config = make_tiny_config(folder.parent, **keys)
    make_tiny_checkpoint(folder / "checkpoints" / "0000020.pt", config, seed=len(losses))
    (folder / "config.yaml").write_text(config.to_yaml())
    lines = [json.dumps({"step": i, "loss": loss}) for i, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, "{torn"]) + "\n")
    results = Results(folder / "evaluation")
    for step, distance in distances.items():
        ends = {
            "frechet_distance_low_clip": distance - 5,
            "frechet_distance_high_clip": distance + 5,
        }
        results.add(record(step, 1.5, distance, **ends))
        results.add(record(step, 3.0, distance + 40, **ends))
        shade = np.full((RESOLUTION, RESOLUTION, 3), step, np.uint8)
        save_png(shade, folder / "samples" / f"{step:07d}.png")
    return folder


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    first = make_run(tmp_path / "first", [3.0, 2.0, 1.0], {10: 300.0, 20: 200.0})
    train = {"perturbation": 0.4}
    second = make_run(
        tmp_path / "second", [3.0, 1.5], {10: 280.0, 20: 250.0, 30: 210.0}, train=train
    )
    return first, second


def page_of(monkeypatch, out: Path, *flags: object) -> Page:
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, flags), "--out", str(out)])
    compare.main()
    return Page(out.read_text(encoding="utf-8"))


def images(page: Page) -> list[np.ndarray]:
    contents = [u.partition(",")[2] for u in page.loads if u.startswith("data:image/png")]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(c)))) for c in contents]


def test_the_page_shows_what_differs_the_best_results_and_loads_nothing(
    runs, tmp_path, monkeypatch
):
    page = page_of(monkeypatch, tmp_path / "page.html", *runs)
    assert page.open == [] and all(uri.startswith("data:image/") for uri in page.loads)
    rows = {cells[0]: (kind, cells[1:]) for kind, cells in page.rows if cells}
    assert rows["first"][0] == "best" and rows["second"][0] is None
    assert rows["first"][1][:4] == ["20", "guidance 1.5", "200", "195 – 205"]
    assert rows["second"][1][:4] == ["30", "guidance 1.5", "210", "205 – 215"]
    differing = [key for key in rows if "." in key]
    assert differing == ["train.perturbation"]
    assert rows["train.perturbation"][1] == ["1.2", "0.4"]


def test_grids_are_those_of_the_last_step_that_all_runs_have(runs, tmp_path, monkeypatch):
    page = page_of(monkeypatch, tmp_path / "page.html", *runs)
    assert [int(image.mean()) for image in images(page)] == [20, 20]
    assert "second, step 20" in page.text and "The steps differ" not in page.text
    (runs[0] / "samples" / "0000010.png").unlink()
    (runs[0] / "samples" / "0000020.png").rename(runs[0] / "samples" / "0000077.png")
    page = page_of(monkeypatch, tmp_path / "page.html", *runs)
    assert [int(image.mean()) for image in images(page)] == [20, 30]
    assert "The steps differ" in page.text


def test_a_prompt_is_generated_by_every_run_with_equal_seeds(runs, tmp_path, monkeypatch):
    flags = [
        "--prompt",
        "a face & a <hat>",
        "--prompt",
        "other",
        "--seeds",
        "4,9",
        "--device",
        "cpu",
    ]
    page = page_of(monkeypatch, tmp_path / "page.html", *runs, *flags)
    generated = images(page)
    assert [image.shape for image in generated] == [(RESOLUTION, 2 * RESOLUTION, 3)] * 4
    assert (generated[0] != generated[1]).any()  # the networks differ
    assert page.text.count("a face & a <hat>") == 1
    again = images(page_of(monkeypatch, tmp_path / "page.html", *runs[::-1], *flags))
    assert (again[0] == generated[1]).all() and (again[1] == generated[0]).all()


def test_runs_without_evaluations_grids_or_differences_still_have_their_losses(
    tmp_path, monkeypatch
):
    runs = [make_run(tmp_path / name / "run", [2.0, 1.0], {}) for name in "ab"]
    page = page_of(monkeypatch, tmp_path / "page.html", *runs)
    assert [uri.partition(";")[0] for uri in page.loads] == ["data:image/svg+xml"]
    assert "None: the configs are equal" in page.text or "encoders.clip" in page.text
    assert str(runs[0]) in page.text  # runs of equal names show their folders
    assert "hold no sample grids" in page.text and "Without evaluation to compare" in page.text


def test_an_evaluation_against_another_reference_is_left_out_and_named(
    runs, tmp_path, monkeypatch, capsys
):
    Results(runs[1] / "evaluation").add(record(40, None, 1.0, reference="other"))
    page = page_of(monkeypatch, tmp_path / "page.html", *runs)
    assert "second: 1 evaluations left out" in capsys.readouterr().err
    assert [cells[1] for kind, cells in page.rows if kind == "best"] == ["20"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder, run: [run], "name two runs or more"),
        (lambda folder, run: [run, run], "name two runs or more"),
        (lambda folder, run: [run, folder / "gone"], "gone: there is no folder of a run"),
        (lambda folder, run: [run, folder / "clip"], "holds no run: neither config.yaml nor"),
        (lambda folder, run: [run, without(run, "metrics.jsonl")], "bare: holds no metrics"),
        (lambda folder, run: [run, without(run), "--prompt", "x"], "holds no checkpoint to sample"),
        (
            lambda folder, run: [run, without(run), "--out", folder],
            "is a folder; name a file in it",
        ),
        (lambda folder, run: [run, run, "--prompt", " "], "the prompt is empty"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, make, said):
    run = make_run(tmp_path / "run", [1.0], {})
    with pytest.raises(SystemExit) as stop:
        page_of(monkeypatch, tmp_path / "page.html", *make(tmp_path, run))
    errors = [line for line in capsys.readouterr().err.splitlines() if "note: " not in line]
    assert stop.value.code == 2 and said in errors[-1]
    assert not (tmp_path / "page.html").exists()


def without(run: Path, *names: str) -> Path:
    """Copy a run's config and losses, less some of them."""
    bare = run.parent / "bare"
    bare.mkdir()
    for name in {"config.yaml", "metrics.jsonl"} - set(names):
        (bare / name).write_bytes((run / name).read_bytes())
    return bare
