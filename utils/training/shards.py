"""Tensors of which each process may hold a shard (DTensor).

The functions import DTensor themselves: it takes a second to import, and only trainings need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_shard(tensor: object) -> TypeGuard[DTensor]:
    """Return True for a tensor that is spread over the processes."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def put_together(tensor: Tensor) -> Tensor:
    """Return a tensor with its shards put together; all processes call this."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return the shard of a whole tensor that belongs to this process' shard of `other`."""
    from torch.distributed.tensor import distribute_tensor

    if not is_shard(other):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
