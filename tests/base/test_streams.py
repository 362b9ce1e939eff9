"""A console that is gone or full costs no work; real processes with real descriptors."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.base.streams import keep_streams

ROOT = Path(__file__).resolve().parents[2]
WORK = """
import sys
from utils.base.streams import keep_streams
keep_streams()
for number in range(5000):
    print("line", number)
    print("note", number, file=sys.stderr)
with open(sys.argv[1], "w") as file:
    print(file.fileno(), file=file)
"""
TAKES_NOTHING = {
    "stdout to a reader that has gone": "| true",
    "both to a reader that has gone": "2>&1 | true",
    "stdout to a full disk": ">/dev/full",
    "both to a full disk": ">/dev/full 2>&1",
    "closed stdout": ">&-",
    "closed stderr": "2>&-",
    "all closed": "<&- >&- 2>&-",
}


def work(file: Path, redirected: str) -> subprocess.CompletedProcess:
    """Run WORK in a shell; its last line of stdout is the exit code."""
    command = f'set -o pipefail; "$1" -c "$2" "$3" {redirected}'
    words = ["bash", "-c", command, "bash", sys.executable, WORK, str(file)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("case", TAKES_NOTHING)
def test_a_console_that_takes_nothing_costs_no_work(tmp_path, case):
    done = work(tmp_path / "result", TAKES_NOTHING[case])
    assert done.returncode == 0
    assert int((tmp_path / "result").read_text()) > 2  # no file takes the place of a console
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_output_lost_to_a_full_disk_is_said_once_and_a_reader_that_has_gone_is_not(tmp_path):
    lost = "note: output is lost, the work goes on: No space left on device"
    assert work(tmp_path / "result", ">/dev/full").stderr.splitlines().count(lost) == 1
    assert "output is lost" not in work(tmp_path / "result", "| true").stderr


def test_a_whole_console_gets_every_line_in_order(tmp_path):
    done = work(tmp_path / "result", "")
    assert done.stdout.splitlines() == [f"line {number}" for number in range(5000)]
    assert done.stderr.splitlines() == [f"note {number}" for number in range(5000)]


@pytest.mark.parametrize("script", ["train_latent_t2f.py", "tools/compare.py"])
def test_help_may_be_cut_by_a_reader(script):
    command = f'set -o pipefail; "$1" {script} --help | head -1'
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["bash", "-c", command, "bash", sys.executable]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stream_of_a_notebook_or_test_stays(monkeypatch):
    memory = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, memory)
    keep_streams()
    assert sys.stdout is sys.stderr is memory
