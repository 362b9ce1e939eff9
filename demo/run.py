"""Run the whole job on the embedded faces: render, encode, train, evaluate, sample (`make demo`).

    python demo/run.py

Every stage is a script that real datasets use too, with the demo's config. A stage that was
interrupted goes on where it stopped; a complete one is skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.base.errors import fail, note
from utils.base.files import read_json_lines, write_json
from utils.base.script import one_line_errors
from utils.config.command_line import ArgumentParser
from utils.evaluation.metric_names import distance_of
from utils.evaluation.results import Results

RESULTS = Path("results/demo")
RECORD = RESULTS / "stages.json"
PROMPTS = [
    "a person with long red hair, round glasses and a blue hoodie, smiling",
    "a man with dark skin and a grey beard wearing a yellow turban, on a white background",
    "someone with a pink afro and heart eyes in green overalls, tongue out",
    "a sad face with a blond bob and sunglasses in a black blazer, lavender background",
]


@dataclass(frozen=True)
class Stage:
    """A command, the file that it leaves when complete, and a function that sums up its result."""

    name: str
    command: list[str]
    leaves: Path
    result: Callable[[], str]


def _lines(path: Path) -> list[dict]:
    """Read the records of a JSON-lines file."""
    return read_json_lines(path, note)


def _faces() -> str:
    """Sum up the rendering."""
    counts = [len(_lines(Path("data/demo") / split / "faces.jsonl")) for split in ("train", "test")]
    return f"{counts[0]} train and {counts[1]} test faces of 128×128"


def _training() -> str:
    """Sum up the training."""
    metrics = _lines(RESULTS / "metrics.jsonl")
    first, last = metrics[0], metrics[-1]
    return f"{last['step']} steps, loss {first['loss']:.3f} → {last['loss']:.3f}"


def _evaluation() -> str:
    """Sum up the evaluation."""
    records = sorted(Results(RESULTS / "evaluation").records, key=lambda r: int(r["step"]))
    distances = " → ".join(f"{distance_of(record):.3f}" for record in records)
    return f"Fréchet distance (CLIP) {distances}, CLIP score {records[-1]['clip_score']:.1f}"


def last_checkpoint() -> Path:
    """Return the latest checkpoint of the training, or a path that does not exist."""
    checkpoints = sorted((RESULTS / "checkpoints").glob("*.pt"))
    return checkpoints[-1] if checkpoints else RESULTS / "checkpoints" / "none.pt"


def stages() -> list[Stage]:
    """Return all stages in the order in which they run."""
    grid = RESULTS / "prompts" / "grid.png"
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    return [
        Stage("render faces", ["demo/make_faces.py"], Path("data/demo/test/faces.jsonl"), _faces),
        Stage(
            "VAE latents",
            ["preprocess_scripts/create_latentspace_lmdb.py", "--split", "train"],
            Path("data/demo/lmdb/train/z/data.mdb"),
            lambda: "latents of 4×16×16 in data/demo/lmdb/train/z",
        ),
        Stage(
            "CLIP images",
            ["preprocess_scripts/clip_encode_img.py", "--split", "train"],
            Path("data/demo/lmdb/train/clip_img/data.mdb"),
            lambda: "embeddings of 256 numbers in data/demo/lmdb/train/clip_img",
        ),
        Stage(
            "CLIP test captions",
            ["preprocess_scripts/clip_encode_text.py", "--split", "test"],
            Path("data/demo/lmdb/test/clip_txt/data.mdb"),
            lambda: "for evaluation only: training sees no caption",
        ),
        Stage(
            "reference statistics",
            ["preprocess_scripts/fid_ref.py", "--features"],
            Path("data/demo/ref_clip_test.npz"),
            lambda: "mean and covariance of CLIP image features, test faces",
        ),
        Stage(
            "train",
            ["train_latent_t2f.py", "--exp_name", "demo"],
            RESULTS / "checkpoints",
            _training,
        ),
        Stage(
            "evaluate checkpoints",
            ["eval_latent_t2f.py", "--amp", "bf16"],
            RESULTS / "evaluation" / "report.html",
            _evaluation,
        ),
        Stage(
            "sample from prompts",
            ["t2f.py", "--ckpt", "LAST", *prompts, "--num", "4", "--out", str(grid.parent)],
            grid,
            lambda: str(grid),
        ),
    ]


@one_line_errors
def main() -> None:
    """Run the stages that are not complete, and print the time and result of each."""
    parser = ArgumentParser(description=__doc__)
    parser.parse_args()
    if Path.cwd() != ROOT:
        fail(f"run this from the project's folder, {ROOT}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    done: dict[str, float] = (
        json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    )
    plan = stages()
    for number, stage in enumerate(plan, start=1):
        if stage.name in done and stage.leaves.exists():
            print(f"[{number}/{len(plan)}] {stage.name}: is complete already")
            continue
        print(f"[{number}/{len(plan)}] {stage.name}", flush=True)
        command = [str(last_checkpoint()) if word == "LAST" else word for word in stage.command]
        started = time.perf_counter()
        code = subprocess.run([sys.executable, *command]).returncode
        if code:
            print(f"stopped at {stage.name!r}; the same command goes on from here", file=sys.stderr)
            sys.exit(code)
        done[stage.name] = done.get(stage.name, 0.0) + time.perf_counter() - started
        write_json(RECORD, done)

    print(f"\n{'stage':<22}{'seconds':>8}  result")
    for stage in plan:
        print(f"{stage.name:<22}{done[stage.name]:8.0f}  {stage.result()}")
    print(f"{'all':<22}{sum(done[stage.name] for stage in plan):8.0f}")
    print(f"\nLook at {plan[-1].leaves} and {RESULTS / 'evaluation' / 'report.html'}")


if __name__ == "__main__":
    main()
