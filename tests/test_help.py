"""`--help` of every script shows how to launch it, and each flag with its default."""

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
    "demo/make_weights",
    "tools",
    "benchmarks",
    "tests/parity",
)
SCRIPTS = [
    path.relative_to(ROOT)
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.py"))
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


@pytest.mark.parametrize("script", ["train_latent_t2f.py", "eval_latent_t2f.py", "t2f.py"])
def test_help_does_not_wait_for_the_libraries_of_the_encoders(script):
    heavy = {"open_clip", "torchvision", "timm", "diffusers", "torch_fidelity"}
    code = (
        f"import atexit, runpy, sys\nsys.argv = [{script!r}, '--help']\n"
        f"atexit.register(lambda: print({heavy} & set(sys.modules), file=sys.stderr))\n"
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "set()\n"


@pytest.mark.e2e
@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_scripts_in_folders_run_as_users_run_them(folder):
    script = next(script for script in SCRIPTS if script.parent == Path(folder))
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
