"""The sampler settings that compare.py compares, and what each of them costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.choices import Solver
from utils.base.errors import UserError
from utils.config.sampling_sections import Sampling
from utils.pretrained.effective_config import read_config
from utils.sampling.generate import sampler_settings

STEPS: dict[Solver, tuple[int, ...]] = {
    "dpmpp_2m": (5, 8, 10, 15, 20),
    "heun": (5, 10, 20),
    "euler": (10, 20),
}
LABELS: dict[Solver, str] = {"dpmpp_2m": "DPM-Solver++(2M)", "heun": "Heun", "euler": "Euler"}
FOUR_SIGMAS = (80.0, 5.0, 1.5, 0.5)  # those of the shipped student


@dataclass(frozen=True)
class Setting:
    """A sampler, and the curve of the plot that it lies on."""

    curve: str
    sampling: Sampling
    student: Path | None = None  # its network; None = the one that all other settings use

    @property
    def cost(self) -> int:
        """Network evaluations of an image; guidance counts double."""
        settings = sampler_settings(self.sampling)
        low, high = self.sampling.guidance_interval or (0.0, float("inf"))
        guided = 1 if self.student else 2
        sigmas = settings.formulation().t_steps[:-1]
        costs = [guided if low < sigma <= high else 1 for sigma in sigmas]
        return sum(costs) + (sum(costs[1:]) if settings.solver == "heun" else 0)


def settings_to_compare() -> dict[str, Setting]:
    """Return all settings by name; `paper`, `fast` and `fast8` are presets."""
    found = {
        "paper": Setting("Heun", Sampling(preset="paper")),
        "fast": Setting("preset `fast`", Sampling(preset="fast")),
        "fast8": Setting("preset `fast8`", Sampling(preset="fast8")),
    }
    for solver, counts in STEPS.items():
        for n in counts:
            sampling = Sampling(amp="bf16", solver=solver, num_steps=n)
            found[f"{solver} {n}"] = Setting(LABELS[solver], sampling)
    four = Sampling(
        amp="bf16", solver="euler", num_steps=4, sigmas=FOUR_SIGMAS, guidance_interval=(0.3, 1000)
    )
    found["euler at 80, 5, 1.5, 0.5"] = Setting("", four)
    return found


def student_settings(files: Sequence[Path]) -> dict[str, Setting]:
    """Return a setting for each student; raises UserError if a network is no student."""
    found = {}
    for file in files:
        config = read_config(file)
        if config.distill.sigmas is None:
            raise UserError(f"--student {file}: the network is no student; see docs/sampling.md")
        name = f"student {', '.join(f'{sigma:g}' for sigma in config.distill.sigmas)}"
        found[name] = Setting("students", config.sampling, file)
    return found
