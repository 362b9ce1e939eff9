"""Masked diffusion transformer (MaskDiT, Zheng et al. 2023) with DiT blocks (Peebles & Xie 2023).

While training, the encoder sees only the kept tokens; a narrower decoder puts mask tokens in the
gaps and predicts every patch. Parameter names are those of the published checkpoints.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import Architecture, Backbone, Size
from models.blocks import (
    Block,
    ConditionEmbedder,
    ModulatedLinear,
    PatchEmbed,
    TimestepEmbedder,
    sincos_2d,
)
from models.token_mask import TokenMask, restore


def normalise(x: Tensor) -> Tensor:
    """Apply LayerNorm without weights to (…, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def linear_of(layers: nn.Sequential, number: int) -> nn.Linear:
    """Return layer `number`, which is a linear one."""
    layer = layers[number]
    assert isinstance(layer, nn.Linear)
    return layer


class MaskDiT(Backbone):
    """An encoder of DiT blocks that sees the kept tokens, and a decoder that predicts all."""

    SIZES: ClassVar[Mapping[str, Size]] = {
        f"DiT-{name}/{patch}": Size(depth, hidden_size, patch, num_heads)
        for name, depth, hidden_size, num_heads in (
            ("H", 32, 1280, 16),
            ("XL", 28, 1152, 16),
            ("L", 24, 1024, 16),
            ("B", 12, 768, 12),
            ("S", 12, 384, 6),
        )
        for patch in (2, 4, 8)
    } | {"DiT-T/2": Size(6, 192, 2, 3)}  # tiny, for the demo
    LACKS = ("cond_tokens",)

    def __init__(self, architecture: Architecture):
        super().__init__(architecture)
        a = architecture
        hidden_size, width = a.hidden_size, a.hidden_size

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

    def all_blocks(self) -> list[nn.Module]:
        """Return the blocks of the encoder, then those of the decoder."""
        return [*self.blocks, *(self.decoder_blocks if self.architecture.use_decoder else ())]

    def _run(self, blocks: nn.ModuleList, x: Tensor, c: Tensor) -> Tensor:
        """Run tokens (N, T, D) through blocks."""
        for block in blocks:
            x = self.run(block, x, c)
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
