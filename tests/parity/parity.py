"""Compare our results with the reference values of the published code, and write docs/parity.md.

    python tests/parity/parity.py         # half a minute
    python tests/parity/parity.py --xl    # also trains and samples DiT-XL/2, a step each (20 GiB)
    GOLDEN=folder python tests/parity/parity.py

The published code is that of text-to-face diffusion and of MaskDiT and EDM, which it is based on.
Its reference values were computed once and lie in tests/golden. Larger files are not in the
repository: they are looked for in the folder that --golden or the environment variable GOLDEN
names. The page lists the files that were not found.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import psutil
import torch
from parity_checks import (
    ATOL,
    RTOL,
    Golden,
    Row,
    checkpoint_rows,
    database_rows,
    formula_rows,
    network_rows,
    noise_rows,
    perturbation_rows,
    sampler_rows,
    small_rows,
    vae_rows,
)

from models.batch_random import BatchRandom
from models.edm import build_denoiser, edm_loss, random_for_loss
from models.perturbation import Perturbation, perturb
from models.samplers import SamplerSettings, guided, sample
from utils.base.files import write_json, write_text
from utils.base.progress import progress
from utils.config.command_line import ArgumentParser

XL_RESULT = ROOT / "docs" / "parity_xl.json"
XL_PARAMETERS = 729_979_024
XL_MEMORY_GB = 20


def angle_lines(golden: Golden) -> Iterator[str]:
    """Yield a line for each perturbation: angles to the embeddings, ours beside the published."""
    for path in golden.find("perturbation.npz"):
        prefix = "angle_deg_mean_std_p5_p50_p95/"
        stored = np.load(path)
        for key in (key for key in stored if key.startswith(prefix)):
            kind, scale = key.removeprefix(prefix).replace("p", ".").split("_")
            generator = torch.Generator().manual_seed(0)
            y = torch.nn.functional.normalize(torch.randn(20000, 512, generator=generator))
            perturbed = perturb(y, Perturbation(kind, float(scale)), BatchRandom(generator))
            angle = torch.rad2deg((y * perturbed).sum(dim=1).clamp(-1, 1).acos()).numpy()
            ours = [angle.mean(), angle.std(), *np.percentile(angle, (5, 50, 95))]
            pairs = [f"{a:.1f} / {b:.1f}" for a, b in zip(ours, stored[key], strict=True)]
            yield f"| {kind} {scale} | {' | '.join(pairs)} |"


def shape_lines(golden: Golden) -> Iterator[str]:
    """Yield a line for each published size: counts, and whether names and shapes are equal.

    Networks are built without memory for their weights.
    """
    for path in golden.find("state_dict_shapes.json"):
        for key, expected in json.loads(path.read_text()).items():
            name, _, options = key.partition(" ")
            with torch.device("meta"):
                denoiser = build_denoiser(name, 32, 4, 512, **json.loads(options))
            shapes = {k: list(v.shape) for k, v in denoiser.state_dict().items()}
            sizes = [(p.numel(), p.requires_grad) for p in denoiser.parameters()]
            count, trained = sum(n for n, _ in sizes), sum(n for n, needs in sizes if needs)
            equal = list(shapes.items()) == list(expected["shapes"].items())
            equal &= (count, trained) == (expected["parameters"], expected["trainable"])
            options = options.strip("{}").replace('"', "")
            verdict = "equal, in the same order" if equal else "**different**"
            yield f"| {name} | {options} | {count:,} | {trained:,} | {len(shapes)} | {verdict} |"


def run_xl() -> dict[str, Any]:
    """Measure one training step and one sampling step of DiT-XL/2 with its decoder.

    Raise UserError if there is too little memory, or if a result is not finite.
    """
    free = psutil.virtual_memory().available / 2**30
    if free < XL_MEMORY_GB:
        raise UserError(f"--xl needs {XL_MEMORY_GB} GiB of free memory, and there are {free:.0f}")
    torch.manual_seed(0)
    denoiser = build_denoiser("DiT-XL/2", 32, 4, 512)
    parameters = sum(p.numel() for p in denoiser.parameters())
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0, fused=True)
    clean, cond = torch.randn(1, 4, 32, 32), torch.nn.functional.normalize(torch.randn(1, 512))
    before = denoiser.model.final_layer.linear.weight.detach().clone()
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        random = random_for_loss(denoiser, clean, cond, mask_ratio=0.5)
        loss = edm_loss(denoiser, clean, cond, random, mae_loss_coef=0.1).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    trained_at = time.perf_counter()
    moved = (denoiser.model.final_layer.linear.weight - before).abs().max().item()
    denoiser.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        denoise = guided(denoiser, cond, 2.0)
        image = sample(denoise, torch.randn(1, 4, 32, 32), SamplerSettings(num_steps=1))
    if not (loss.isfinite() and image.isfinite().all() and moved > 0):
        raise UserError("--xl: the step gave no finite loss, no finite image or moved no weight")
    return {
        "parameters": parameters,
        "loss": round(loss.item(), 4),
        "training_step_s": round(trained_at - started, 1),
        "sampling_step_s": round(time.perf_counter() - trained_at, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def table(rows: Iterable[Row], verdict: bool = True) -> list[str]:
    """Return the lines of a Markdown table of comparisons; `verdict` adds the column "met"."""
    head = ["check", "values", "largest absolute", "largest relative", *["met"] * verdict]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [row.what, f"{row.values:,}", f"{row.absolute:.1e}", f"{row.relative:.1e}"]
        cells += ["yes" if row.passes else "**no**"] * verdict
        lines.append(f"| {' | '.join(cells)} |")
    return lines


SECTIONS: dict[str, Callable[[Golden], Iterator[Row]]] = {
    "Network (MaskDiT with EDM preconditioning), float32": network_rows,
    "Samplers": sampler_rows,
    "Noise of each seed": noise_rows,
    "VAE": vae_rows,
    "Databases": database_rows,
    "Checkpoint": checkpoint_rows,
    "Perturbation": perturbation_rows,
    "Mask schedules and crops": small_rows,
    "Our own cross-checks": lambda _: formula_rows(),
}
DIFFERENCES = """
## Where this differs from the published code, on purpose

- A dropped condition stays zero ("no condition") under the learned perturbation too. In the
  published code the perturbation makes noise of zeros once its biases have grown.
- The learned perturbation normalises the embedding first. With `data.norm_feature` or a fixed
  perturbation before it, as in the published configs, that changes nothing.
- `self_cond` and `ext_feature_dim` work as in the MaskDiT code. The published text-to-face training
  reads neither; its evaluation passes on `self_cond`.
- The linear layer into the decoder starts with Xavier weights rather than zeros, so that the
  encoder has a gradient from the second step on.
- An ImageNet database may hold mirrored copies in its second half. Only the first half is read;
  `train.xflip` mirrors the latents themselves.
"""


def section_lines(golden: Golden, title: str) -> tuple[list[str], int]:
    """Return the lines of a section, which name the files that it lacks, and the failures in it."""
    before = len(golden.missing)
    rows = list(SECTIONS[title](golden))
    lines = ["", f"## {title}", "", *(table(rows) if rows else [])]
    if absent := golden.missing[before:]:
        names = " and ".join(f"`{name}`" for name in absent)
        lines += [*([""] if rows else []), f"Not compared: {names} was not found."]
    return lines, sum(not row.passes for row in rows)


def xl_lines(xl: dict[str, Any] | None) -> list[str]:
    """Return the lines about DiT-XL/2; `xl` is the result of run_xl, None if there is none."""
    if xl is None:
        return ["Not run; `python tests/parity/parity.py --xl` does, with 20 GiB of memory."]
    return [
        f"{xl['parameters']:,} parameters (published: {XL_PARAMETERS:,}). One image, mask",
        "ratio 0.5, bfloat16 autocast, fused AdamW with its moments; no EMA copy of weights.",
        "",
        "| training step | sampling step, guided | peak memory | threads | loss |",
        "|---|---|---|---|---|",
        f"| {xl['training_step_s']} s | {xl['sampling_step_s']} s | {xl['peak_gib']} GiB "
        f"| {xl['threads']} | {xl['loss']} |",
    ]


def make_page(golden: Golden, xl: dict[str, Any] | None) -> tuple[str, int]:
    """Return the page as text, and the number of comparisons that fail."""
    lines = [
        "# Parity with the published code",
        "",
        f"Written by `python tests/parity/parity.py` (torch {torch.__version__}, CPU, "
        f"{platform.machine()}). Reference values were computed once with the published code.",
        f"*Met* means |deviation| ≤ {ATOL:g} + {RTOL:g} |reference| for every value, and equality "
        "where values are copied or random (databases, crops, noise, weights). The largest "
        "relative deviation counts values of at least a hundredth of the largest one.",
    ]
    failed = 0
    with progress(desc="compare", total=len(SECTIONS), unit="section") as bar:
        for title in SECTIONS:
            section, failures = section_lines(golden, title)
            lines += section
            failed += failures
            bar.update(1)
    lines += [
        "",
        "## Network under bfloat16 autocast",
        "",
        "Trainings run the network in bfloat16 by default. These deviations from the float32",
        "references are for information: no limit is set. Loss and gradient are those of single",
        "images with the reference's random numbers.",
        "",
        *table(network_rows(golden, torch.bfloat16), verdict=False),
        "",
        "## Angles of the perturbations",
        "",
        "Degrees between embeddings and their perturbed versions in 512 dimensions. Each cell is",
        "ours (20,000 samples) / published.",
        "",
        "| perturbation | mean | standard deviation | 5 % | 50 % | 95 % |",
        "|---|---|---|---|---|---|",
        *angle_lines(golden),
        "",
        "## Names, shapes and parameter counts",
        "",
        "| network | options | parameters | trained | weights | names and shapes |",
        "|---|---|---|---|---|---|",
        *shape_lines(golden),
        "",
        "## DiT-XL/2 with its decoder, a step of each kind",
        "",
        *xl_lines(xl),
    ]
    missing = ", ".join(f"`{name}`" for name in dict.fromkeys(golden.missing))
    lines += ["", "## Reference files that were not found", "", missing or "None.", DIFFERENCES]
    return "\n".join(lines), failed


@one_line_errors
def main() -> None:
    """Compare, write the page, and exit with 1 if a comparison fails."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "parity.md", help="page to write"
    )
    parser.add_argument(
        "--golden",
        type=Path,
        default=os.environ.get("GOLDEN"),
        help="folder of reference files that tests/golden lacks; None = $GOLDEN, if it is set",
    )
    parser.add_argument(
        "--xl",
        action="store_true",
        help=f"run DiT-XL/2 for a step ({XL_MEMORY_GB} GiB of memory) and write {XL_RESULT.name}",
    )
    args = parser.parse_args()
    if args.xl:
        write_json(XL_RESULT, run_xl())
    xl = json.loads(XL_RESULT.read_text()) if XL_RESULT.exists() else None
    folders = [ROOT / "tests" / "golden", *([args.golden] if args.golden else [])]
    page, failed = make_page(Golden(folders), xl)
    write_text(args.out, page.rstrip() + "\n")
    print(f"{args.out}: {f'{failed} comparisons fail' if failed else 'all comparisons are met'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
