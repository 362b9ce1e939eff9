"""The optimizers of a training: AdamW alone, or beside Muon for the matrices of the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from models.blocks import Block
from utils.config.sections import Train


def build_optimizer(network: nn.Module, options: Train) -> torch.optim.Optimizer:
    """Return the optimizer that `train.optimizer` names, of the trained weights of `network`."""
    trained = [p for p in network.parameters() if p.requires_grad]
    if options.optimizer == "adamw":
        return _adamw(trained, options)
    return MuonWithAdamW(token_matrices(network), trained, options)


def token_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Return the matrices (A, B) through which tokens pass in the blocks, in their order.

    These are qkv, proj, fc1 and fc2 of each block. The matrices of adaLN act on the condition
    alone. They learn sooner with AdamW, and they would be half of Muon's work.
    """
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    weights = [p for b in blocks for part in (b.attn, b.mlp) for p in part.parameters()]
    return [p for p in weights if p.ndim == 2 and p.requires_grad]


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
    about that of AdamW (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4).

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
            self._muon.step()
            return
        matrices = [p for p in self.param_groups[1]["params"] if p.grad is not None]
        before = torch._foreach_add(matrices, 0)
        for p in matrices:
            momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            # The mean of a momentum and itself is the momentum.
            p.grad = torch.where(bad > 0, momentum, p.grad)
        self._muon.step()
        for p, old in zip(matrices, before, strict=True):
            p.copy_(torch.where(bad > 0, old, p))
