"""Ends and prints of scripts, and what a program keeps that imports them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_main(body: str) -> subprocess.CompletedProcess:
    code = f"from utils.base.script import *\n@one_line_errors\ndef main():\n    {body}\nmain()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_users_error_is_one_line_and_exit_code_two():
    run = run_main("raise UserError('no.yaml: not there')")
    assert (run.returncode, run.stderr) == (2, "error: no.yaml: not there\n")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("ENOSPC", "make room on the disk and start again"),
        ("EROFS", "choose a place that can be written"),
        ("EACCES", "choose a place that you have the rights to"),
        ("ENOTDIR", "a file is in the place of a folder: choose another place"),
    ],
)
def test_faults_of_a_place_are_one_line_with_the_remedy(code, remedy):
    reason = os.strerror(getattr(errno, code))
    run = run_main(f"raise OSError({getattr(errno, code)}, {reason!r}, 'results/x')")
    assert (run.returncode, run.stderr) == (2, f"error: results/x: {reason}; {remedy}\n")


def test_a_bug_keeps_its_traceback():
    run = run_main("1 / 0")
    assert run.returncode == 1
    assert "ZeroDivisionError" in run.stderr


@pytest.mark.parametrize(
    "body",
    [
        "raise KeyboardInterrupt",
        "class Kept:\n    def __del__(self): raise KeyboardInterrupt\nKept()\nprint('went on')",
    ],
    ids=["in an import", "in a destructor"],
)
def test_ctrl_c_outside_main_is_one_line_too(body):
    # As if t2f.py ran: hooks are for the project's scripts alone.
    code = f"__file__ = 't2f.py'\nimport utils.base.script\n{body}"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "interrupted\n")


def test_a_program_that_imports_from_the_project_keeps_its_hooks_and_streams(tmp_path):
    program = tmp_path / "notebook.py"
    program.write_text(
        "import sys\nbefore = sys.excepthook, sys.unraisablehook, sys.stdout.errors\n"
        "import utils.sampling.text_to_face, utils.base.script, research.gap.angle, t2f\n"
        "print(before == (sys.excepthook, sys.unraisablehook, sys.stdout.errors))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.stdout, run.returncode) == ("True\n", 0), run.stderr


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp1252", "日本"), ("ascii", "é"), ("latin-1", "😀"), ("cp437", "\udce9")],
)
def test_a_script_prints_any_text_on_any_console(encoding, text):
    code = f"__file__ = 't2f.py'\nimport utils.base.script\nprint({ascii(text)})"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment)
    assert (run.stdout.decode(encoding).strip(), run.returncode) == (
        text.encode(encoding, "backslashreplace").decode(encoding),
        0,
    ), run.stderr


def test_a_script_takes_denormal_numbers_as_zero_in_all_threads_and_a_program_keeps_them():
    script = "import sys; sys.modules['__main__'].__file__ = 't2f.py'\n"
    body = "x = torch.full((400_000,), 1e-39) * 1.0; print(int((x == 0).sum()))"
    code = "from utils.base.script import *\nimport torch\ntorch.set_num_threads(2)\n"
    code += f"@one_line_errors\ndef main():\n    {body}\nmain()"
    for begin, zeros in ((script, "400000"), ("", "0")):
        command = [sys.executable, "-c", begin + code]
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert run.stdout.strip() == zeros
