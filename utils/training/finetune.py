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
    head: nn.Module | None = None,
) -> Start:
    """Bring networks and optimizer to the state of a checkpoint, ours or published.

    The step counts on from the checkpoint's, as published. Published files have it in their name
    only. Released safetensors hold the EMA alone; it then starts both networks, at step 0.
    strict: all weights must fit, and the optimizer takes over its state where the file has one.
        Otherwise the notes list missing and unknown names, and the optimizer starts anew. It also
        does if the file's optimizer is not of the same kind; a note says so.
    head: of the alignment, if there is one. It takes over that of the file if it is of one shape.
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

    stored_head, own_head = state.get("head") or {}, {} if head is None else head.state_dict()
    same_head = _shapes(stored_head) == _shapes(own_head)
    if head is not None and same_head:
        load_weights(head, stored_head, path)
    elif head is not None:
        notes.append(f"the alignment starts anew: {path} holds no head for these features")

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
        heads = (0, 0) if same_head else (len(stored_head), len(own_head))
        take_optimizer_state(optimizer, opt, trained, list(state[which]), path, heads)
        taken = "with its optimizer state"
    return Start(
        step, images_seen, [f"starting from the weights of {path}, step {step}, {taken}", *notes]
    )


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


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
    heads: tuple[int, int] = (0, 0),
) -> None:
    """Load moments and momentum of another optimizer's state dict, but no setting of its groups.

    Both optimizers must be of one kind (optimizer_name). Our files number the `trained` parameters,
    as `optimizer` does. Published files number all weights `stored` in them; the fixed tables among
    these have no moments. Raises UserError if the moments do not belong to the weights.

    heads: how many weights of the state, and of `optimizer`, are of heads for the alignment; these
        are left out.
    """
    own = [p for group in optimizer.param_groups for p in group["params"]]
    places, _ = _network_and_head(optimizer.state_dict()["param_groups"], heads[1])
    numbers, left_out = _network_and_head(opt["param_groups"], heads[0])
    if len(numbers) == len(places):
        number_at = dict(zip(places, numbers, strict=True))
    elif len(numbers) == len(stored) and set(trained) <= set(stored):
        number_of = dict(zip(stored, numbers, strict=True))
        number_at = {i: number_of[name] for i, name in zip(places, trained, strict=True)}
    else:
        number_at = {}
    # Apex' optimizer counts its steps once for a whole group.
    step = next((group["step"] for group in opt["param_groups"] if "step" in group), 0)
    moments = {i: dict(opt["state"][n]) for i, n in number_at.items() if n in opt["state"]}
    for moment in moments.values():
        if "exp_avg" in moment:
            moment.setdefault("step", torch.as_tensor(float(step)))
    fits = all(
        value.shape == own[i].shape
        for i, moment in moments.items()
        for name, value in moment.items()
        if name != "step"
    )
    if len(moments) != len(opt["state"].keys() - left_out) or not fits:
        raise UserError(
            f"{source}: its optimizer state does not fit the model's weights; start without it: "
            "--use_strict_load False"
        )
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _network_and_head(
    groups: Sequence[Mapping[str, Any]], of_head: int
) -> tuple[list[int], list[int]]:
    """Return the numbers of an optimizer's weights: those of the network, and the `of_head` others.

    A head comes after the network, in the first group; the second one holds Muon's matrices.
    """
    numbers = [n for group in groups for n in group["params"]]
    end = len(groups[0]["params"])
    return numbers[: end - of_head] + numbers[end:], numbers[end - of_head : end]
