"""Systems without flock, SIGUSR1 or folders that can be opened (Windows), and Apple's GPUs."""

import os
import signal
import subprocess
import sys

import filelock
import psutil
import pytest
import torch
from conftest import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from trainings import fresh_process

from models.samplers import SamplerSettings, sample
from utils.base import locks
from utils.base.errors import UserError
from utils.base.files import write_text
from utils.training.distributed import StopSignal


@pytest.fixture
def without_flock(monkeypatch):
    monkeypatch.setattr(filelock, "has_fcntl", False)


def test_the_scripts_start_where_there_is_no_flock():
    code = (
        "import sys; sys.modules['fcntl'] = None; sys.argv = ['t2f.py', '--help']\n"
        "import runpy; runpy.run_path('t2f.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--prompt" in done.stdout, done.stderr


def test_without_flock_a_living_owner_holds_its_folder(tmp_path, without_flock):
    with locks.FolderLock(tmp_path, "database"):
        assert locks.writer_of(tmp_path).startswith(f"process {os.getpid()} on host ")
        with pytest.raises(
            UserError, match=f"this database is being written by process {os.getpid()}"
        ):
            locks.FolderLock(tmp_path, "database")
    assert list(tmp_path.iterdir()) == [] and locks.writer_of(tmp_path) is None


def test_without_flock_the_lock_of_an_ended_owner_is_taken_over(tmp_path, without_flock, capsys):
    lock = locks.FolderLock(tmp_path, "database")
    text = lock.path.read_text()
    ended = next(number for number in range(2**22, 2, -1) if not psutil.pid_exists(number))
    lock.path.write_text(text.replace(str(os.getpid()), str(ended)))
    with locks.FolderLock(tmp_path, "database"):
        assert f"left behind by process {ended}" in capsys.readouterr().err


def test_a_file_is_written_whole_where_no_folder_can_be_opened(tmp_path, monkeypatch):
    real = os.open

    def like_windows(path, *args, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", like_windows)
    write_text(tmp_path / "new" / "a.txt", "written")
    assert [path.read_text() for path in (tmp_path / "new").iterdir()] == ["written"]


def test_a_training_stops_by_sigterm_where_there_is_no_sigusr1(monkeypatch, capsys):
    with fresh_process():
        monkeypatch.delattr(signal, "SIGUSR1")
        stop = StopSignal()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        monkeypatch.undo()
    assert "the step in hand is finished and saved" in capsys.readouterr().err


class NoFloat64OnMPS(torch.utils._python_dispatch.TorchDispatchMode):
    """Fail as Apple's GPUs do when an operation makes a float64 tensor there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "mps":
                assert tensor.dtype != torch.float64, f"{function} makes float64"
        return result


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m"])
def test_an_apple_gpu_samples_without_float64(solver):
    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return x / (1 + sigma**2)

    def randn(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, device=x.device)

    settings = SamplerSettings(solver, num_steps=3, S_churn=0 if solver == "dpmpp_2m" else 10)
    with FakeTensorMode(), NoFloat64OnMPS():
        x = sample(denoise, torch.randn(2, 4, 8, 8, device="mps"), settings, randn)
        assert (x.device.type, x.dtype) == ("mps", torch.float32)
