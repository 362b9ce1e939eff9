"""The optimizers of a training: AdamW alone, or beside Muon for the matrices of the tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.edm import unwrapped
from utils.config.sections import Train
from utils.training.shards import placed_like, put_together


def build_optimizer(network: nn.Module, options: Train) -> torch.optim.Optimizer:
    """Return the optimizer that `train.optimizer` names, of the trained weights of `network`.

    Weights of an adapter get AdamW: Muon's update is meant for whole matrices.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    if options.optimizer == "adamw" or options.adapt != "all":
        return _adamw(trained, options)
    return MuonWithAdamW(token_matrices(network), trained, options)


def token_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Return the matrices (A, B) through which tokens pass in the blocks, in their order.

    These are qkv, proj, fc1 and fc2 of each block, and what takes up a long skip connection. The
    matrices of adaLN act on the condition alone. They learn sooner with AdamW, and they would be
    half of Muon's work.
    """
    return unwrapped(network).model.token_matrices()


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of a step. A group that has another base rate keeps its ratio to it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def optimizer_name(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the value of `train.optimizer` to which parameter groups belong, also saved ones."""
    return "muon" if any("momentum" in group for group in groups) else "adamw"


def _adamw(weights: Sequence[nn.Parameter], options: Train) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        weights,
        lr=options.lr,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=True,
    )


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for some matrices and AdamW for all other weights, as one optimizer.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a
    matrix by the nearest orthogonal one, which five Newton-Schulz steps in bfloat16 approximate.
    The update of a matrix (A, B) is scaled by 0.2 sqrt(max(A, B)), so that its root mean square is
    about that of AdamW (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4). Of several
    processes, each orthogonalises some of the matrices; weights and momentum may be sharded.

    The first group is AdamW's, the second Muon's. The latter has the key `lr_factor`, its base rate
    divided by `train.lr`; see set_rate.
    """

    # Gradient scaling then sets `found_inf` instead of waiting for the device.
    _step_supports_amp_scaling = True

    def __init__(
        self, matrices: Sequence[nn.Parameter], trained: Sequence[nn.Parameter], options: Train
    ) -> None:
        """matrices: those of Muon. trained: all weights, in the order in which AdamW takes them."""
        of_muon = set(matrices)
        self._adamw = _adamw([p for p in trained if p not in of_muon], options)
        self._muon = torch.optim.Muon(
            matrices,
            lr=options.muon_lr,
            weight_decay=options.weight_decay,
            momentum=options.muon_momentum,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        )
        (group,) = self._muon.param_groups
        group["lr_factor"] = options.muon_lr / options.lr
        super().__init__([*self._adamw.param_groups, group], {})
        self._divide()

    def _divide(self) -> None:
        """Let both parts work on the groups and the state of this optimizer."""
        self._adamw.param_groups, self._muon.param_groups = (
            self.param_groups[:1],
            self.param_groups[1:],
        )
        self._adamw.state = self._muon.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over moments, momentum and settings, as every optimizer does."""
        super().load_state_dict(state_dict)
        self._divide()

    # The library overloads it by `closure`, and nothing here has one.
    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights; change nothing if `found_inf` is not 0 (see step_guard.skip_unless).

        It does not wait for the device. Gradients of matrices may change.
        """
        assert getattr(self, "grad_scale", None) is None, "unscale the gradients before"
        bad: torch.Tensor | None = getattr(self, "found_inf", None)
        # Fused optimizers read this attribute, which their type does not declare.
        setattr(self._adamw, "found_inf", bad)  # noqa: B010
        self._adamw.step()
        if bad is None:
            self._step_of_matrices()
            return
        matrices = [p for p in self.param_groups[1]["params"] if p.grad is not None]
        before = torch._foreach_add(matrices, 0)
        for p in matrices:
            momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            # The mean of a momentum and itself is the momentum.
            p.grad = torch.where(bad > 0, momentum, p.grad)
        self._step_of_matrices()
        for p, old in zip(matrices, before, strict=True):
            p.copy_(torch.where(bad > 0, old, p))

    def _step_of_matrices(self) -> None:
        """Update the matrices of Muon, alone or with all processes of a training.

        Each process takes one of as many matrices, in the order of their size, so that those at a
        time cost alike. Its results are sent in bfloat16, in which they were computed.
        """
        if not dist.is_initialized():
            self._muon.step()
            return
        (group,) = self._muon.param_groups
        rank, count, lr = dist.get_rank(), dist.get_world_size(), group["lr"]
        matrices = [p for p in group["params"] if p.grad is not None]
        matrices.sort(key=lambda p: p.numel() * min(p.shape), reverse=True)
        for start in range(0, len(matrices), count):
            some = matrices[start : start + count]
            updates = [put_together(self._with_momentum(p, group["momentum"])) for p in some]
            if rank < len(some):
                updates[rank] = orthogonal(updates[rank])
            sent = [dist.broadcast(update, i, async_op=True) for i, update in enumerate(updates)]
            for p, update, done in zip(some, updates, sent, strict=True):
                if done is not None:  # its type allows for processes outside of the group
                    done.wait()
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(placed_like(update, p), alpha=-lr * (0.2 * math.sqrt(max(p.shape))))

    def _with_momentum(self, p: nn.Parameter, factor: float) -> Tensor:
        """Update the momentum of a matrix; return its gradient after Nesterov, in bfloat16."""
        momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        assert p.grad is not None
        momentum.lerp_(p.grad, 1 - factor)
        return p.grad.lerp(momentum, factor).bfloat16()


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the nearest orthogonal matrix as PyTorch's Muon approximates it.

    matrix: (A, B) bfloat16.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # PyTorch has no function for it alone: this is its step from 0 at the rate 1, without momentum
    # and decay. The adjustment of the rate is 1 for wide matrices.
    step = nn.Parameter(torch.zeros_like(wide))
    step.grad = wide
    torch.optim.Muon([step], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
    wide = step.detach().neg_()
    return (wide if wide.shape == matrix.shape else wide.T).contiguous()
