"""Perturbations by name, and the angles by which they change embeddings."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import torch

from models.batch_random import BatchRandom
from models.choices import SEED_LIMIT, PerturbationKind
from models.geometry import angle_deg
from models.perturbation import Perturbation, perturb
from utils.base.errors import UserError

PUBLISHED = ("gaussian:1.2", "gaussian:1.5", "fixed:0.8", "uniform:0.8")
OWN_STREAM = 0x9E3779B9  # torch takes 32 bits of a seed
FORM = "kind:scale, e.g. gaussian:1.2, or truncated:scale:trunc_a:trunc_b[:mean]"


def parse_perturbation(text: str) -> Perturbation:
    """Read a perturbation such as `gaussian:1.2`, see FORM; raise UserError for other text."""
    name, *rest = text.strip().split(":")
    if name == "learnable":
        raise UserError(f"perturbation {text!r}: training learns its angles; no setting gives them")
    kind = next((k for k in get_args(PerturbationKind) if k == name), None)
    try:
        numbers = [float(part) for part in rest]
    except ValueError:
        numbers = []
    allowed = (1, 3, 4) if kind == "truncated" else (1,)
    is_valid = len(numbers) in allowed and all(map(math.isfinite, numbers)) and numbers[0] >= 0
    if kind is None or not is_valid:
        raise UserError(f"perturbation {text!r}: should look like {FORM}")
    names = ("scale", "trunc_a", "trunc_b", "mean")
    try:
        return Perturbation(kind, **dict(zip(names, numbers, strict=False)))
    except ValueError as fault:
        raise UserError(f"perturbation {text!r}: {fault}") from fault


def perturbation_angles(
    y: torch.Tensor, perturbation: Perturbation, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Perturb y (N, D) twice and return angles in degrees, (N,) each.

    The first array holds the angles of y to its first perturbed version, the second those of the
    two versions. They depend on `seed` alone, not on other perturbations.
    """
    # A stream of its own: that of random embeddings of equal seed must not be repeated.
    rng = BatchRandom(torch.Generator().manual_seed((seed + OWN_STREAM) % SEED_LIMIT))
    first, second = (perturb(y, perturbation, rng) for _ in range(2))
    return angle_deg(y, first).numpy(), angle_deg(first, second).numpy()


def distribution(values: np.ndarray) -> dict[str, float]:
    """Return mean, std, 5, 50 and 95 % points, minimum and maximum of values (N,)."""
    p5, p50, p95 = np.percentile(values, (5, 50, 95))
    found = {
        "mean": values.mean(),
        "std": values.std(),
        "p5": p5,
        "p50": p50,
        "p95": p95,
        "min": values.min(),
        "max": values.max(),
    }
    return {name: float(value) for name, value in found.items()}
