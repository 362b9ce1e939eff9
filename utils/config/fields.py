"""Types of the configuration's keys, and the base of its sections."""

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from models.choices import SEED_LIMIT
from models.noise_levels import descending
from utils.config.parsing import MOST_GUIDANCE


def _from_home(path: Path) -> Path:
    return Path(os.path.expanduser(path))  # Path's own method fails for an unknown user


def _no_switch(value: Any) -> Any:
    """Raise ValueError for true and false, which are numbers to Python."""
    if isinstance(value, bool):
        raise ValueError(f"should be a whole number, got {value}")
    return value


LocalPath = Annotated[Path, AfterValidator(_from_home)]  # relative to the current directory
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, BeforeValidator(_no_switch), Field(ge=0, lt=SEED_LIMIT)]  # of random numbers
Guidance = Annotated[float, Field(ge=-MOST_GUIDANCE, le=MOST_GUIDANCE)]
# Other numbers are finite; the ends of a range may be infinite.
Bound = Annotated[float, Field(allow_inf_nan=True, ge=-math.inf)]
PositiveBound = Annotated[float, Field(allow_inf_nan=True, gt=0)]
SamplerSteps = Annotated[PositiveInt, Field(le=10_000)]  # more would only fill memory with levels
Amp = Literal["bf16", "fp16", "no"]  # autocast of a network; no = float32
Precision = Literal["float32", "bf16", "fp16"]  # of a network's weights
SamplingPreset = Literal["fast", "fast8", "instant", "paper"]  # a key of SAMPLING_PRESETS each


def amp_name(value: Any) -> Any:
    """Translate true and false: published configs write them, and YAML reads `no` as false."""
    return {True: "bf16", False: "no"}.get(value, value) if isinstance(value, bool) else value


def schedule_name(value: Any) -> Any:
    """Translate cos4, which published configs write as well as cosine4."""
    short = isinstance(value, str) and value.startswith("cos") and value[3:].isdigit()
    return f"cosine{value[3:]}" if short else value


def perturbation_name(value: Any) -> Any:
    """Translate the published names of truncated, which add how the numbers were drawn."""
    return "truncated" if isinstance(value, str) and value.endswith("trunc_gaussian") else value


def rate_or_switch(value: Any) -> Any:
    """Return a learning rate, or true or false for 1 and 0, which are no learning rates."""
    try:
        rate = value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        rate = -1
    if not 0 <= rate < math.inf:
        raise ValueError(f"should be a learning rate, true or false, got {value!r:.40}")
    return bool(rate) if rate in (0, 1) else rate


def in_order(value: tuple[float, float], name: str) -> tuple[float, float]:
    """Return a range whose lower end comes first; raise ValueError for any other."""
    if value[0] >= value[1]:
        raise ValueError(f"runs from {value[0]} to {value[1]}; the lower {name} comes first")
    return value


def _low_to_high(value: tuple[float, float]) -> tuple[float, float]:
    return in_order(value, "sigma")


SigmaRange = Annotated[tuple[NonNegativeFloat, PositiveBound], AfterValidator(_low_to_high)]
NoiseLevels = Annotated[tuple[PositiveFloat, ...], AfterValidator(descending)]


class Section(BaseModel):
    """A part of the config; unknown keys are faults, and defaults are validated too."""

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        coerce_numbers_to_str=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
