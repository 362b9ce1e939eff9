"""Networks spread over the processes (FSDP), for those too large for one device.

Checkpoints hold whole tensors under the usual names, so any number of processes reads them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from models.alignment import AlignedDenoiser
from models.edm import EDMPrecond, unwrapped
from utils.base.errors import UserError
from utils.config.sections import Train
from utils.training.ema import EMA
from utils.training.optimizers import build_optimizer
from utils.training.shards import is_shard, put_together


def wants_shards(options: Train, amp: str) -> bool:
    """Return True if `train.shard` or a launcher's FSDP setting asks for shards.

    Accelerate itself would shard on GPUs only, so this takes its setting over. Raises UserError if
    `amp` does not go with shards.
    """
    by_launcher = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not (options.shard or by_launcher):
        return False
    if amp == "fp16":
        raise UserError("train.shard: does not go with train.amp=fp16; use bf16 or no")
    return True


def shard(network: EDMPrecond, *, has_backward: bool = True) -> None:
    """Spread a network's weights over all processes, in place; all processes call this.

    Each block is gathered while it is needed, and so are the remaining weights.
    has_backward: a backward pass follows each forward pass, and lets go of the remaining weights.
    """
    # Its import takes a second, and few trainings are sharded.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = _mesh(network)
    for module in network.model.all_blocks():
        fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=None if has_backward else True)
    register_fsdp_forward_method(network, "summary")


def reshard(network: EDMPrecond) -> None:
    """Let go of the weights that a sharded network has gathered."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(network, FSDPModule)
    network.reshard()


def _mesh(network: EDMPrecond) -> DeviceMesh:
    device = next(network.parameters()).device
    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def shard_training(
    model: nn.Module, averages: Sequence[EMA], optimizer: torch.optim.Optimizer, train: Train
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Shard a network and its averages in place; return the trained weights and their optimizer.

    model: an EDMPrecond or AlignedDenoiser. The optimizer is a new one, as `train` names it, with
    the settings and the state of the given one.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    denoiser = unwrapped(model)
    shard(denoiser)
    if isinstance(model, AlignedDenoiser):
        fully_shard(model.head, mesh=_mesh(denoiser))
    for average in averages:
        shard(average.module, has_backward=False)
        average.follow(denoiser)
    parameters = [p for p in model.parameters() if p.requires_grad]
    new = build_optimizer(model, train)
    for group, old_group in zip(new.param_groups, optimizer.param_groups, strict=True):
        group.update({k: v for k, v in old_group.items() if k != "params"})
    weights = ([p for g in o.param_groups for p in g["params"]] for o in (optimizer, new))
    for old, parameter in zip(*weights, strict=True):
        assert is_shard(parameter)
        new.state[parameter] = {
            name: value
            if value.ndim == 0
            else distribute_tensor(value, parameter.device_mesh, parameter.placements)
            for name, value in optimizer.state.get(old, {}).items()
        }
    return parameters, new


def host_copy(value: Any, keep: bool = True) -> Any:
    """Copy nested dicts and lists to the CPU, with shards put together.

    All processes call this if there are shards; those that do not `keep` the copy get None.
    """
    if isinstance(value, torch.Tensor):
        value = put_together(value).detach()  # all processes take part
        return value.to("cpu", copy=True) if keep else None
    if isinstance(value, Mapping):
        copied = {key: host_copy(v, keep) for key, v in value.items()}
        return copied if keep else None
    if isinstance(value, list | tuple):
        items = [host_copy(v, keep) for v in value]
        return type(value)(items) if keep else None
    return value


def whole(network: EDMPrecond, empty: EDMPrecond) -> EDMPrecond:
    """Return the network, or `empty` with its weights if it is sharded; all processes call this."""
    if not any(is_shard(p) for p in network.parameters()):
        return network
    device = next(network.parameters()).device
    empty.load_state_dict(host_copy(network.state_dict()))
    empty.to(device).eval().requires_grad_(False)
    return empty
