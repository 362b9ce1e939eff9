"""Several evaluations write into one folder of results, and each file holds them all."""

import csv
import json
import threading
from pathlib import Path

from utils.evaluation.results import Results


def steps_in(folder: Path) -> tuple[list[int], list[int]]:
    """Return the steps in results.jsonl and in results.csv."""
    lines = [json.loads(line)["step"] for line in (folder / "results.jsonl").open()]
    with open(folder / "results.csv", newline="") as file:
        return lines, [int(row["step"]) for row in csv.DictReader(file)]


def test_two_evaluations_at_once_leave_both_rows_in_both_files(tmp_path):
    one, two = Results(tmp_path), Results(tmp_path)
    one.add({"step": 1, "config": {}})
    two.add({"step": 2, "config": {}})
    assert steps_in(tmp_path) == ([1, 2], [1, 2])
    assert [record["step"] for record in two.records] == [1, 2]


def test_what_another_evaluation_has_recorded_is_found_and_not_made_again(tmp_path):
    one, two = Results(tmp_path), Results(tmp_path)
    assert two.find({"step": 1}) is None
    one.add({"step": 1})
    assert two.find({"step": 1}) == {"step": 1}


def test_many_evaluations_that_end_together_lose_no_row(tmp_path):
    threads = [
        threading.Thread(target=Results(tmp_path).add, args=({"step": step},)) for step in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines, rows = steps_in(tmp_path)
    assert sorted(lines) == list(range(8)) and lines == rows
    assert not (tmp_path / "results.lock").exists()


def test_a_torn_record_is_noted_once(tmp_path, capsys):
    (tmp_path / "results.jsonl").write_text('{"step": 1}\n{"st')
    results = Results(tmp_path)
    results.add({"step": 2})
    assert results.find({"step": 2}) and steps_of(results) == [1, 2]
    assert capsys.readouterr().err.count("results.jsonl:2: not a whole record") == 1


def steps_of(results: Results) -> list[int]:
    """Return the step of each record."""
    return [record["step"] for record in results.records]


def test_a_setting_that_is_off_is_not_found_in_a_record_that_has_it(tmp_path):
    results = Results(tmp_path)
    results.add({"step": 1, "cfg_scale": 2.0, "n": 8})
    results.add({"step": 1, "cfg_scale": 2.0, "n": 8, "guidance_interval": (0.3, 5.0)})
    results.add({"step": 1, "cfg_scale": 2.0, "n": 8, "seeds": "0-7", "freedom": 0.7})
    found = results.find({"step": 1, "cfg_scale": 2.0})
    assert found == {"step": 1, "cfg_scale": 2.0, "n": 8}
    narrow = {"step": 1, "cfg_scale": 2.0, "guidance_interval": (0.3, 5.0)}
    assert results.find(narrow)["guidance_interval"] == [0.3, 5.0]
    results.add({"step": 2, "freedom": 0.0, "S_max": float("inf"), "preset": "fast"})
    assert results.find({"step": 2}) is not None  # older records named settings that were off
