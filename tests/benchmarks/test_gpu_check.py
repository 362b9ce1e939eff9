"""benchmarks/gpu_check.py: its quick run on a CPU, and what it says when something fails."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import device_checks, gpu_check
from benchmarks.device_checks import Finding


def run(monkeypatch, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        gpu_check.main()
    return stop.value.code


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "there is no GPU that PyTorch can use; --device cpu runs a quick check"),
        (["--device", "tpu"], "--device tpu: should be cuda or cpu"),
        (["--only", "images,nothing"], "--only nothing: should be among reference values, "),
    ],
)
def test_a_mistake_or_a_missing_gpu_is_one_line(monkeypatch, capsys, tmp_path, flags, said):
    assert run(monkeypatch, *flags, "--out", tmp_path / "out.json") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line and list(tmp_path.iterdir()) == []


def test_reference_values_are_met_and_written_as_json_and_table(monkeypatch, capsys, tmp_path):
    flags = ["--device", "cpu", "--only", "reference values", "--out", tmp_path / "out.json"]
    assert run(monkeypatch, *flags) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    verdicts = {row["of"]: row["met"] for row in written["rows"]}
    assert verdicts == {
        "network, float32": "yes",
        "samplers, float64": "yes",
        "network, bfloat16": "yes",
        "network, float16": "–",
    }
    assert "| reference values | network, float32 | 23 comparisons" in capsys.readouterr().out
    assert written["notes"][0] == "Nothing failed."


def test_a_device_that_computes_wrongly_fails_and_the_other_checks_go_on(
    monkeypatch, capsys, tmp_path
):
    def wrong(golden, device):
        for row in real(golden, device=device):
            yield row.__class__(row.what, row.values, 1.0, 1.0, False)

    def broken(_: device_checks.Device):
        yield Finding("first half", "good", True)
        raise ValueError("the device has\ngone")

    real = device_checks.network_rows
    monkeypatch.setattr(device_checks, "network_rows", wrong)
    checks = {"broken": broken, "reference values": device_checks.reference_values}
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    assert run(monkeypatch, "--device", "cpu", "--out", tmp_path / "out.json") == 1
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["of"], row["result"], row["met"]) for row in rows[:2]] == [
        ("first half", "good", "yes"),
        ("all", "ValueError: the device has gone", "**no**"),
    ]
    assert (
        rows[2]["met"] == "**no**"
        and "beyond: `maskdit_decoder_mae`: denoised" in rows[2]["result"]
    )
    assert rows[3]["met"] == "yes"
    assert "2 of 6 results are not as they should be" in capsys.readouterr().out


def test_what_does_not_begin_in_time_is_named(monkeypatch, tmp_path):
    flags = ["--device", "cpu", "--minutes", 0, "--out", tmp_path / "out.json"]
    assert run(monkeypatch, *flags) == 1
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["result"] for row in rows} == {"not run: the time is over"}
    assert [row["check"] for row in rows] == list(device_checks.CHECKS)


@pytest.mark.e2e
def test_the_quick_run_trains_generates_and_times_on_a_cpu(monkeypatch, tmp_path):
    checks = "images,end to end,variants of training,speed of a step,speed of sampling"
    out = tmp_path / "out.json"
    flags = ["--device", "cpu", "--minutes", 20, "--only", checks, "--out", out]
    assert run(monkeypatch, *flags) == 0, json.loads(out.read_text())["rows"]
    found = {row["of"]: row for row in json.loads(Path(out).read_text())["rows"]}
    assert found["resumed at half"]["result"].endswith("bit for bit")
    assert found["2 processes (gloo)"]["met"] == found["compiled"]["met"] == "yes"
    assert found["2 processes, sharded (FSDP)"]["met"] == "yes"
    assert found["float32"]["result"].startswith("pixels differ from the CPU's in float32 by 0.000")
    assert sum("images/s" in row["result"] for row in found.values()) == 3
