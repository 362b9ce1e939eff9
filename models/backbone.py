"""The base class of all backbones. It says what training, sampling and export ask of a network.

A further network is one file, with a class that derives from `Backbone`, and its name in
models/backbones.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.choices import MlpKind
from models.token_mask import TokenMask


class Size(NamedTuple):
    """A named size of a network; the fields are those of Architecture."""

    depth: int
    hidden_size: int
    patch_size: int
    num_heads: int
    final_conv: bool = False


@dataclass(frozen=True)
class Architecture:
    """Sizes and options of a network. A network refuses the options that it lacks.

    img_size: side of the square latents; a multiple of patch_size.
    cond_dim: width of the condition y; 0 = unconditional.
    use_decoder: a narrower decoder sees all tokens; without it, hidden patches come out as zeros.
    cond_init_std: of the weights that read y; 0.02 as published. A condition of unit length gives
        values of this size, so short trainings learn to use it sooner with 0.5.
    mae_loss_coef: 0 = no mask token, as nothing would train it; the gaps are zeros.
    pad_cls_token: one extra token gathers a summary of the image, which conditions the decoder.
    ext_feature_dim: width of external features of each image, which condition it beside y. They
        are the last columns of the condition, and guidance does not leave them out.
    self_cond: a first pass of the encoder gives a summary of the noised image, which conditions the
        whole network. In training the EMA network makes this pass (see MaskDiT.summary).
    perturbation: training perturbs y by a learned angle (see models/perturbation.py).
    mlp: what stands between the linear layers of a block's MLP (see models/blocks.py: Mlp).
    cond_tokens: number of tokens that y becomes where conditions are tokens (see models/uvit.py);
        0 = one, from a table of class labels.
    final_conv: a 3x3 convolution of the latents comes last (see models/uvit.py).
    Raises ValueError for sizes that do not fit and options that exclude each other.
    """

    img_size: int
    in_channels: int
    cond_dim: int
    depth: int
    hidden_size: int
    patch_size: int
    num_heads: int
    mlp_ratio: float = 4.0
    use_decoder: bool = True
    decoder_hidden_size: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    cond_init_std: float = 0.02
    mae_loss_coef: float = 0.1
    pad_cls_token: bool = False
    ext_feature_dim: int = 0
    self_cond: bool = False
    perturbation: bool = False
    mlp: MlpKind = "gelu_tanh"
    cond_tokens: int = 1
    final_conv: bool = False

    def __post_init__(self) -> None:
        if self.self_cond and (self.ext_feature_dim or not self.use_decoder):
            raise ValueError("self_cond needs use_decoder, and does not go with ext_feature_dim")
        if self.perturbation and not self.cond_dim:
            raise ValueError("perturbation is of the condition, and there is none")
        if self.img_size % self.patch_size:
            raise ValueError(
                f"patch size {self.patch_size} does not divide the latent side {self.img_size}"
            )
        widths = (self.hidden_size, self.decoder_hidden_size)[: 1 + self.use_decoder]
        if any(width % 4 for width in widths):
            raise ValueError(f"widths {widths} must be multiples of 4 for the 2-D positions")


# Values of options with which a network needs nothing for them.
OFF: Mapping[str, bool | int] = {
    "use_decoder": False,
    "pad_cls_token": False,
    "ext_feature_dim": 0,
    "self_cond": False,
    "perturbation": False,
    "cond_tokens": 1,
}


class Backbone(nn.Module, ABC):
    """The network F of EDM: noisy latents, noise level and condition -> raw prediction.

    SIZES: its names in `model.model_type`, with their sizes.
    LACKS: options of OFF that it does not have.
    activation_checkpointing: computes blocks again in the backward pass.
    A row of zeros as the condition, or None for all rows, means "no condition".
    """

    SIZES: ClassVar[Mapping[str, Size]]
    LACKS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, architecture: Architecture) -> None:
        """Keep the sizes; raise ValueError for an option that this network lacks."""
        super().__init__()
        a = self.architecture = architecture
        for name in self.LACKS:
            if getattr(a, name) != OFF[name]:
                off = str(OFF[name]).lower()
                raise ValueError(f"{type(self).__name__} has no {name}; set model.{name}={off}")
        self.img_size, self.in_channels, self.cond_dim = a.img_size, a.in_channels, a.cond_dim
        self.cond_width = a.cond_dim + a.ext_feature_dim
        self.patch_size = a.patch_size
        self.grid = a.img_size // a.patch_size
        self.num_patches = self.grid**2
        self.activation_checkpointing = False

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        t_cond: Tensor,
        cond: Tensor | None = None,
        mask: TokenMask | None = None,
        *,
        summary: Tensor | None = None,
        cond_noise: Tensor | None = None,
        tokens_after: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map x (N, C, H, W), t_cond (N,) and cond (N, cond_width) or None -> (N, C, H, W).

        mask: patches that the network does not see; without a decoder they come out as zeros.
        summary, cond_noise: for self_cond and perturbation; a network without these ignores them.
        tokens_after: return also the tokens of patches (N, L or K, D) after so many blocks.
        """

    @abstractmethod
    def all_blocks(self) -> list[nn.Module]:
        """Return the blocks in their order. Each is compiled, sharded and recomputed as a whole."""

    def summary(self, x: Tensor, t_cond: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the summary (N, D) of images; a network that has self_cond overrides this."""
        raise NotImplementedError

    def token_matrices(self) -> list[nn.Parameter]:
        """Return the trained matrices (A, B) of the blocks through which tokens pass, in order.

        The matrices of adaLN act on the condition alone.
        """
        named = (item for block in self.all_blocks() for item in block.named_parameters())
        return [p for name, p in named if p.ndim == 2 and p.requires_grad and "adaLN" not in name]

    def run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """Run a block; checkpointing keeps only its inputs for the backward pass."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            y: Tensor = checkpoint(block, *inputs, use_reentrant=False)
            return y
        y = block(*inputs)
        return y

    def unpatchify(self, x: Tensor) -> Tensor:
        """Put patches together: (N, L, p * p * C) -> (N, C, H, W)."""
        p = self.patch_size
        x = x.unflatten(2, (p, p, self.in_channels)).unflatten(1, (self.grid, self.grid))
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.in_channels, *[self.img_size] * 2)
