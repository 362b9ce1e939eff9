"""t2f.py as users run it: a process, its imports, Ctrl-C, and a full disk."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
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
    command = [sys.executable, "t2f.py", "--prompt", "red hair", "--num", 9999, "--batch_size", 2]
    process = subprocess.Popen(
        [*map(str, command), "--ckpt", str(checkpoint), "--out", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A process that a shell starts in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not (tmp_path / "00_009.png").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    *_, last = process.communicate()[1].strip().splitlines()
    assert (process.returncode, last) == (130, "interrupted")
    there = sorted(path.name for path in tmp_path.iterdir())
    assert there == [f"00_{seed:03d}.png" for seed in range(len(there))] and len(there) % 2 == 0
    for name in there:
        Image.open(tmp_path / name).load()


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
