"""The experiment folder: its name, its lock, and the run that it holds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.base.errors import UserError
from utils.base.files import write_text
from utils.base.locks import FolderLock
from utils.base.processes import is_main_process
from utils.config.load import load_config
from utils.config.schema import Config
from utils.data.latent_dataset import LatentDataset
from utils.pretrained.checkpoint_files import foreign_files, load_checkpoint
from utils.training.checkpoint import latest_checkpoint
from utils.training.comparison import differences
from utils.training.state import conflicts

IMAGE_LIST = "images.json"


def experiment_name(config: Config) -> str:
    """Return a folder name from dataset, model, masking, perturbation, batch size and tag."""
    model, train = config.model, config.train
    parts = [config.data.dataset, model.model_type.replace("/", "-")]
    parts.append(f"mask{model.mask_ratio:g}-{model.mask_ratio_fn}")
    if train.perturbation:
        parts.append(f"{train.perturbation_type}{train.perturbation:g}")
    if model.perturbation:
        parts.append("learnable")
    if train.adapt != "all":
        parts.append(train.adapt)
    parts.append(f"bs{train.batchsize}")
    if config.log.tag:
        parts.append(config.log.tag)
    return "_".join(parts)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for one training. Raises UserError that names the owner if it is locked."""
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


def check_continuation(
    folder: Path,
    config: Config,
    saved: Mapping[str, Any] | None,
    images: int,
    data_identity: str = "",
) -> None:
    """Check that `config` and a dataset of `images` continue the run that `folder` holds, if any.

    saved: the checkpoint that the run would continue from. data_identity: see LatentDataset. Raises
    UserError that names each conflict.
    """
    found: list[str] = []
    written = folder / "config.yaml"
    if saved is not None:
        if "config" not in saved:
            raise UserError(
                f"the checkpoints in {folder} are not from a run of this program; start a new run "
                "from one of them with --ckpt_path and another --exp_name"
            )
        found = conflicts(saved, config, images, data_identity)
    elif written.exists():
        found = differences(load_config(written), config)
    if found:
        raise UserError(
            f"{folder} holds another run: {'; '.join(found)}. Choose another --exp_name, "
            "or give the same settings to continue that run"
        )


def with_stored_defaults(folder: Path, config: Config) -> Config:
    """Return `config` with the value of `train.ema_rampup` that the run in `folder` began with.

    The default has changed since some runs began. A value that the settings name counts, and
    `check_continuation` compares it.
    """
    written = folder / "config.yaml"
    if "ema_rampup" in config.train.model_fields_set or not written.exists():
        return config
    stored = load_config(written).train.ema_rampup
    train = config.train.model_copy(update={"ema_rampup": stored})
    return config.model_copy(update={"train": train})


def saved_state(
    folder: Path, config: Config, images: int, notes: list[str], data_identity: str = ""
) -> tuple[dict[str, Any], Path] | None:
    """Return the latest complete checkpoint of the run in `folder` and its file, or None.

    Adds notes about damaged or missing checkpoints, and files that are none. Raises UserError as
    `check_continuation` does.
    """
    if (foreign := foreign_files(folder / "checkpoints")) is not None:
        notes.append(f"note: {foreign}")
    latest = latest_checkpoint(folder / "checkpoints", notes.append)
    saved = load_checkpoint(latest) if latest else None
    check_continuation(folder, config, saved, images, data_identity)
    if latest is None and (folder / "metrics.jsonl").exists():
        notes.append(f"note: {folder} holds no checkpoint; the run and metrics.jsonl begin anew")
    return None if saved is None or latest is None else (saved, latest)


def write_config(folder: Path, config: Config) -> None:
    """Write the resolved config.yaml."""
    write_text(folder / "config.yaml", config.to_yaml())


def write_image_list(folder: Path, data: LatentDataset) -> None:
    """Write images.json once: the database of latents, and count, names and hash of its images.

    The hash identifies names and order; databases of one set of images have equal ones. Databases
    in the plain published layout hold no names.
    """
    if (folder / IMAGE_LIST).exists():
        return
    values = {"database": str(data.path), "count": data.length, **data.origin}
    text = json.dumps(values, indent=2)  # ASCII only, as file names need not be UTF-8
    write_text(folder / IMAGE_LIST, text + "\n")
