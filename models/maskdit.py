"""Masked diffusion transformer (MaskDiT, Zheng et al. 2023) with DiT blocks (Peebles & Xie 2023).

While training, the encoder sees only the kept tokens; a narrower decoder puts mask tokens in the
gaps and predicts every patch. Parameter names are those of the published checkpoints.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.batch_random import WHOLE_BATCH, BatchRandom
from models.blocks import (
    Block,
    ConditionEmbedder,
    ModulatedLinear,
    PatchEmbed,
    TimestepEmbedder,
    sincos_2d,
)
from models.choices import MlpKind

# name -> (depth, hidden size, patch size, heads)
MODEL_SIZES: dict[str, tuple[int, int, int, int]] = {
    f"DiT-{name}/{patch}": (depth, hidden_size, patch, num_heads)
    for name, depth, hidden_size, num_heads in (
        ("H", 32, 1280, 16),
        ("XL", 28, 1152, 16),
        ("L", 24, 1024, 16),
        ("B", 12, 768, 12),
        ("S", 12, 384, 6),
    )
    for patch in (2, 4, 8)
} | {"DiT-T/2": (6, 192, 2, 3)}  # tiny, for the demo


@dataclass(frozen=True)
class TokenMask:
    """Tokens of each image that are hidden from the encoder.

    mask: (N, L) float32, 1 = hidden, 0 = kept.
    ids_keep: (N, K) int64, positions of the kept tokens in the order the encoder sees them.
    ids_restore: (N, L) int64, where each position lies in the row "kept tokens, then hidden ones".
    """

    mask: Tensor
    ids_keep: Tensor
    ids_restore: Tensor

    @property
    def hides_nothing(self) -> bool:
        """Return True if all tokens are kept."""
        return self.ids_keep.shape[1] == self.mask.shape[1]


def kept_tokens(length: int, ratio: float) -> int:
    """Return how many of `length` tokens a mask of this ratio keeps."""
    return int(length * (1 - ratio))


def random_mask(
    n: int,
    length: int,
    ratio: float,
    device: torch.device | str = "cpu",
    rng: BatchRandom = WHOLE_BATCH,
) -> TokenMask:
    """Hide a random fraction `ratio` of `length` tokens, another one for each of `n` images.

    The first `kept_tokens` of a random permutation are kept.
    Raises ValueError if that would leave none.
    """
    kept = kept_tokens(length, ratio)
    if not 0 < kept <= length:
        raise ValueError(f"mask ratio {ratio} keeps {kept} of {length} tokens; use 0 <= ratio < 1")
    order = rng.rand((n, length), device).argsort(dim=1)
    ids_restore = order.argsort(dim=1)
    return TokenMask((ids_restore >= kept).float(), order[:, :kept], ids_restore)


def normalise(x: Tensor) -> Tensor:
    """Apply LayerNorm without weights to (…, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def linear_of(layers: nn.Sequential, number: int) -> nn.Linear:
    """Return layer `number`, which is a linear one."""
    layer = layers[number]
    assert isinstance(layer, nn.Linear)
    return layer


def restore(x: Tensor, filler: Tensor | None, mask: TokenMask) -> Tensor:
    """Put kept tokens x (N, K, D) back in place, `filler` (D) or zeros in the gaps -> (N, L, D)."""
    n, kept, width = x.shape
    filler = x.new_zeros(1) if filler is None else filler.to(x.dtype)
    gaps = filler.expand(n, mask.ids_restore.shape[1] - kept, width)
    row = torch.cat([x, gaps], dim=1)
    return row.gather(1, mask.ids_restore[:, :, None].expand(-1, -1, width))


@dataclass(frozen=True)
class Architecture:
    """Sizes and options of a MaskDiT.

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


class MaskDiT(nn.Module):
    """The network F of EDM: noisy latents, noise level and condition -> raw prediction."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        a = self.architecture = architecture
        hidden_size, width = a.hidden_size, a.hidden_size
        self.img_size, self.in_channels, self.cond_dim = a.img_size, a.in_channels, a.cond_dim
        self.cond_width = a.cond_dim + a.ext_feature_dim
        self.patch_size = a.patch_size
        self.grid = a.img_size // a.patch_size
        self.num_patches = self.grid**2
        self.activation_checkpointing = False  # compute blocks again in the backward pass

        # In the published order, as optimizers number the weights.
        self.x_embedder = PatchEmbed(a.in_channels, hidden_size, a.patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        if a.cond_dim:
            self.y_embedder = ConditionEmbedder(a.cond_dim, hidden_size, a.perturbation)
        if a.ext_feature_dim:
            self.feat_embedder = nn.Linear(a.ext_feature_dim, hidden_size)
        if a.pad_cls_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, hidden_size))
        self.pos_embed = self._positions(hidden_size, int(a.pad_cls_token))
        self.blocks = nn.ModuleList(
            Block(hidden_size, hidden_size, a.num_heads, a.mlp_ratio, a.mlp) for _ in range(a.depth)
        )
        self.mask_token: nn.Parameter | None = None
        if a.use_decoder:
            width = a.decoder_hidden_size
            self.decoder_layer = ModulatedLinear(hidden_size, width, hidden_size)
            self.decoder_pos_embed = self._positions(width)
            if a.mae_loss_coef > 0:
                self.mask_token = nn.Parameter(torch.empty(1, 1, width))
            self.decoder_blocks = nn.ModuleList(
                Block(width, hidden_size, a.decoder_num_heads, a.mlp_ratio, a.mlp)
                for _ in range(a.decoder_depth)
            )
            if a.pad_cls_token:
                self.cls_token_embedder = nn.Linear(hidden_size, hidden_size)
            if a.self_cond:
                self.enc_feat_embedder = nn.Linear(hidden_size, hidden_size)
        self.final_layer = ModulatedLinear(width, a.patch_size**2 * a.in_channels, hidden_size)
        self.reset_parameters()

    def _positions(self, width: int, extra_tokens: int = 0) -> nn.Parameter:
        """Fixed positions, stored among the weights as in the published checkpoints."""
        shape = (1, extra_tokens + self.num_patches, width)
        return nn.Parameter(torch.empty(shape), requires_grad=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as DiT does: Xavier, with every block and the output starting at zero."""
        a = self.architecture
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block | ModulatedLinear):
                nn.init.zeros_(linear_of(module.adaLN_modulation, 1).weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        if self.x_embedder.proj.bias is not None:
            nn.init.zeros_(self.x_embedder.proj.bias)
        for number in (0, 2):
            nn.init.normal_(linear_of(self.t_embedder.mlp, number).weight, std=0.02)
        if self.cond_dim:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=a.cond_init_std)
        if a.ext_feature_dim:
            nn.init.normal_(self.feat_embedder.weight, std=0.02)
        if a.pad_cls_token:
            nn.init.normal_(self.cls_token, std=0.02)
            if a.use_decoder:
                nn.init.normal_(self.cls_token_embedder.weight, std=0.02)
        hidden_size = self.pos_embed.shape[2]
        self.pos_embed.copy_(sincos_2d(hidden_size, self.grid, int(a.pad_cls_token)))
        if a.use_decoder:
            if self.mask_token is not None:
                nn.init.normal_(self.mask_token, std=0.02)
            self.decoder_pos_embed.copy_(sincos_2d(self.decoder_pos_embed.shape[2], self.grid))

    def condition(
        self, t_cond: Tensor, cond: Tensor | None, cond_noise: Tensor | None = None
    ) -> Tensor:
        """Embed t_cond (N,) and cond (N, cond_width) or None as the input of all blocks, (N, D).

        cond_noise: (N, cond_dim), directions of the learned perturbation; None = not perturbed.
        Raises ValueError if the network needs external features and there are none.
        """
        c: Tensor = self.t_embedder(t_cond)
        width = self.architecture.ext_feature_dim
        if cond is None:
            if width:
                raise ValueError(f"the network needs {width} external features")
            return c
        if self.cond_dim:
            c = c + self.y_embedder(cond[:, : self.cond_dim], cond_noise)
        if width:
            c = c + self.feat_embedder(cond[:, self.cond_dim :])
        return c

    def encode(
        self, x: Tensor, c: Tensor, mask: TokenMask | None = None, depth: int = 0
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Encode x (N, C, H, W) with c (N, D) -> tokens (N, L or K, D), and class token or None.

        The third result is the tokens (N, L or K, D) after `depth` blocks.
        """
        first = int(self.architecture.pad_cls_token)
        positions = self.pos_embed[0, first:]  # (L, D)
        if mask is None:
            x = self.x_embedder(x) + positions  # (N, L, D)
        else:
            x = self.x_embedder(x, mask.ids_keep) + positions[mask.ids_keep]  # (N, K, D)
        if self.architecture.pad_cls_token:
            cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
            x = torch.cat([cls_token.to(x.dtype), x], dim=1)
        early = self._run(self.blocks[:depth], x, c)
        x = self._run(self.blocks[depth:], early, c)
        return x[:, first:], x[:, 0] if first else None, early[:, first:]

    def _run(self, blocks: nn.ModuleList, x: Tensor, c: Tensor) -> Tensor:
        """Run tokens (N, T, D) through blocks; checkpointing keeps only the inputs of blocks."""
        for block in blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, c, use_reentrant=False)
            else:
                x = block(x, c)
        return x

    def summary(self, x: Tensor, t_cond: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the encoder's normalised mean token of unmasked images, (N, D); see `forward`."""
        tokens, *_ = self.encode(x, self.condition(t_cond, cond))
        return normalise(tokens.mean(dim=1))

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

        With `mask`, the encoder sees the kept tokens only. The decoder still predicts every patch;
        without a decoder, hidden patches come out as zeros.
        cond: the condition, then the external features if there are any. Zeros = no condition.
        summary: (N, D), for self_cond; None = the network's own `summary`.
        cond_noise: (N, cond_dim), directions of the learned perturbation; None = not perturbed.
        tokens_after: return also the tokens (N, L or K, D) after so many blocks of the encoder.
        """
        c = self.condition(t_cond, cond, cond_noise)  # (N, D)
        if self.architecture.self_cond:
            if summary is None:
                summary = self.summary(x, t_cond, cond)
            c = c + self.enc_feat_embedder(summary)
        x, cls_token, early = self.encode(x, c, mask, tokens_after)  # (N, L or K, D)

        if self.architecture.use_decoder:
            if cls_token is not None:
                c = c + self.cls_token_embedder(normalise(cls_token))
            x = self.decoder_layer(x, c)  # (N, L or K, decoder D)
            if mask is not None:
                x = restore(x, self.mask_token, mask)  # (N, L, decoder D)
            elif self.training and self.mask_token is not None:
                x = x + 0 * self.mask_token  # DistributedDataParallel wants a gradient of each
            x = x + self.decoder_pos_embed
            x = self._run(self.decoder_blocks, x, c)
        x = self.final_layer(x, c)  # (N, L or K, p * p * C)
        if mask is not None and not self.architecture.use_decoder:
            x = restore(x, None, mask)  # (N, L, p * p * C)
        prediction = self.unpatchify(x)
        return (prediction, early) if tokens_after else prediction

    def unpatchify(self, x: Tensor) -> Tensor:
        """Put patches together: (N, L, p * p * C) -> (N, C, H, W)."""
        p = self.patch_size
        x = x.unflatten(2, (p, p, self.in_channels)).unflatten(1, (self.grid, self.grid))
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.in_channels, *[self.img_size] * 2)
