"""Settings that may change when a run continues, and those that make it another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.config.schema import Config
from utils.training.speed import best_amp

FREE_SECTIONS = ("log", "eval", "sampling", "prior")
FREE_KEYS = (
    "encoders.prior",
    "train.num_workers",
    "train.max_bad_steps",
    "train.step_timeout",
    "train.power_ema",
    "train.shard",
    "train.compile",
    "train.activation_checkpointing",
)
# Places of the data: they may change if the data are the same.
PLACES = (
    "data.root",
    "data.feat_path",
    "data.image_dir",
    "data.caption_dir",
    "data.split_file",
    "data.text_feat_path",
    "data.patch_feat_path",
    "data.mirrored_root",
)
# Places of files: they may change with those of the data if the files keep their names.
FILES = (
    "encoders.vae",
    "encoders.clip",
    "encoders.latent_statistics",
    "encoders.image_mean",
    "encoders.inception",
    "encoders.dinov2",
    "distill.teacher",
)
GROWING_KEYS = ("train.max_num_steps", "train.epochs")


def differences(before: Config, now: Config, has_same_data: bool = False) -> list[str]:
    """Name each setting that makes `now` another run than `before`, one phrase for each key.

    has_same_data: both have the same images and embeddings, wherever they lie.
    """
    old, new = flat_settings(before), flat_settings(now)
    found = []
    for key, value in new.items():
        if key.split(".")[0] in FREE_SECTIONS or key in FREE_KEYS or old[key] == value:
            continue
        if key in GROWING_KEYS and (value is None or (old[key] is not None and value > old[key])):
            continue
        if has_same_data and _is_moved(key, old[key], value):
            continue
        found.append(f"{key} is {old[key]} there and {value} here")
    return found


def _is_moved(key: str, before: Any, now: Any) -> bool:
    """Return True if a key names the place of data, or of a file of an unchanged name."""
    if key in FILES and before is not None and now is not None:
        return Path(before).name == Path(now).name
    return key in PLACES


def flat_settings(config: Config) -> dict[str, Any]:
    """Return `section.key` -> value of all settings, with `train.amp` as it is on this machine."""
    sections = config.to_dict().items()
    flat = {f"{name}.{key}": value for name, keys in sections for key, value in keys.items()}
    return flat | {"train.amp": best_amp(config.train.amp)}
