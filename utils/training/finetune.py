"""Start of a new run from another run's checkpoint: weights, optimizer state and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from models.edm import EDMPrecond
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.pretrained.checkpoint_files import load_checkpoint, load_weights, read_safetensors
from utils.pretrained.denoisers import check_sigma_data
from utils.training.optimizers import optimizer_name


class Start(NamedTuple):
    """Counters with which a new run begins, and notes for the user."""

    step: int
    images_seen: int
    notes: list[str]


def start_from(
    path: Path,
    denoiser: EDMPrecond,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    batchsize: int,
    strict: bool = True,
) -> Start:
    """Bring networks and optimizer to the state of a checkpoint, ours or published.

    The step counts on from the checkpoint's, as published. Published files have it in their name
    only. Released safetensors hold the EMA alone; it then starts both networks, at step 0.
    strict: all weights must fit, and the optimizer takes over its state where the file has one.
        Otherwise the notes list missing and unknown names, and the optimizer starts anew. It also
        does if the file's optimizer is not of the same kind; a note says so.
    Raises UserError if the file does not fit.
    """
    state = _read(path)
    if config := state.get("config"):
        trained_with = config_from_dict(config, source=str(path)).model.sigma_data
        check_sigma_data(trained_with, denoiser.sigma_data, path)
    which = "model" if "model" in state else "ema"
    notes = (
        [] if which == "model" else [f"{path} holds EMA weights only; training starts from them"]
    )
    load_weights(ema, state.get("ema", state[which]), path, strict=strict)
    missing, unknown = load_weights(denoiser, state[which], path, strict=strict)
    if missing:
        notes.append(f"not in {path}, left as initialised: {', '.join(missing)}")
    if unknown:
        notes.append(f"in {path} but not in the model: {', '.join(unknown)}")

    step = state.get("step", int(path.stem) if path.stem.isdigit() else 0)
    images_seen = state.get("images_seen", step * batchsize)
    opt, taken = state.get("opt") or {}, "without its optimizer state"
    theirs, ours = (
        optimizer_name(groups) for groups in (opt.get("param_groups", ()), optimizer.param_groups)
    )
    if strict and opt.get("state") and theirs != ours:
        notes.append(
            f"the optimizer state in {path} is left out: it is of {theirs}, and train.optimizer is "
            f"{ours}"
        )
    elif strict and opt.get("state"):
        trained = [name for name, p in denoiser.named_parameters() if p.requires_grad]
        take_optimizer_state(optimizer, opt, trained, list(state[which]), path)
        taken = "with its optimizer state"
    return Start(
        step, images_seen, [f"starting from the weights of {path}, step {step}, {taken}", *notes]
    )


def _read(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return load_checkpoint(path)
    weights, config = read_safetensors(path)
    return {"ema": weights, "step": 0, "config": config.to_dict() if config else None}


def take_optimizer_state(
    optimizer: torch.optim.Optimizer,
    opt: Mapping[str, Any],
    trained: Sequence[str],
    stored: Sequence[str],
    source: Path,
) -> None:
    """Load moments and momentum of another optimizer's state dict, but no setting of its groups.

    Both optimizers must be of one kind (optimizer_name). Our files number the `trained` parameters,
    as `optimizer` does. Published files number all weights `stored` in them; the fixed tables among
    these have no moments. Raises UserError if the moments do not belong to the weights.
    """
    own = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in opt["param_groups"] for n in group["params"]]
    if len(numbers) == len(own):
        order = numbers
    elif len(numbers) == len(stored) and set(trained) <= set(stored):
        number_of = dict(zip(stored, numbers, strict=True))
        order = [number_of[name] for name in trained]
    else:
        order = []
    # Apex' optimizer counts its steps once for a whole group.
    step = next((group["step"] for group in opt["param_groups"] if "step" in group), 0)
    moments = {i: dict(opt["state"][n]) for i, n in enumerate(order) if n in opt["state"]}
    for moment in moments.values():
        if "exp_avg" in moment:
            moment.setdefault("step", torch.as_tensor(float(step)))
    fits = all(
        value.shape == own[i].shape
        for i, moment in moments.items()
        for name, value in moment.items()
        if name != "step"
    )
    if len(moments) != len(opt["state"]) or not fits:
        raise UserError(
            f"{source}: its optimizer state does not fit the model's weights; start without it: "
            "--use_strict_load False"
        )
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
