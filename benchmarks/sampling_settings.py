"""The settings that research/sampling_quality/compare.py compares, and what each of them costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.choices import Solver
from utils.base.errors import UserError
from utils.config.sections import Sampling
from utils.pretrained.effective_config import read_config
from utils.sampling.generate import sampler_settings

# Solvers with noise levels of their own; guidance ends at 0.3.
EXPLICIT_LEVELS: list[tuple[Solver, tuple[float, ...]]] = [
    ("euler", (80, 1.5)),
    ("euler", (80, 5, 1.5, 0.5)),
    ("euler", (40, 4.7, 1.2, 0.34)),
    ("dpmpp_2m", (80, 5, 1.5, 0.5)),
    ("dpmpp_2m", (40, 4, 1.1, 0.29, 0.09)),
]


@dataclass(frozen=True)
class Setting:
    """A sampler, and the curve of the plot that it lies on."""

    curve: str
    sampling: Sampling
    student: Path | None = None  # its network; None = the one that all other settings use

    @property
    def cost(self) -> int:
        """Images that the network sees for one picture; guidance counts double."""
        settings = sampler_settings(self.sampling)
        levels = settings.formulation().t_steps[:-1]
        low, high = self.sampling.guidance_interval or (0.0, float("inf"))
        guided = 1 if self.student else 2
        costs = [guided if low < level <= high else 1 for level in levels]
        if settings.solver == "heun":
            return sum(costs) + sum(costs[1:])
        return sum(costs)


def settings_to_compare() -> dict[str, Setting]:
    """Return all settings by name; `paper`, `fast` and `fast8` are presets."""
    found = {
        "paper": Setting("Heun", Sampling(preset="paper")),
        "fast": Setting("preset `fast`", Sampling(preset="fast")),
        "fast8": Setting("preset `fast8`", Sampling(preset="fast8")),
    }
    in_bf16 = Sampling(amp="bf16")

    def add(name: str, curve: str, **changes: object) -> None:
        found[name] = Setting(curve, in_bf16.model_copy(update=changes))

    for solver, label, steps in (
        ("dpmpp_2m", "DPM-Solver++(2M)", (5, 8, 10, 15, 20)),
        ("heun", "Heun", (5, 10, 20)),
        ("euler", "Euler", (10, 20)),
    ):
        for n in steps:
            add(f"{solver} {n}", label, solver=solver, num_steps=n)
    for name, schedule, scaling in (
        ("vp", "vp", "vp"),
        ("ve", "ve", "none"),
        ("iddpm", "linear", "none"),
    ):
        formulation = {"discretization": name, "schedule": schedule, "scaling": scaling}
        add(f"heun 10, {name}", f"Heun, {name} steps", solver="heun", num_steps=10, **formulation)
    for solver, levels in EXPLICIT_LEVELS:
        name = f"{solver} at {', '.join(f'{level:g}' for level in levels)}"
        lowest = (0.3, 1000.0)
        add(name, "", solver=solver, num_steps=len(levels), sigmas=levels, guidance_interval=lowest)
    for low, high in ((0.3, 100.0), (0.3, 5.0)):
        name = f"dpmpp_2m 10, guided {low:g} to {high:g}"
        add(name, "", solver="dpmpp_2m", num_steps=10, guidance_interval=(low, high))
    return found


def student_settings(files: Sequence[Path]) -> dict[str, Setting]:
    """Return a setting for each student; raises UserError if a network is no student."""
    found = {}
    for file in files:
        config = read_config(file)
        if config.distill.sigmas is None:
            raise UserError(f"--student {file}: the network is no student; see docs/sampling.md")
        name = f"student {', '.join(f'{level:g}' for level in config.distill.sigmas)}"
        found[name] = Setting("students", config.sampling, file)
    return found
