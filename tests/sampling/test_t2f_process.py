"""t2f.py as users run it: a process, its imports, Ctrl-C, and a full disk."""

import errno
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from faults.harness import Run
from PIL import Image
from tiny import make_tiny_release

import t2f

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Make a released model with the tiny encoders; return its file."""
    return make_tiny_release(tmp_path_factory.mktemp("released"))


def test_ctrl_c_keeps_every_image_that_was_sampled(checkpoint, tmp_path):
    out = tmp_path / "out"
    words = ["--prompt", "red hair", "--num", 9999, "--batch_size", 2, "--ckpt", checkpoint]
    # A process that a shell starts in the background ignores Ctrl-C, and so do its children.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with Run("t2f.py", [*words, "--out", out], tmp_path / "said.txt", before=heed) as process:
        process.wait_until((out / "00_009.png").exists)
        process.send(signal.SIGINT)
        assert process.wait() == 130
    assert process.said().strip().splitlines()[-1] == "interrupted"
    there = sorted(path.name for path in out.iterdir())
    assert there == [f"00_{seed:03d}.png" for seed in range(len(there))] and len(there) % 2 == 0
    for name in there:
        Image.open(out / name).load()


def test_an_image_of_the_shipped_model_needs_few_libraries(tmp_path):
    """Each of these takes up to a second of the start."""
    heavy = {"diffusers", "transformers", "timm", "scipy", "matplotlib"}
    flags = ["--prompt", "a bald man", "--num", "1", "--preset", "instant", "--out", str(tmp_path)]
    command = [sys.executable, "-X", "importtime", "t2f.py", *flags]  # a line for each import
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    modules = re.findall(r"\| +([\w.]+)\.\w+$", done.stderr, re.MULTILINE)
    imported = {name.partition(".")[0] for name in modules}
    assert {"torch", "open_clip"} <= imported and not heavy & imported


def test_the_script_runs_as_users_run_it(checkpoint, tmp_path):
    command = [sys.executable, "t2f.py", "--prompt", "red hair", "--num", "2", "--ckpt", checkpoint]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grid.png").exists()


def test_a_disk_that_fills_up_while_images_are_saved_is_one_line(
    checkpoint, tmp_path, capsys, monkeypatch
):
    write = Path.write_bytes

    def fills_up(path, data):
        if path.name == "00_002.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fills_up)
    command = ["t2f.py", "--prompt", "red hair", "--num", "6", "--batch_size", "1"]
    options = ["--ckpt", str(checkpoint), "--out", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    with pytest.raises(SystemExit) as stop:
        t2f.main()
    line = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert "00_002.png: No space left on device; make room on the disk and start again" in line
