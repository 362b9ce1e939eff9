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
from models.power_average import WIDEST
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
SamplerSteps = Annotated[PositiveInt, Field(le=10_000)]  # more would only fill memory with sigmas
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
    """Translate the published names of truncated, which add the distribution's name."""
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


def freedom_or_auto(value: Any) -> Any:
    """Return a freedom, 0 or more, or auto."""
    try:
        number = value if value == "auto" else float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number != "auto" and not 0 <= number < math.inf:
        raise ValueError(f"should be a number of at least 0, or auto, got {value!r:.40}")
    return number


def _low_to_high(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError(f"runs from {value[0]} to {value[1]}; the lower end comes first")
    return value


SigmaRange = Annotated[tuple[NonNegativeFloat, PositiveBound], AfterValidator(_low_to_high)]
# Standard deviation of an average's weighting, relative to the length of the training.
Width = Annotated[float, Field(gt=0, lt=WIDEST)]
Widths = Annotated[tuple[Width, Width], AfterValidator(_low_to_high)]
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_low_to_high)]
Sigmas = Annotated[tuple[PositiveFloat, ...], AfterValidator(descending)]

# Values that a preset gives to keys which are not set; docs/sampling.md compares them.
SAMPLING_PRESETS: dict[SamplingPreset, dict[str, Any]] = {
    "fast": {
        "solver": "dpmpp_2m",
        "num_steps": 10,
        "guidance_interval": (0.3, 1000.0),  # below 0.3 guidance has no visible effect
        "sigma_min": 0.02,
        "sigmas": None,
        "amp": "bf16",
    },
    "fast8": {  # sigmas that were searched for the demo's network
        "solver": "dpmpp_2m",
        "num_steps": 4,
        "guidance_interval": None,
        "sigma_min": None,
        "sigmas": (40.0, 4.7, 1.2, 0.34),
        "amp": "bf16",
    },
    "instant": {  # for students; their sigmas follow from distill.sigmas
        "solver": "euler",
        "num_steps": 1,
        "guidance_interval": None,
        "sigma_min": None,
        "sigmas": None,
        "amp": "bf16",
    },
    "paper": {
        "solver": "heun",
        "num_steps": 40,
        "guidance_interval": None,
        "sigma_min": None,
        "sigmas": None,
        "amp": "no",
    },
}


class Section(BaseModel):
    """A part of the config; unknown keys are faults, and defaults are validated too."""

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        coerce_numbers_to_str=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
