"""Compare everything that has a reference value with it, and write docs/parity.md.

    python tests/parity/parity.py         half a minute
    python tests/parity/parity.py --xl    trains and samples DiT-XL/2 too, a step each (20 GB)

Reference values were computed once with the published code; they lie in tests/golden. A file
that is not there is looked for in the folder of --golden, and otherwise named on the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

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

from models.draws import BatchDraws
from models.edm import build_denoiser, draw_for_loss, edm_loss
from models.perturbation import Perturbation, perturb
from models.samplers import SamplerSettings, guided, sample
from utils.base.errors import UserError, one_line_errors
from utils.base.progress import progress
from utils.config.command_line import HelpFormatter

XL_FIGURES = ROOT / "docs" / "parity_xl.json"
XL_PARAMETERS = 729_979_024
XL_MEMORY_GB = 20


def angle_lines(golden: Golden) -> Iterator[str]:
    """Angles between embeddings and their perturbed versions, ours beside the published ones."""
    if folder := golden.folder_of("perturbation.npz"):
        prefix = "angle_deg_mean_std_p5_p50_p95/"
        stored = np.load(folder / "perturbation.npz")
        for key in (key for key in stored if key.startswith(prefix)):
            kind, scale = key.removeprefix(prefix).replace("p", ".").split("_")
            generator = torch.Generator().manual_seed(0)
            y = torch.nn.functional.normalize(torch.randn(20000, 512, generator=generator))
            turned = perturb(y, Perturbation(kind, float(scale)), BatchDraws(generator))
            angle = torch.rad2deg((y * turned).sum(dim=1).clamp(-1, 1).acos()).numpy()
            ours = [angle.mean(), angle.std(), *np.percentile(angle, (5, 50, 95))]
            pairs = [f"{a:.1f} / {b:.1f}" for a, b in zip(ours, stored[key], strict=True)]
            yield f"| {kind} {scale} | {' | '.join(pairs)} |"


def shape_lines(golden: Golden) -> Iterator[str]:
    """Names, shapes and counts of the published sizes, built without memory for their weights."""
    if folder := golden.folder_of("state_dict_shapes.json"):
        for key, expected in json.loads((folder / "state_dict_shapes.json").read_text()).items():
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


def run_xl() -> dict[str, object]:
    """One training step and one sampling step of DiT-XL/2 with its decoder, measured."""
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
        draws = draw_for_loss(denoiser, clean, cond, mask_ratio=0.5)
        loss = edm_loss(denoiser, clean, cond, draws, mae_loss_coef=0.1).mean()
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
    """Markdown table of comparisons."""
    head = ["check", "values", "largest absolute", "largest relative", *["met"] * verdict]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [row.what, f"{row.values:,}", f"{row.absolute:.1e}", f"{row.relative:.1e}"]
        cells += ["yes" if row.passes else "**no**"] * verdict
        lines.append(f"| {' | '.join(cells)} |")
    return lines


SECTIONS: dict[str, Callable[[Golden], Iterator[Row]]] = {
    "Network (MaskDiT with EDM preconditioning), float32": lambda g: network_rows(g, amp=False),
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

- A dropped condition stays zero, "no condition", under the learned perturbation too; the published
  one turns zeros into noise once its biases have grown.
- The learned perturbation normalises the embedding first. With `data.norm_feature` or a fixed
  perturbation before it, as in the published configs, that changes nothing.
- `self_cond` and `ext_feature_dim` are those of the MaskDiT code. The published text-to-face
  training reads neither; its evaluation passes on `self_cond`.
- The linear layer into the decoder starts with Xavier weights rather than zeros, so that the
  encoder has a gradient from the second step on.
- Of an ImageNet database with mirrored copies in its second half, the first half is read;
  `train.xflip` mirrors the latents themselves.
"""


def write_page(golden: Golden, xl: dict[str, object] | None) -> tuple[str, int]:
    """The page as text, and how many comparisons fail."""
    lines = [
        "# Parity with the published code",
        "",
        f"Written by `python tests/parity/parity.py` (torch {torch.__version__}, CPU, "
        f"{platform.machine()}). Reference values were computed once with the published code.",
        f"*Met* means |deviation| ≤ {ATOL:g} + {RTOL:g} |reference| for every value, and equality "
        "where values are copied or drawn (databases, crops, noise, weights). The largest relative "
        "deviation is over values of at least a hundredth of the largest one.",
    ]
    failed = 0
    with progress(desc="compare", total=len(SECTIONS), unit="sections") as bar:
        for title, rows_of in SECTIONS.items():
            rows = list(rows_of(golden))
            failed += sum(not row.passes for row in rows)
            lines += ["", f"## {title}", "", *(table(rows) if rows else ["Not compared."])]
            bar.update(1)
    lines += [
        "",
        "## Network under bfloat16 autocast",
        "",
        "The same comparisons with the network in bfloat16, as trainings run it by default; for",
        "information, as nothing is promised here. Loss and gradient are those of single images",
        "with the reference's draws.",
        "",
        *table(network_rows(golden, amp=True), verdict=False),
        "",
        "## Angles of the perturbations",
        "",
        "Degrees between embeddings and their perturbed versions in 512 dimensions, ours (20,000",
        "draws) / published: a comparison of two samples.",
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
    ]
    if xl is None:
        lines.append("Not run; `python tests/parity/parity.py --xl` does, with 20 GB of memory.")
    else:
        lines += [
            f"{xl['parameters']:,} parameters (published: {XL_PARAMETERS:,}). One image, mask",
            "ratio 0.5, bfloat16 autocast, fused AdamW with its moments; no EMA copy of weights.",
            "",
            "| training step | sampling step, guided | peak memory | threads | loss |",
            "|---|---|---|---|---|",
            f"| {xl['training_step_s']} s | {xl['sampling_step_s']} s | {xl['peak_gib']} GiB "
            f"| {xl['threads']} | {xl['loss']} |",
        ]
    missing = ", ".join(f"`{name}`" for name in dict.fromkeys(golden.missing))
    lines += ["", "## Reference files that were not found", "", missing or "None.", DIFFERENCES]
    return "\n".join(lines), failed


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "parity.md", help="the page")
    parser.add_argument(
        "--golden",
        type=Path,
        default=ROOT.parent / "shared" / "golden",
        help="folder of reference files that tests/golden lacks",
    )
    parser.add_argument(
        "--xl",
        action="store_true",
        help=f"run DiT-XL/2 for a step: {XL_MEMORY_GB} GiB of memory; kept in {XL_FIGURES.name}",
    )
    args = parser.parse_args()
    if args.xl:
        XL_FIGURES.write_text(json.dumps(run_xl(), indent=2) + "\n")
    xl = json.loads(XL_FIGURES.read_text()) if XL_FIGURES.exists() else None
    page, failed = write_page(Golden((ROOT / "tests" / "golden", args.golden)), xl)
    args.out.write_text(page.rstrip() + "\n")
    print(f"{args.out}: {f'{failed} comparisons fail' if failed else 'all comparisons are met'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
