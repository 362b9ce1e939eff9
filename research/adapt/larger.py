"""Train the demo's network at 256 pixels, from its weights for 128 pixels and from scratch.

    python research/adapt/larger.py --threads 1        # the table of docs/adapting.md

Rendered faces of 256×256 pixels become latents of 4×32×32. All trainings have equal settings and a
constant rate, so that no checkpoint is in the middle of a schedule. At each mark the averaged
weights generate an image for the embedding of each of 160 held-out faces, which are compared with
the faces. This command, started again, goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
import torch
from PIL import Image
from torch import Tensor

from benchmarks.timing import report, start
from demo.make_faces import render
from research.adapt.compare import BASE, EQUAL
from research.adapt.material import TESTED, RenderedFaces, face, run
from utils.base.files import read_json_lines, write_json
from utils.config.command_line import ArgumentParser

SIDE = 256  # of the images, pixels
FACES = 2000  # training images
SHIFT = round(math.log(2), 2)  # of ln(sigma), for twice the side
SHOWN = 6  # faces in the figure
SETTINGS = (
    *(setting for setting in EQUAL if "batchsize" not in setting), "train.batchsize=16",
    f"data.resolution={SIDE}", f"model.in_size={SIDE // 8}", "model.mlp=gelu",
    "train.lr_schedule=constant", "train.ema_rampup=0.1", "log.keep_last=null", "log.log_every=50",
    "log.ckpt_every=50",
)  # fmt: skip
SMALLER, SCRATCH = "128-pixel network", "scratch"
MARKS = {SCRATCH: (200, 400, 600), SMALLER: (150, 200)}  # steps
BF16 = torch.autocast("cpu", torch.bfloat16)
Rows = Mapping[int, Mapping[str, Any]]  # by steps


class LargeFaces(RenderedFaces):
    """Rendered faces of SIDE pixels; the networks run in bfloat16."""

    size = SIDE

    def image(self, split: str, index: int) -> Image.Image:
        """Render a face."""
        return render(face(split, index), SIDE)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Material`."""
        with BF16:
            return super().decode(latents)

    def loss(self, checkpoint: Path) -> float:
        """See `Material`."""
        with BF16:
            return super().loss(checkpoint)


class Job(NamedTuple):
    """A training: what it starts from, and ln(sigma) of its noise."""

    begin: str
    seed: int
    p_mean: float = SHIFT

    @property
    def name(self) -> str:
        """Folder of the training."""
        return f"{self.begin.split('-')[0]}_{self.p_mean:g}_{self.seed}"


def measured(work: Path, data: LargeFaces, job: Job, mark: int) -> dict[str, Any]:
    """Return metrics of a training at a mark; train and measure, unless that was done before."""
    folder = work / job.name
    if not (checkpoint := folder / "checkpoints" / f"{mark:07d}.pt").exists():
        where = ["--results_dir", str(work.resolve()), "--exp_name", job.name]
        where += ["--config", str(BASE)] + ["--ckpt_path", str(BASE)] * (job.begin == SMALLER)
        numbers = [f"train.max_num_steps={MARKS[job.begin][-1]}", f"train.seed={job.seed}"]
        numbers += [f"train.P_mean={job.p_mean}", *data.databases(FACES)]
        run(["train_latent_t2f.py", *where, *SETTINGS, *numbers])
    if not (kept := folder / f"mark_{mark}.json").exists():
        images = data.generate(checkpoint)
        spent = [x["cpu_s"] for x in read_json_lines(folder / "metrics.jsonl") if x["step"] <= mark]
        found = data.measure(images, len(data.known))
        torch.save(images[:SHOWN].clone(), kept.with_suffix(".pt"))
        write_json(kept, {"seconds": sum(spent), "loss": data.loss(checkpoint), **found})
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def shown(job: Job, mark: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the table."""
    return {
        "start": job.begin,
        "P_mean": f"{job.p_mean:g}",
        "seed": job.seed,
        "steps": mark,
        "processor s": f"{row['seconds']:.0f}",
        "loss": f"{row['loss']:.3f}",
        "distance": f"{row['distance']:.1f}",
        "attributes": f"{row['attributes']:.0%}".replace("%", " %"),
    }


def steps_needed(distance: float, marks: Rows) -> float | None:
    """Return the steps after which a training reaches a distance; None = not by its last mark.

    Between two marks the distance is taken as linear in the logarithm of the steps.
    """
    for (first, before), (last, after) in itertools.pairwise(marks.items()):
        if after["distance"] <= distance <= before["distance"]:
            part = (before["distance"] - distance) / (before["distance"] - after["distance"])
            return float(first * (last / first) ** part)
    return None


def gains(found: Mapping[Job, Rows]) -> Iterator[str]:
    """Yield how many steps from scratch give the distance of each mark of the smaller network."""
    for job, marks in found.items():
        scratch = found.get(job._replace(begin=SCRATCH), {})
        for mark, row in marks.items() if job.begin == SMALLER and scratch else ():
            needed, last = steps_needed(row["distance"], scratch), max(scratch)
            takes = f"{needed:.0f}" if needed else f"over {last}"
            ratio = f"{(needed or last) / mark:.1f} times as many"
            yield f"Seed {job.seed}: {mark} steps are worth {takes} from scratch, {ratio}."


def figure(work: Path, data: LargeFaces, jobs: Sequence[tuple[Job, int]], file: Path) -> None:
    """Write columns of faces: as the VAE decodes them, and by each training at a mark."""
    columns = [data.decoded[:SHOWN]]
    columns += [
        torch.load(work / j.name / f"mark_{mark}.pt", weights_only=True) for j, mark in jobs
    ]
    grid = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
    image = Image.fromarray(grid.permute(1, 2, 0).numpy())
    image.resize((image.width // 2, image.height // 2)).save(file, quality=70)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("results/larger"), help="its folder")
    parser.add_argument("--out", type=Path, help="JSON to write; None = results.json in --work")
    parser.add_argument("--threads", type=int, default=1, help="processor cores to use")
    return parser.parse_args()


@one_line_errors
def main() -> None:
    """Run all trainings that are missing; write their table, and faces.jpg."""
    args = parse_args()
    start(args)
    data = LargeFaces(BASE, args.work / "data", "test")
    error = (data.decoded.double() - data.real.double()).square().mean(dim=(1, 2, 3))
    others = data.measure(data.decode(data.encode(data.images("other", TESTED))), len(data.known))
    notes = [
        f"PSNR of the VAE at {SIDE} pixels: {(10 * torch.log10(255**2 / error)).mean():.1f} dB.",
        f"Other real faces, encoded and decoded: distance {others['distance']:.1f}.",
    ]
    jobs = [Job(begin, seed) for seed in (0, 1) for begin in (SCRATCH, SMALLER)]
    jobs.append(Job(SMALLER, 0, p_mean=0.0))
    found: dict[Job, dict[int, dict[str, Any]]] = {job: {} for job in jobs}
    rows: list[dict[str, Any]] = []
    for job in jobs:
        for mark in MARKS[job.begin]:
            found[job][mark] = measured(args.work, data, job, mark)
            rows.append(shown(job, mark, found[job][mark]))
        out = args.out or args.work / "results.json"
        report(out, f"Training at {SIDE} pixels", rows, [*notes, *gains(found)])
    columns = [(job, mark) for job in jobs[:2] for mark in MARKS[job.begin]]
    figure(args.work, data, columns, args.work / "faces.jpg")


if __name__ == "__main__":
    main()
