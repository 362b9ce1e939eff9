"""Trainings of several processes, started by every launcher, and the loss of one process."""

import contextlib
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
from harness import ROOT, Run, two_hosts
from training_runs import SCRIPT, SETTINGS, STEPS, arguments
from trainings import metrics, run

from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.e2e
ENDLESS = (*SETTINGS, "train.max_num_steps=100000", "model.unmasked_tail=0")


@pytest.fixture(scope="module")
def whole(faces) -> Path:
    """Return the folder of a training of one process."""
    return run(faces, faces.parent / "alone", *SETTINGS)


def assert_same_metrics(folder: Path, other: Path) -> None:
    """Compare the lines of metrics.jsonl of two trainings, up to the order of summation."""
    for one, two in zip(metrics(folder), metrics(other), strict=True):
        assert one == pytest.approx(two, rel=1e-3)


def worker(launcher: Run, rank: int) -> psutil.Process:
    """Return the training process of that rank among the descendants of a launcher."""
    for process in psutil.Process(launcher.pid).children(recursive=True):
        if process.environ().get("RANK") == str(rank) and SCRIPT in " ".join(process.cmdline()):
            return process
    raise AssertionError(f"there is no rank {rank}")


def nameless_host() -> list[str]:
    """Return words before a command that give its host a name without an address.

    None are returned where that is not allowed.
    """
    prefix = ["unshare", "-u", "sh", "-c", 'hostname nosuch.invalid && exec "$@"', "sh"]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    return []


def test_processes_of_one_command_need_no_host_name_stop_together_and_save(faces, tmp_path):
    folder = tmp_path / "run"
    words = arguments(faces, folder, *ENDLESS, "--num_process_per_node", "2")
    output = tmp_path / "output.txt"
    with Run(SCRIPT, words, output, prefix=nameless_host()) as training:
        training.wait_until(lambda: (folder / "metrics.jsonl").exists() and metrics(folder))
        training.send(signal.SIGUSR1)
        training.wait(120)
    assert "SIGUSR1: the step in hand is finished and saved" in training.said()
    assert "2 process(es) x 1 x 4" in (folder / "log.txt").read_text()
    assert metrics(folder)[-1]["step"] <= max(list_checkpoints(folder / "checkpoints"))
    assert "stopped after step" in (folder / "log.txt").read_text()


def test_torchrun_restarts_a_training_that_lost_a_process_and_it_goes_on(faces, whole, tmp_path):
    folder = tmp_path / "run"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    words = arguments(faces, folder, *SETTINGS)
    output = tmp_path / "output.txt"
    with Run(SCRIPT, words, output, launcher=(*torchrun, "--max-restarts", "1")) as training:
        training.wait_until(lambda: list_checkpoints(folder / "checkpoints"))
        worker(training, 1).kill()
        assert training.wait(200) == 0
    assert "continuing" in (folder / "log.txt").read_text()
    assert_same_metrics(folder, whole)


def test_two_nodes_train_like_one_process_and_only_the_first_writes(faces, whole, tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    with two_hosts() as hosts:
        runs = []
        for rank, (prefix, _, environment) in enumerate(hosts):
            folder = tmp_path / f"node{rank}" / "run"
            folder.parent.mkdir()
            nodes = ("--num_proc_node", "2", "--node_rank", str(rank), "--master_port", port)
            words = arguments(faces, folder, *SETTINGS, *nodes, "--master_address", hosts[0][1])
            output = tmp_path / f"node{rank}.txt"
            options = {"environment": environment, "prefix": prefix, "cold": True}
            runs.append(Run(SCRIPT, words, output, **options))
        try:
            codes = [node.wait(200) for node in runs]
        finally:
            for node in runs:
                node.kill()
    assert codes == [0, 0], runs[0].said()
    assert_same_metrics(tmp_path / "node0" / "run", whole)
    assert not (tmp_path / "node1" / "run").exists()


def test_a_taken_port_is_one_line(faces, tmp_path):
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        nodes = ("--num_proc_node", "2", "--node_rank", "0", "--master_port", port)
        words = arguments(faces, tmp_path / "run", *SETTINGS, *nodes)
        with Run(SCRIPT, words, tmp_path / "output.txt") as training:
            assert training.wait(100) == 2
    (line,) = training.said().strip().splitlines()
    assert f"--master_port {port}: cannot be used (Address already in use" in line
    assert line.endswith("give all nodes another port")


def test_accelerate_launch_shards_by_its_configuration_file(faces, whole, tmp_path):
    folder = tmp_path / "run"
    configured = str(ROOT / "configs" / "accelerate" / "fsdp.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", configured)
    words = arguments(faces, folder, *SETTINGS)
    with Run(SCRIPT, words, tmp_path / "output.txt", launcher=launcher) as training:
        assert training.wait(200) == 0, training.said()
    assert "sharded" in (folder / "log.txt").read_text()
    assert_same_metrics(folder, whole)
    assert load_checkpoint(folder / "checkpoints" / f"{STEPS:07d}.pt")["step"] == STEPS
