"""Muon with several processes, whole and sharded: the losses of one process, and exact resume."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import json, sys
import torch._dynamo  # every optimizer needs it, and each fork would import it anew
from benchmarks.muon_processes import Case, trained
settings = {"size": "DiT-T/2", "batch": 4, "width": 16}
cases = [Case(processes=n, sharded=n > 2, steps=8, **settings) for n in (1, 2, 4)]
cases.append(Case(processes=4, sharded=True, steps=6, stop_at=3, **settings))
json.dump([trained(case)[0] for case in cases], sys.stdout)
"""


@pytest.fixture(scope="module")
def losses() -> list[list[float]]:
    """Return the losses of one process, two, four with shards, and these stopped in between."""
    # One interpreter, which has not computed yet, forks them all.
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=300, check=True)
    return json.loads(done.stdout)


def test_several_processes_have_the_losses_of_one(losses):
    one, two, four, _ = losses
    assert two == pytest.approx(one, abs=1e-5) and four == pytest.approx(one, abs=1e-5)
    assert len(one) == 8


def test_sharded_muon_goes_on_from_its_saved_state_bit_for_bit(losses):
    *_, uninterrupted, stopped = losses
    assert stopped == uninterrupted[:6]
