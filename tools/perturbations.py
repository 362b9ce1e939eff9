"""Perturbation settings by name, and by which angles they turn embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from models.geometry import angle_deg
from models.perturbation import KINDS, perturb
from utils.base.errors import UserError

PUBLISHED = ("gaussian:1.2", "gaussian:1.5", "fixed:0.8", "uniform:0.8")
OWN_STREAM = 0x9E3779B9  # torch takes 32 bits of a seed
FORM = "kind:scale, e.g. gaussian:1.2, or truncated:scale:trunc_a:trunc_b[:mean]"


@dataclass(frozen=True)
class Setting:
    """`train.perturbation_type`, `train.perturbation` and what else a kind needs."""

    kind: str
    scale: float
    trunc_a: float = -1.0
    trunc_b: float = 1.0
    mean: float = 0.0

    def __str__(self) -> str:
        if self.kind != "truncated":
            return f"{self.kind} {self.scale:g}"
        around = f", mean {self.mean:g}" if self.mean else ""
        return f"truncated {self.scale:g} [{self.trunc_a:g}, {self.trunc_b:g}]{around}"


def parse_setting(text: str) -> Setting:
    """A setting such as `gaussian:1.2`, see FORM; UserError otherwise."""
    kind, *rest = text.strip().split(":")
    try:
        numbers = [float(part) for part in rest]
    except ValueError:
        numbers = []
    if kind == "learnable":
        raise UserError(f"perturbation {text!r}: its angles are learnt, they are not a setting")
    if kind not in KINDS:
        raise UserError(f"perturbation {text!r}: should look like {FORM}")
    allowed = (1, 3, 4) if kind == "truncated" else (1,)
    if len(numbers) not in allowed or not all(math.isfinite(n) for n in numbers) or numbers[0] < 0:
        raise UserError(f"perturbation {text!r}: should look like {FORM}")
    setting = Setting(kind, *numbers)
    if setting.trunc_a >= setting.trunc_b:
        raise UserError(f"perturbation {text!r}: trunc_a should be below trunc_b")
    return setting


def perturbed(y: torch.Tensor, setting: Setting, generator: torch.Generator) -> torch.Tensor:
    """The embeddings y (N, D) as training would see them, (N, D)."""
    return perturb(
        y,
        setting.kind,
        setting.scale,
        mean=setting.mean,
        trunc_a=setting.trunc_a,
        trunc_b=setting.trunc_b,
        generator=generator,
    )


def turning_angles(y: torch.Tensor, setting: Setting, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles, degrees, (N,) each: of y (N, D) to its perturbed version, and of two such versions.

    The draws depend on `seed` alone, not on which other settings are looked at.
    """
    # Another stream than that of embeddings drawn with the same seed: it must not repeat them.
    generator = torch.Generator().manual_seed((seed + OWN_STREAM) % 2**32)
    first, second = (perturbed(y, setting, generator) for _ in range(2))
    return angle_deg(y, first).numpy(), angle_deg(first, second).numpy()


def distribution(values: np.ndarray) -> dict[str, float]:
    """Mean, std, 5, 50 and 95 % points, least and greatest of (N,) numbers."""
    p5, p50, p95 = np.percentile(values, (5, 50, 95))
    figures = {
        "mean": values.mean(),
        "std": values.std(),
        "p5": p5,
        "p50": p50,
        "p95": p95,
        "min": values.min(),
        "max": values.max(),
    }
    return {name: float(figure) for name, figure in figures.items()}
