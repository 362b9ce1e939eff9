"""Start of a new run from another run's checkpoint: weights, optimizer state and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from models.adapters import fingerprint, is_new, plain_weights
from models.choices import Adaptation
from models.edm import EDMPrecond
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.pretrained.checkpoint_files import load_checkpoint, load_weights, read_safetensors
from utils.pretrained.denoisers import check_sigma_data, fitting
from utils.pretrained.effective_config import find_network
from utils.training.fitting import fit
from utils.training.optimizers import optimizer_name

NEEDS_BASE = (
    "train.adapt={}: trains a few weights beside those of a trained network; name that with "
    "--ckpt_path, or set train.adapt=all"
)


class Start(NamedTuple):
    """Counters with which a new run begins, and notes for the user.

    base: names the file of the first weights, by which an adapter finds it again; None if a part
        of these weights is in no file.
    """

    step: int
    images_seen: int
    notes: list[str]
    base: dict[str, str] | None = None


def start_from(
    path: Path,
    denoiser: EDMPrecond,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    batchsize: int,
    strict: bool = True,
    head: nn.Module | None = None,
    adapt: Adaptation = "all",
) -> Start:
    """Bring networks and optimizer to the state of a checkpoint, ours or published.

    The step counts on from the checkpoint's, as published. Published files have it in their name
    only. Released safetensors hold the EMA alone; it then starts both networks, at step 0.
    strict: all weights must fit, and the optimizer takes over its state where the file has one.
        Otherwise the notes list missing and unknown names, and the optimizer starts anew. It also
        does if the file's optimizer is not of the same kind; a note says so.
    head: of the alignment, if there is one. It takes over that of the file if it is of one shape.
    adapt: as in `train.adapt`. An adapter begins with the averaged weights, at step 0.
    Raises UserError if the file does not fit.
    """
    state = _read(path, averaged=adapt != "all")
    config = state.get("config")
    stored = config_from_dict(config, source=str(path)) if config else None
    if stored:
        check_sigma_data(stored.model.sigma_data, denoiser.sigma_data, path)
    which = "model" if "model" in state else "ema"
    notes = (
        [] if which == "model" else [f"{path} holds EMA weights only; training starts from them"]
    )
    found, averaged = (
        fit(state.get(name, state[which]), denoiser, path, other_condition=not (strict and config))
        for name in (which, "ema")
    )
    remedy = partial(fitting, denoiser, stored)
    load_weights(ema, averaged.weights, path, strict=strict, remedy=remedy)
    missing, unknown = load_weights(denoiser, found.weights, path, strict=strict)
    notes += found.notes
    if missing:
        notes.append(f"not in {path}, left as initialised: {', '.join(missing)}")
    if unknown:
        notes.append(f"in {path} but not in the model: {', '.join(unknown)}")
    if adapt != "all" and found.relearned not in (*adapt.split("+"), ""):
        raise UserError(
            f"train.adapt={adapt}: would leave weights untrained that {path} does not give; set it "
            f"to all{', condition, lora+condition' * (found.relearned == 'condition')}"
        )
    base = None
    if adapt != "all" and not found.notes and not missing:
        base = {"base": fingerprint(plain_weights(ema.state_dict())), "base_name": path.name}

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
    elif strict and opt.get("state") and not found.relearned:
        trained = [name for name, p in denoiser.named_parameters() if p.requires_grad]
        heads = (0, 0) if same_head else (len(stored_head), len(own_head))
        take_optimizer_state(optimizer, opt, trained, list(state[which]), path, heads)
        taken = "with its optimizer state"
    first = f"starting from the weights of {path}, step {step}, {taken}"
    return Start(step, images_seen, [first, *notes], base)


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def _read(path: Path, averaged: bool = False) -> dict[str, Any]:
    """Return what a file holds, or, if `averaged`, what the release of its averaged weights would.

    A checkpoint with an adapter is such a release: its optimizer knows no plain weights.
    """
    file = find_network(path).weights
    if file.suffix == ".safetensors":
        weights, config = read_safetensors(file)
        return {"ema": weights, "step": 0, "config": config.to_dict() if config else None}
    state = load_checkpoint(file)
    if averaged or any(map(is_new, state.get("model", ()))):
        weights = plain_weights(state.get("ema", state.get("model", {})))
        return {"ema": weights, "step": 0, "config": state.get("config")}
    return state


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
