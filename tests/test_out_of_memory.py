"""Shortage of memory: batches are done in halves, with the same results."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from utils.errors import UserError
from utils.fill import Target, fill
from utils.latent_lmdb import LMDBReader
from utils.out_of_memory import Halving, is_out_of_memory
from utils.preprocessing import Job

SCARCE = """
import contextlib, io, resource, sys
from pathlib import Path
import torch
from tiny import make_tiny_config
from utils.checkpoint import denoiser_from_config
from utils.encoders import load_config_autoencoder
from utils.generate import generate, sampler_settings

torch.manual_seed(0)
config = make_tiny_config(Path(sys.argv[1]), model={"in_size": 16}, data={"resolution": 128})
denoiser, vae = denoiser_from_config(config).eval(), load_config_autoencoder(config)
conds = torch.randn(64, 16)

def draw(batch_size):
    settings = sampler_settings(config.sampling)
    parts = generate(denoiser, vae, conds, range(64), settings, batch_size=batch_size)
    return torch.cat([images for _, images in parts]).int()

expected = draw(8)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, 2 * (used + 80 * 2**20,))
difference = (draw(64) - expected).abs()
print("largest", difference.max().item(), "differ", difference.bool().float().mean().item())
"""


def allocate(items: int) -> torch.Tensor:
    """Half a terabyte for each of more than three items, really asked for."""
    return (
        torch.ones(items, dtype=torch.float64).expand(items)
        if items <= 3
        else torch.empty(items * 2**36, dtype=torch.float64)
    )


def test_a_batch_that_does_not_fit_is_done_in_halves_and_this_is_said_once(capsys):
    halving, seen = Halving("encoding"), []

    def work(first: int, stop: int) -> list[int]:
        seen.append((first, stop))
        allocate(stop - first)
        return list(range(first, stop))

    assert sum(halving(work, 10), []) == list(range(10))
    assert seen == [(0, 10), (0, 5), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "note: encoding: 10 at once do not fit into memory; now 5",
        "note: encoding: 5 at once do not fit into memory; now 2",
    ]
    assert len(halving(work, 4)) == 2 and capsys.readouterr().err == ""


def test_images_drawn_in_scarce_memory_are_the_same(tmp_path):
    """The process is allowed 80 MB more than it holds; 64 images at once take more."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    run = subprocess.run(
        [sys.executable, "-c", SCARCE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "note: sampling: 64 at once do not fit into memory; now 32" in run.stderr
    _, largest, _, differ = run.stdout.split()
    assert int(largest) <= 1 and float(differ) < 1e-3  # another batch size rounds otherwise


def test_databases_filled_in_scarce_memory_are_the_same(tmp_path, capsys):
    def encode(inputs: list[int], first: int) -> np.ndarray:
        assert inputs == list(range(first, first + len(inputs)))
        allocate(len(inputs))
        return np.repeat(np.float32(inputs), 16).reshape(-1, 4, 2, 2)

    def read(first: int, stop: int) -> list[list[int]]:
        return [list(range(i, min(i + 8, stop))) for i in range(first, stop, 8)]

    job = Job("train", tmp_path, None, None, tmp_path / "z", tmp_path / "skipped.txt", True)
    assert fill(job, [str(i) for i in range(20)], [Target(job.out, "z", {}, encode)], read)
    assert "encoding: 8 at once do not fit into memory; now 4" in capsys.readouterr().err
    assert LMDBReader(job.out).read(range(20))[:, 0, 0, 0].tolist() == list(range(20))


def test_what_does_not_fit_alone_ends_with_one_line():
    with pytest.raises(UserError, match="^sampling: not enough memory even for a batch of 1"):
        Halving("sampling")(lambda a, b: torch.empty(2**45), 3)


def test_other_faults_are_not_taken_for_a_shortage():
    with pytest.raises(RuntimeError, match="size mismatch|must match"):
        Halving("x")(lambda a, b: torch.ones(2) + torch.ones(3), 4)


def test_every_library_says_it_in_its_own_way():
    for allocate_too_much in (
        lambda: torch.empty(2**45),
        lambda: np.ones(2**45),
        lambda: bytearray(2**50),
        lambda: torch.nn.functional.conv2d(
            torch.empty(1, 1, 1, 1).expand(2**20, 64, 512, 512), torch.ones(1, 64, 3, 3)
        ),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as fault:
            allocate_too_much()
        assert is_out_of_memory(fault.value), fault.value
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
