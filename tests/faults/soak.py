"""The long form of the fault tests: a demo-size training, killed again and again.

    make soak        (or: python tests/faults/soak.py --kills 30)

Three trainings are interrupted at random moments: by kill -9, by SIGTERM, and by kill -9 of both of
two processes. After each interruption the same command starts again. An uninterrupted training is
the reference: weights, averages, optimizer and metrics.jsonl must equal it bit for bit, but for the
fields that depend on the clock. The network and its settings are those of the demo. The data are
the demo's too if they exist, otherwise random numbers of the same shapes. FAULT_SEED repeats a run.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "faults")]

from harness import Run, seeded, signal_all_within
from training_runs import outcome, start, start_ranks

from utils.base.errors import LOST_PROCESS
from utils.config.command_line import ArgumentParser
from utils.data.lmdb_writer import LMDBWriter
from utils.training.checkpoint import list_checkpoints

CONFIG = ROOT / "configs" / "demo" / "demo.yaml"
TITLES = ("kill -9", "SIGTERM", "kill -9, two processes")
STEPS_PER_KILL = 6
MOMENTS = 8.0  # seconds after the start of a process within which it is interrupted


def random_faces(folder: Path, count: int = 1000) -> Path:
    """Write databases of random numbers in the shapes of the demo; return their folder."""
    rng = np.random.default_rng(0)
    with LMDBWriter(folder / "train" / "z", "z", {}, count) as writer:
        writer.append(rng.normal(size=(count, 4, 16, 16)).astype(np.float32))
    with LMDBWriter(folder / "train" / "clip_img", "y", {}, count) as writer:
        writer.append(rng.normal(size=(count, 1, 256)).astype(np.float32))
    return folder


def endure(
    begin: Callable[[], list[Run]], rng: random.Random, number: signal.Signals, kills: int
) -> int:
    """Interrupt a training `kills` times, then let it finish.

    Return the number of interruptions. Exit with a message if a process ends with a wrong code.
    """
    # One of two processes may notice the loss of the other before it is killed itself.
    allowed = {-number, 0, LOST_PROCESS if number == signal.SIGKILL else 128 + number}
    for done in range(kills):
        codes = signal_all_within(MOMENTS, rng, number, begin())
        if not set(codes) <= allowed:
            raise SystemExit(f"after {number.name} a process ended with {codes}")
        if codes == [0] * len(codes):
            return done
    codes = [run.wait(3600) for run in begin()]
    if any(codes):
        raise SystemExit(f"the last start ended with {codes}")
    return kills


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="interruptions of each training")
    parser.add_argument("--only", choices=TITLES, help="training to interrupt; None = all")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "data" / "demo" / "lmdb", help="the demo's databases"
    )
    return parser.parse_args()


def main() -> None:
    """Interrupt the three trainings; exit with code 1 if one of them ends differently."""
    args = parse_args()
    rng = seeded("soak")
    with tempfile.TemporaryDirectory(prefix="soak_") as name:
        folder = Path(name)
        data = args.data if (args.data / "train" / "z").exists() else random_faces(folder / "lmdb")
        settings = (
            f"data.root={data / 'train' / 'z'}",
            f"data.feat_path={data / 'train' / 'clip_img'}",
            f"train.max_num_steps={STEPS_PER_KILL * args.kills}",
            "log.log_every=2",
            "log.ckpt_every=3",
            "log.keep_last=3",
            "log.sample_every=0",
        )

        def one(name: str) -> list[Run]:
            """Start a training of one process."""
            return [start(CONFIG, folder / name, *settings)]

        def two(name: str) -> list[Run]:
            """Start a training of two processes."""
            return start_ranks(CONFIG, folder / name, *settings)

        failed = False
        how = ((one, signal.SIGKILL), (one, signal.SIGTERM), (two, signal.SIGKILL))
        for title, (begin, number) in zip(TITLES, how, strict=True):
            if args.only not in (None, title):
                continue
            reference, tried = folder / f"whole_{begin.__name__}", folder / title.replace(" ", "_")
            began = time.monotonic()
            if not reference.exists():
                assert not any([run.wait(3600) for run in begin(reference.name)])
            count = endure(lambda: begin(tried.name), rng, number, args.kills)  # noqa: B023
            same = outcome(tried) == outcome(reference)
            failed |= not same or not list_checkpoints(tried / "checkpoints")
            print(
                f"{title}: interrupted {count} times, then finished: "
                f"{'bit-identical' if same else 'DIFFERENT'} ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
