"""Check on a GPU what the tests can check on a CPU only, in ten minutes at most.

    make gpu-check
    python benchmarks/gpu_check.py --out docs/benchmarks/gpu_check.json   # for docs/performance.md
    python benchmarks/gpu_check.py --only "reference values,images"
    python benchmarks/gpu_check.py --device cpu                           # a quick run without GPU

Compares with the reference values in float32, bf16 and fp16; generates images with the shipped
network on the device and on the CPU; trains on the demo's faces, resumed, compiled, and on several
GPUs, if there are, by NCCL and sharded (FSDP); times training steps beside a plain network, and
sampling. Writes one JSON file and prints one table, which says what failed. Exit code 1: something
failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, one_line
from utils.base.script import one_line_errors

# isort: split
import torch

from benchmarks import timing
from benchmarks.device_checks import CHECKS, Check, Device, Finding
from benchmarks.device_trainings import Workplace, use_no_gpu
from utils.config.command_line import ArgumentParser

TITLE = "Check of a device"
VERDICTS = {True: "yes", False: "**no**", None: "–"}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a quick run")
    parser.add_argument("--only", help=f"checks to run, of: {', '.join(CHECKS)}; None = all")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all checks together")
    parser.add_argument(
        "--out", type=Path, default=Path("results/gpu_check.json"), help="JSON file to write"
    )
    args = parser.parse_args()
    names = [name.strip() for name in args.only.split(",")] if args.only else list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        raise UserError(f"--only {unknown[0]}: should be among {', '.join(CHECKS)}")
    args.checks = {name: CHECKS[name] for name in names}
    if args.device not in ("cuda", "cpu"):
        raise UserError(f"--device {args.device}: should be cuda or cpu")
    if args.device == "cpu":
        use_no_gpu()
    elif not torch.cuda.is_available():
        raise UserError("there is no GPU that PyTorch can use; --device cpu runs a quick check")
    return args


def findings_of(check: Check, device: Device) -> list[Finding]:
    """Run a check. A fault of the code or the device is a finding too, in one line."""
    found: list[Finding] = []
    if time.monotonic() > device.work.deadline:
        return [Finding("all", "not run: the time is over", False)]
    try:
        found.extend(check(device))
    except Exception as fault:  # noqa: BLE001 - the table says what failed, and the rest goes on
        found.append(Finding("all", f"{type(fault).__name__}: {one_line(fault)}", False))
    return found


@one_line_errors
def main() -> None:
    """Run the checks, print and write the table, and exit with 1 if one failed."""
    args = parse_args()
    rows: list[dict[str, object]] = []
    failed = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        deadline = started + 60 * args.minutes
        work = Workplace(Path(folder), deadline, is_quick=args.device == "cpu")
        for name, check in args.checks.items():
            begun = time.monotonic()
            print(f"{name} …", flush=True)
            findings = findings_of(check, Device(args.device, work))
            seconds = time.monotonic() - begun
            for number, finding in enumerate(findings):
                took = f"{seconds:.0f}" if number == 0 else ""
                verdict = VERDICTS[finding.met]
                shown = {"check": name, "of": finding.what, "result": finding.value}
                rows.append({**shown, "met": verdict, "seconds": took})
                failed += finding.met is False
                print(f"  {verdict:<6} {finding.what}: {finding.value}", flush=True)
    if failed:
        summary = f"{failed} of {len(rows)} results are not as they should be."
    else:
        summary = "Nothing failed."
    notes = [summary, "*Seconds* are those of all results of a check; – is a measurement."]
    timing.report(args.out, TITLE, rows, notes)
    print(f"{args.out}: {summary}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
