"""Time an evaluation on a quiet machine and beside other programs, by how long threads spin.

    python benchmarks/busy_machine.py --out docs/benchmarks/busy_machine.json

Threads of GNU OpenMP spin while they wait for one another (utils/base/threads.py). The evaluation
samples faces with the shipped network and measures them; every run does all of it anew.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
from benchmarks.device_trainings import Workplace
from benchmarks.timing import add_arguments, report, start
from utils.base.threads import FEW_SPINS, SPINS
from utils.config.command_line import HelpFormatter
from utils.config.load import load_config

SETTINGS = {
    "GNU OpenMP's own, 300,000 rounds": {SPINS: "300000"},
    f"ours, {int(FEW_SPINS):,} rounds": {SPINS: FEW_SPINS},
    "none (OMP_WAIT_POLICY=passive)": {"OMP_WAIT_POLICY": "passive"},
}


def spin() -> None:
    """Keep one processor busy."""
    while True:
        pass


def prepare(work: Workplace, images: int) -> Path:
    """Render test faces, embed their captions and measure them; return the config to evaluate."""
    data, lmdb = work.folder / "demo", work.folder / "lmdb"
    counts = ["--num_train", 8, "--num_test", images, "--num_captions", 1]
    work.run("demo/make_faces.py", "--out", data, *counts)
    places = {
        "eval.image_dir": data / "test" / "images",
        "eval.caption_dir": data / "test" / "captions",
        "eval.feat_path": lmdb / "clip_txt",
        "eval.ref_path": lmdb / "ref.npz",
        "eval.root": "null",
        "eval.image_feat_path": "null",
        "data.feat_path": "null",
    }
    overrides = [f"{key}={place}" for key, place in places.items()]
    overrides += [f"eval.fid_sample_size={images}", "eval.variety_captions=0"]
    config = work.folder / "config.yaml"
    settings = load_config(ROOT / "configs" / "demo" / "demo.yaml", overrides)
    config.write_text(settings.to_yaml(), encoding="utf-8")
    for script in ("clip_encode_text.py", "fid_ref.py"):
        work.run(f"preprocess_scripts/{script}", "--config", config, "--split", "test")
    return config


def evaluation(work: Workplace, config: Path, busy: int) -> tuple[float, float]:
    """Evaluate beside `busy` programs; return seconds, and processor seconds."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
    for other in others:
        other.start()
    try:
        with tempfile.TemporaryDirectory(dir=work.folder) as out:
            network = ROOT / "assets" / "demo" / "dit.safetensors"
            flags = ["--ckpt", network, "--config", config, "--amp", "bf16", "--out", out]
            before, begun = processor_seconds(), time.perf_counter()
            work.run("eval_latent_t2f.py", *flags)
            return time.perf_counter() - begun, processor_seconds() - before
    finally:
        for other in others:
            other.kill()


def processor_seconds() -> float:
    """Return the processor seconds of all ended processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@one_line_errors
def main() -> None:
    """Time every setting beside every number of programs, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="images to sample and measure")
    parser.add_argument("--busy", default="0,2,4", help="numbers of other programs")
    add_arguments(parser)
    parser.set_defaults(repeats=1)
    args = parser.parse_args()
    start(args)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Workplace(Path(folder), time.monotonic() + 24 * 3600, args.images)
        config = prepare(work, args.images)
        for busy in map(int, args.busy.split(",")):
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
            for _ in range(args.repeats):
                for name, variables in SETTINGS.items():
                    work.variables = variables
                    taken[name].append(evaluation(work, config, busy))
            for name, runs in taken.items():
                seconds, processor = (
                    sorted(column)[len(runs) // 2] for column in zip(*runs, strict=True)
                )
                rows.append(
                    {"other programs": busy, "spinning": name, "seconds": seconds}
                    | {"processor seconds": processor}
                )
                print(rows[-1], flush=True)
    quiet = {row["spinning"]: row["processor seconds"] for row in rows if not row["other programs"]}
    if quiet:
        for row in rows:
            row["x quiet processor seconds"] = row["processor seconds"] / quiet[row["spinning"]]
    title = f"A busy machine: evaluation of {args.images} images"
    report(args.out, title, rows, [f"Medians of {args.repeats} runs on {args.threads} cores."])


if __name__ == "__main__":
    main()
