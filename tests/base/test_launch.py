"""Variables of launchers: a whole set says which process this is, another one is refused."""

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import fresh_process

from utils.base import launch as launching
from utils.base import torchrun
from utils.base.errors import LOST_PROCESS, LostProcessError, UserError
from utils.base.launch import (
    join_processes,
    loopback,
    relaunch,
    require_address,
    stop_signals,
    wait_for,
)
from utils.base.processes import ADDRESS, Launch, is_main_process, launch, launch_fault
from utils.training.distributed import StopSignal

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets the variables of a launch, `RANK=1 WORLD_SIZE=2`."""
    for name in (*NAMES, *ADDRESS):
        monkeypatch.delenv(name, raising=False)

    def set_all(text: str) -> None:
        for word in text.split():
            monkeypatch.setenv(*word.split("="))

    return set_all


REFUSED = {
    "RANK=1": "RANK=1 without WORLD_SIZE",
    "LOCAL_RANK=1": "LOCAL_RANK=1 without WORLD_SIZE",
    "LOCAL_WORLD_SIZE=2": "LOCAL_WORLD_SIZE=2 without WORLD_SIZE",
    "RANK=2 LOCAL_RANK=0": "RANK=2 LOCAL_RANK=0 without WORLD_SIZE",
    "WORLD_SIZE=2": "WORLD_SIZE=2 without RANK",
    "RANK=0 WORLD_SIZE=2": "RANK=0 WORLD_SIZE=2 without LOCAL_RANK",
    "RANK= WORLD_SIZE=2 LOCAL_RANK=0": "WORLD_SIZE=2 LOCAL_RANK=0 without RANK",
    "RANK=1 WORLD_SIZE=1 LOCAL_RANK=0": "RANK=1 WORLD_SIZE=1 LOCAL_RANK=0 contradict each other",
    "RANK=2 WORLD_SIZE=2 LOCAL_RANK=0": "RANK=2 WORLD_SIZE=2 LOCAL_RANK=0 contradict each other",
    "RANK=0 WORLD_SIZE=2 LOCAL_RANK=1": "RANK=0 WORLD_SIZE=2 LOCAL_RANK=1 contradict each other",
    "RANK=1 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=1": "contradict each other",
    "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=8": "contradict each other",
    "RANK=0 WORLD_SIZE=0": "contradict each other",
    "RANK=x": "RANK=x is no number of a process",
    "RANK=0 WORLD_SIZE=two": "WORLD_SIZE=two is no number of a process",
    "RANK=1.0": "RANK=1.0 is no number of a process",
    "WORLD_SIZE=-1": "WORLD_SIZE=-1 is no number of a process",
}


@pytest.mark.parametrize("variables", REFUSED)
def test_an_incomplete_or_contradictory_set_is_refused_by_every_script(environment, variables):
    environment(variables)
    for several in (True, False):
        fault = launch_fault(several)
        assert REFUSED[variables] in fault and "\n" not in fault
        given = {word.split("=")[0] for word in variables.split()}
        assert set(fault.split("unset ")[1].split()) == given
    assert is_main_process()  # a library that is imported prints, and does not fail


ALONE = ["", "RANK=0", "WORLD_SIZE=1", "RANK= LOCAL_RANK=", "LOCAL_RANK=-1", "RANK=0 WORLD_SIZE=1"]


@pytest.mark.parametrize("variables", ALONE)
def test_variables_of_one_process_are_no_launch_and_no_library_sees_them(environment, variables):
    environment(variables)
    assert launch() == Launch()
    assert launch_fault(several=True) is None and launch_fault(several=False) is None
    assert not any(name in os.environ for name in NAMES)


WHOLE = {
    "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0": Launch(0, 2, 0, 1),
    "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2": Launch(1, 2, 1, 2),
    "RANK=9 WORLD_SIZE=16 LOCAL_RANK=1 LOCAL_WORLD_SIZE=8": Launch(9, 16, 1, 8),
}


@pytest.mark.parametrize("variables", WHOLE)
def test_a_whole_set_says_which_process_this_is(environment, variables):
    environment(variables)
    assert launch() == WHOLE[variables]
    assert is_main_process() == variables.startswith("RANK=0")
    assert launch_fault(several=True) is None
    assert all(word.split("=")[0] in os.environ for word in variables.split())
    assert "this script runs as one process" in launch_fault(several=False)


def test_the_group_of_one_process_that_torchrun_makes_stays(environment):
    environment("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=1")
    assert launch_fault(several=True) is None and "RANK" in os.environ


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_mpirun_without_the_variables_of_a_launch_is_refused(environment, name):
    environment(f"{name}=1")
    assert launch_fault(several=True) is None
    environment(f"{name}=4")
    assert f"{name}=4 without WORLD_SIZE" in launch_fault(several=True)
    assert launch_fault(several=False) is None  # as many single jobs at once
    environment("RANK=3 WORLD_SIZE=4 LOCAL_RANK=3")
    assert launch_fault(several=True) is None


@pytest.mark.parametrize("script", ["t2f.py", "train_latent_t2f.py"])
def test_a_script_refuses_before_any_work(script, tmp_path):
    command = [sys.executable, str(ROOT / script), "--config", "none.yaml"]
    variables = {**os.environ, "RANK": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: RANK=1 without WORLD_SIZE") and line.endswith("unset RANK")


def test_an_address_without_a_meeting_place_is_refused(environment):
    environment("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0")
    with pytest.raises(UserError, match="WORLD_SIZE=2: MASTER_ADDR is not set"):
        join_processes()
    environment("MASTER_ADDR=localhost MASTER_PORT=tcp")
    with pytest.raises(UserError, match="MASTER_PORT=tcp: should be the number"):
        join_processes()


@pytest.mark.parametrize("name", ["nosuch.invalid", "a..b", "x" * 70])
def test_a_name_without_address_is_named(name):
    with pytest.raises(UserError, match="MASTER_ADDR .*this name has no address here"):
        require_address("MASTER_ADDR", name)


def test_a_first_process_that_does_not_answer_ends_the_wait_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(launching, "MEETING_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_for("127.0.0.1", port)
    with pytest.raises(LostProcessError, match=f"127.0.0.1:{port}: .* does not answer") as lost:
        wait_for("127.0.0.1", port)
    assert lost.value.code == LOST_PROCESS and "\n" not in str(lost.value)
    with pytest.raises(LostProcessError):
        wait_for("127.0.0.1", 99999)


@pytest.mark.parametrize("rank", [-1, 2, 7])
def test_the_number_of_a_node_is_below_their_count(rank):
    args = argparse.Namespace(num_process_per_node=2, num_proc_node=2, node_rank=rank)
    with pytest.raises(UserError, match=f"--node_rank {rank}: should be 0 to 1"):
        relaunch(args)


def test_the_processes_of_one_machine_meet_at_its_loopback_interface():
    assert loopback() in {name for _, name in socket.if_nameindex()}


def test_without_a_loopback_interface_several_processes_are_refused_in_a_line(tmp_path):
    code = "from utils.base.launch import loopback\nloopback()"
    command = ["unshare", "-n", sys.executable, "-c", code]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare command")
    if "unshare failed" in done.stderr:
        pytest.skip("network namespaces are not allowed here")
    assert "UserError: several processes need the loopback interface" in done.stderr


def test_a_lost_terminal_asks_for_the_end_unless_nohup_ignores_it():
    names = {number.name for number in stop_signals()}
    assert names == {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"}
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals() and len(stop_signals()) == 5
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU])
def test_each_of_the_signals_is_remembered(number, capsys):
    with fresh_process():
        stop = StopSignal()
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert f"{number.name}: the step in hand is finished and saved" in capsys.readouterr().err


def test_a_torchrun_that_knows_no_shutdown_timeout_has_it_as_its_default(monkeypatch):
    close = torchrun.PContext.close
    monkeypatch.setattr(close, "__defaults__", (None, 30))
    options = ["--nproc_per_node", "2", "--shutdown_timeout", "120", "train.py", "train.lr=1"]
    assert torchrun.known_options(options, {"--shutdown_timeout"}) == options
    assert close.__defaults__ == (None, 30)
    assert torchrun.known_options(options, set()) == [*options[:2], *options[4:]]
    assert close.__defaults__ == (None, 120)
