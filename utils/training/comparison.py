"""Settings that may change when a run continues, and those that make it another run."""

from __future__ import annotations

from typing import Any

from utils.config.schema import Config
from utils.training.speed import best_amp

FREE_SECTIONS = ("log", "eval", "sampling")
FREE_KEYS = (
    "train.num_workers",
    "train.max_bad_steps",
    "train.step_timeout",
    "train.shard",
    "train.compile",
    "train.activation_checkpointing",
)
GROWING_KEYS = ("train.max_num_steps", "train.epochs")


def differences(before: Config, now: Config) -> list[str]:
    """Name each setting that makes `now` another run than `before`, one phrase for each key."""
    old, new = _flat(before), _flat(now)
    found = []
    for key, value in new.items():
        if key.split(".")[0] in FREE_SECTIONS or key in FREE_KEYS or old[key] == value:
            continue
        if key in GROWING_KEYS and (value is None or (old[key] is not None and value > old[key])):
            continue
        found.append(f"{key} is {old[key]} there and {value} here")
    return found


def _flat(config: Config) -> dict[str, Any]:
    sections = config.to_dict().items()
    flat = {f"{name}.{key}": value for name, keys in sections for key, value in keys.items()}
    return flat | {"train.amp": best_amp(config.train.amp)}
