"""Scripts use as many threads as they may, and threads that wait leave the processor to others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.base.threads import processors, thread_settings

MANY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
linux = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


def control_groups(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Lay out /proc/self/cgroup and the files of control groups, as Linux shows them."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu"
ONE = {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}


@linux
@pytest.mark.parametrize(
    ("groups", "files"),
    {
        "v2, in a container": ("0::/", {f"{V2}/cpu.max": "100000 100000"}),
        "v2, a part of a processor": ("0::/", {f"{V2}/cpu.max": "50000 100000"}),
        "v2, of a parent": (
            "0::/job/step",
            {f"{V2}/job/cpu.max": "100000 100000", f"{V2}/job/step/cpu.max": "max 100000"},
        ),
        "v2, seen from outside": ("0::/../..", {f"{V2}/cpu.max": "100000 100000"}),
        "v1, in a container": (
            "5:cpu,cpuacct:/docker/0123\n0::/",
            {f"{V1}/{name}": text for name, text in ONE.items()},
        ),
        "v1, on the machine": (
            "5:cpu:/job",
            {f"{V1}/job/{name}": text for name, text in ONE.items()},
        ),
    }.values(),
    ids=str,
)
def test_threads_follow_the_quota_of_a_container(tmp_path, groups, files):
    root = control_groups(tmp_path, groups, files)
    assert processors(root) == 1
    assert thread_settings({}, root).get("OMP_NUM_THREADS") == ("1" if MANY > 1 else None)


@linux
@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", {f"{V2}/cpu.max": "max 100000"}),
        ("5:cpu:/", {f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"}),
        ("0::/", {f"{V2}/cpu.max": "6400000 100000"}),
        ("0::/", {}),
        ("4:memory:/small", {"sys/fs/cgroup/cpu.max": "damaged"}),
    ],
)
def test_without_a_quota_threads_follow_the_processors(tmp_path, groups, files):
    root = control_groups(tmp_path, groups, files)
    assert processors(root) == MANY
    assert "OMP_NUM_THREADS" not in thread_settings({}, root)


@linux
@pytest.mark.parametrize(
    "given", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}, {"OMP_NUM_THREADS": "3"}]
)
def test_what_the_user_has_set_stays(tmp_path, given):
    root = control_groups(tmp_path, "0::/", {f"{V2}/cpu.max": "100000 100000"})
    added = thread_settings(given, root)
    assert not given.keys() & added.keys()
    assert ("GOMP_SPINCOUNT" in added) == ("OMP_NUM_THREADS" in given)


def test_a_script_sets_the_threads_before_torch_is_loaded_and_an_import_sets_nothing():
    see = "import os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP"))}

    def said(code: str) -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        return done.stdout.strip()

    start = "import sys; sys.modules['__main__'].__file__ = 't2f.py'; import utils.base.script; "
    assert said(start + see) == "10000 False"
    assert said("import utils.base.script; " + see) == "None False"
