"""Networks spread over the processes (FSDP), for those too large for one device.

Checkpoints hold whole tensors under the usual names, so any number of processes reads them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from models.alignment import AlignedDenoiser
from models.edm import EDMPrecond, unwrapped
from utils.base.errors import UserError
from utils.config.sections import Train
from utils.training.ema import EMA


def wants_shards(options: Train, amp: str) -> bool:
    """Return True if `train.shard` or a launcher's FSDP setting asks for shards.

    Accelerate itself would shard on GPUs only, so this takes its setting over. Raises UserError if
    `amp` or the optimizer does not go with shards.
    """
    by_launcher = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not (options.shard or by_launcher):
        return False
    if amp == "fp16":
        raise UserError("train.shard: does not go with train.amp=fp16; use bf16 or no")
    if options.optimizer == "muon":
        raise UserError(
            "train.shard: does not go with train.optimizer=muon, which needs each matrix whole; "
            "use adamw, or train without shards"
        )
    return True


def shard(network: EDMPrecond) -> None:
    """Spread a network's weights over all processes, in place; all processes call this.

    Each block is gathered while it is needed, and so are the remaining weights.
    """
    mesh = _mesh(network)
    blocks = [*network.model.blocks, *getattr(network.model, "decoder_blocks", [])]
    for module in (*blocks, network):
        fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(network, "summary")


def _mesh(network: EDMPrecond) -> DeviceMesh:
    device = next(network.parameters()).device
    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def shard_training(
    model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Shard a network and its average in place; return the trained weights and their optimizer.

    model: an EDMPrecond or AlignedDenoiser. The optimizer is a new one with the settings and the
    state of the given one.
    """
    denoiser = unwrapped(model)
    shard(denoiser)
    if isinstance(model, AlignedDenoiser):
        fully_shard(model.head, mesh=_mesh(denoiser))
    shard(ema.module)
    ema.follow(denoiser)
    parameters = [p for p in model.parameters() if p.requires_grad]
    options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    new = torch.optim.AdamW(parameters, fused=True)
    new.param_groups[0].update(options)
    unsharded = [p for group in optimizer.param_groups for p in group["params"]]
    for old, parameter in zip(unsharded, parameters, strict=True):
        assert isinstance(parameter, DTensor)
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
    if isinstance(value, DTensor):
        value = value.full_tensor().detach()
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True) if keep else None
    if isinstance(value, Mapping):
        copied = {key: host_copy(v, keep) for key, v in value.items()}
        return copied if keep else None
    if isinstance(value, list | tuple):
        items = [host_copy(v, keep) for v in value]
        return type(value)(items) if keep else None
    return value


def whole(network: EDMPrecond, empty: EDMPrecond) -> EDMPrecond:
    """Return the network, or `empty` with its weights if it is sharded; all processes call this."""
    if not any(isinstance(p, DTensor) for p in network.parameters()):
        return network
    device = next(network.parameters()).device
    empty.load_state_dict(host_copy(network.state_dict()))
    empty.to(device).eval().requires_grad_(False)
    return empty
