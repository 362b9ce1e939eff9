"""The experiment folder: its name, and whose run it holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.base.errors import UserError
from utils.base.files import write_whole
from utils.base.locks import FolderLock
from utils.base.processes import is_main_process
from utils.config.load import config_from_dict, load_config
from utils.config.schema import Config
from utils.training.speed import best_amp

# What may change between the start of a run and its continuation.
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


def experiment_name(config: Config) -> str:
    """Folder name that tells runs apart: dataset, model, masking, perturbation, batch size, tag."""
    model, train = config.model, config.train
    parts = [config.data.dataset, model.model_type.replace("/", "-")]
    parts.append(f"mask{model.mask_ratio:g}-{model.mask_ratio_fn}")
    if train.perturbation:
        parts.append(f"{train.perturbation_type}{train.perturbation:g}")
    if model.perturbation:
        parts.append("learnable")
    parts.append(f"bs{train.batchsize}")
    if config.log.tag:
        parts.append(config.log.tag)
    return "_".join(parts)


def _flat(config: Config) -> dict[str, Any]:
    sections = config.to_dict().items()
    flat = {f"{name}.{key}": value for name, keys in sections for key, value in keys.items()}
    return flat | {"train.amp": best_amp(config.train.amp)}


def differences(before: Config, now: Config) -> list[str]:
    """What makes `now` another run than `before`, one phrase for each key."""
    old, new = _flat(before), _flat(now)
    found = []
    for key, value in new.items():
        if key.split(".")[0] in FREE_SECTIONS or key in FREE_KEYS or old[key] == value:
            continue
        if key in GROWING_KEYS and (value is None or (old[key] is not None and value > old[key])):
            continue
        found.append(f"{key} is {old[key]} there and {value} here")
    return found


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Held by the first process of a training in a folder; UserError if there is one already."""
    if not is_main_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FolderLock(folder, "experiment"):
            yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing came of it


def claim(folder: Path, config: Config, state: Mapping[str, Any] | None, images: int) -> None:
    """Check that `config` and a dataset of `images` continue the run that `folder` holds, if any.

    `state` is the checkpoint it would be continued from. Raises UserError naming what differs.
    """
    saved = folder / "config.yaml"
    if state is not None:
        if "config" not in state:
            raise UserError(
                f"the checkpoints in {folder} are not from a run of this program; start a new run "
                "from one of them with --ckpt_path and another --exp_name"
            )
        if state["data_position"]["length"] != images:
            raise UserError(
                f"{folder} was trained on {state['data_position']['length']} images, but "
                f"{config.data.root} now has {images}; choose another --exp_name"
            )
        before = config_from_dict(state["config"], source=f"the checkpoint in {folder}")
    elif saved.exists():
        before = load_config(saved)
    else:
        return
    found = differences(before, config)
    if found:
        raise UserError(
            f"{folder} holds another run: {'; '.join(found)}. Choose another --exp_name, "
            "or give the same settings to continue that run"
        )


def write_config(folder: Path, config: Config) -> None:
    """Write the resolved config.yaml."""
    write_whole(folder / "config.yaml", lambda temporary: temporary.write_text(config.to_yaml()))
