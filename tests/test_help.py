"""Every script says in `--help` how to launch it, and ends its slow imports at once on Ctrl-C."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FOLDERS = (
    ".",
    "preprocess_scripts",
    "demo",
    "tools",
    "benchmarks",
    "research",
    "research/*",
    "tests",
    "tests/faults",
    "tests/parity",
)
SCRIPTS = [
    path.relative_to(ROOT)
    for folder in FOLDERS
    for path in sorted(ROOT.glob(f"{folder}/*.py"))
    if "\n    main()" in path.read_text()
]


@pytest.fixture
def help_of(capsys, monkeypatch):
    """Return a function: help_of(script) -> the text that its --help prints."""

    def show(script):
        monkeypatch.setattr(sys, "argv", [str(script), "--help"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert stop.value.code == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_help_shows_how_to_launch_and_the_default_of_each_flag(script, help_of):
    shown = help_of(script)
    assert re.search(rf"(python|accelerate launch|torchrun) .*{script}", shown)
    _, *entries = re.split(r"\n  (?=-)", shown.partition("\noptions:")[2])
    flags = {entry.split()[0].strip(","): " ".join(entry.split()) for entry in entries}
    flags.pop("-h")
    assert [name for name, text in flags.items() if not re.search("default|None = ", text)] == []


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--num", "x"], "argument --num: invalid int value: 'x'"),
        (["--nmu"], "unrecognized arguments: --nmu"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line(flags, fault, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["t2f.py", *flags])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "t2f.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line == f"error: t2f.py: {fault}; --help lists the options"


def test_every_script_answers_a_slip_so():
    for script in SCRIPTS:
        assert "argparse.ArgumentParser(" not in (ROOT / script).read_text(), script


# For each script, like a Python of its own: only the script's folder is on the path, and no module
# of the project is loaded. Prints its exit code and the heavy libraries that it imported first.
HELPS = """
import contextlib, io, os, runpy, sys

heavy = {"open_clip", "torchvision", "timm", "transformers", "diffusers", "torch_fidelity"}
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    outer = sys.path[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code
    print(script, code, *sorted(heavy & sys.modules.keys()))
    heavy -= sys.modules.keys()
    sys.path[1:] = outer
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(os.getcwd() + os.sep) and "site-packages" not in file:
            del sys.modules[name]
"""


@pytest.mark.e2e
def test_scripts_run_as_users_run_them_and_help_waits_for_no_library_of_the_encoders():
    # One process for all: each library is imported once, by the first script that asks for it.
    command = [sys.executable, "-c", HELPS, *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    said = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert list(said) == [str(script) for script in SCRIPTS], done.stderr
    assert {code for code, *_ in said.values()} == {"0"}, said
    waiting = {script for script, (_, *libraries) in said.items() if libraries}
    assert {script for script in waiting if not script.startswith("tests/")} == set()


@pytest.mark.parametrize(
    "script", [s for s in SCRIPTS if "one_line_errors" in (ROOT / s).read_text()], ids=str
)
def test_the_import_that_makes_ctrl_c_one_line_comes_before_the_slow_ones(script):
    modules: list[str] = []
    for node in ast.parse((ROOT / script).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            modules.append(node.module)
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    others = [name for name in modules if name.split(".")[0] not in sys.stdlib_module_names]
    before = others[: others.index("utils.base.script")]
    quick = {f"utils.base.{name}" for name in ("errors", "files", "locks", "processes", "progress")}
    assert set(before) <= quick


# Presses Ctrl-C at the first import after utils.base.script.
INTERRUPTED = """
import os, runpy, signal, sys

class Press:
    def find_spec(self, name, path=None, target=None):
        if hasattr(sys.modules.get("utils.base.script"), "one_line_errors_of_each"):
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Press())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["train_latent_t2f.py", "eval_latent_t2f.py", "t2f.py"])
def test_ctrl_c_during_the_imports_is_one_line(script):
    command = [sys.executable, "-c", INTERRUPTED, script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
