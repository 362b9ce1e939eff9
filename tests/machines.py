"""Run the tests that compare bits as other processors would compute them (`make test-machines`).

    python tests/machines.py
    python tests/machines.py --only "3 threads,MKL AVX2"

Libraries choose their kernels by the processor's instructions and by the number of threads; their
variables make them choose as on a smaller one. Prints a table; exit code 1: a test failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.config.command_line import ArgumentParser

MACHINES: dict[str, dict[str, str]] = {
    "as it is": {},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "3 threads": {"OMP_NUM_THREADS": "3"},
    "MKL SSE4.2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "MKL AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "MKL AVX512": {"MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen AVX512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "all AVX2 with 2 threads": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "2",
    },
}


def run(variables: dict[str, str], processes: int) -> tuple[bool, str]:
    """Run the marked tests with variables; return if they pass, and pytest's last words."""
    command = [sys.executable, "-m", "pytest", "-m", "bits and not e2e", "-v", "--tb=short"]
    command += ["-n", str(processes), "-p", "no:cacheprovider"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-5000:], done.stderr[-2000:], sep="\n")
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", done.stdout.splitlines()[-1])
    return done.returncode == 0, ", ".join(counts) or f"exit code {done.returncode}"


def main() -> None:
    """Run the tests on each machine and print a table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", help=f"machines, of: {', '.join(MACHINES)}; None = all")
    parser.add_argument("--processes", type=int, default=2, help="of pytest")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(MACHINES)
    if unknown := set(names) - set(MACHINES):
        parser.error(f"--only {unknown.pop()}: should be among {', '.join(MACHINES)}")
    passed, rows = True, []
    for name in names:
        begun = time.monotonic()
        good, counts = run(MACHINES[name], args.processes)
        passed &= good
        settings = " ".join(f"{key}={value}" for key, value in MACHINES[name].items()) or "–"
        rows.append(f"| {name} | {settings} | {counts} | {time.monotonic() - begun:.0f} |")
        print(rows[-1], flush=True)
    print("\n| machine | variables | tests | seconds |\n|---|---|---|---|", *rows, sep="\n")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
