"""Adapter files: the weights that a training changed, and the base that it changed.

An adapter is a safetensors file, or a folder with it and `adapter_config.json`. Those of LoRA have
the form of the library peft.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from models.adapters import fingerprint, mixed
from utils.base.errors import UserError
from utils.base.finite import require_finite
from utils.pretrained.checkpoint_files import open_safetensors

FILE = "adapter_model.safetensors"  # in a folder, as peft has it
PREFIX = "base_model.model."  # of all names, as peft has it
# Ten times the change that was trained; more is a slip of the pen, e.g. 70 for 0.7.
MOST = 10.0


class Adapter(NamedTuple):
    """An adapter, how much of it counts, and the base that it was trained beside."""

    file: Path
    amount: float
    weights: dict[str, Tensor]
    about: dict[str, Any]


def read_adapter(given: str | Path) -> Adapter:
    """Read `PATH` or `PATH:AMOUNT`; raise UserError if it is no adapter of this project."""
    path, weight = Path(given), 1.0
    name, _, amount = str(given).rpartition(":")
    if name and not path.exists():
        path = Path(name)
        try:
            weight = float(amount)
        except ValueError:
            weight = math.nan
        if math.isnan(weight):
            raise UserError(f"--adapter {given}: '{amount}' is no number; write e.g. {name}:0.7")
        if abs(weight) > MOST:
            raise UserError(
                f"--adapter {given}: the weight should be from {-MOST:g} to {MOST:g}; 1 is the "
                f"adapter as it was trained, write e.g. {name}:0.7"
            )
    path = path.expanduser()
    file = path / FILE if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        raise UserError(
            f"{path}: no adapter is there; name a file of train_latent_t2f.py --export_adapter"
        )
    with open_safetensors(file) as opened:
        about = json.loads((opened.metadata() or {}).get("adapter", "{}"))
        weights = {n.removeprefix(PREFIX): opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
    if "base" not in about:
        raise UserError(
            f"{file} is no adapter: it does not say beside which network it was trained; name a "
            "file of train_latent_t2f.py --export_adapter"
        )
    require_finite(weights, file, "its training has diverged: export an earlier checkpoint")
    return Adapter(file, weight, weights, about)


def with_adapters(
    weights: Mapping[str, Tensor], given: Sequence[str | Path], source: object
) -> dict[str, Tensor]:
    """Return the weights of a network with a mixture of adapters; see `models.adapters.mixed`.

    given: `PATH` or `PATH:AMOUNT` each. source: of the network, for messages.
    Raises UserError if an adapter was trained beside another network.
    """
    if not given:
        return dict(weights)
    adapters, own = [read_adapter(one) for one in given], fingerprint(weights)
    for adapter in adapters:
        if adapter.about["base"] != own:
            raise UserError(
                f"{adapter.file} was trained beside {adapter.about['base_name']} (weights "
                f"{adapter.about['base']}), and {source} is another network ({own}); name that one"
            )
    return mixed(weights, [(adapter.weights, adapter.amount) for adapter in adapters])
