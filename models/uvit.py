"""U-ViT (Bao et al. 2023, arXiv 2209.12152): time and condition are tokens, long skips join blocks.

Parameter names are those of the published checkpoints, https://github.com/baofff/U-ViT.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import Architecture, Backbone, Size
from models.blocks import Attention, Mlp, PatchEmbed, sinusoids
from models.choices import MlpKind
from models.token_mask import TokenMask, restore

# The time token has sinusoids of 1 to 1,000, the time steps of the published networks. Over the
# sigmas of a training, ln(sigma) / 4 differs by about 1.
TIME_STEPS = 1000.0


class SkipBlock(nn.Module):
    """Transformer block; in the second half of a network it first takes up a long skip."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, mlp: MlpKind, skip: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), mlp)
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Transform tokens x (N, T, D), with those of the mirrored block -> (N, T, D)."""
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=2))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(Backbone):
    """A network of `depth` blocks and one in their middle; the first half skips to the second.

    With a mask, all blocks see the kept patches only, and hidden ones come out as zeros.
    """

    # depth, hidden size and heads of table 1; H was published without the last convolution.
    SIZES: ClassVar[Mapping[str, Size]] = {
        f"UViT-{name}/{patch}": Size(depth, hidden_size, patch, num_heads, final_conv=name != "H")
        for name, depth, hidden_size, num_heads in (
            ("H", 28, 1152, 16),
            ("L", 20, 1024, 16),
            ("M", 16, 768, 12),
            ("S-Deep", 16, 512, 8),
            ("S", 12, 512, 8),
        )
        for patch in (2, 4)
    } | {"UViT-T/2": Size(6, 192, 2, 3)}  # tiny, for the demo
    LACKS = ("use_decoder", "pad_cls_token", "ext_feature_dim", "self_cond", "perturbation")

    def __init__(self, architecture: Architecture):
        """Build it with fresh weights; raise ValueError for sizes that do not fit."""
        super().__init__(architecture)
        a, width = architecture, architecture.hidden_size
        if a.depth % 2:
            raise ValueError(f"depth {a.depth} must be even: blocks before and after the middle")
        if a.cond_tokens and a.cond_dim % a.cond_tokens:
            raise ValueError(f"{a.cond_dim} conditions cannot make cond_tokens={a.cond_tokens}")
        tokens = max(a.cond_tokens, 1) if a.cond_dim else 0
        self.extras = 1 + tokens  # the token of time, and those of the condition

        self.patch_embed = PatchEmbed(a.in_channels, width, a.patch_size)
        if a.cond_dim and a.cond_tokens:
            self.context_embed = nn.Linear(a.cond_dim // a.cond_tokens, width)
        elif a.cond_dim:
            self.label_emb = nn.Embedding(a.cond_dim + 1, width)  # the last row: no label
        self.pos_embed = nn.Parameter(torch.empty(1, self.extras + self.num_patches, width))

        def block(skip: bool = False) -> SkipBlock:
            return SkipBlock(width, a.num_heads, a.mlp_ratio, a.mlp, skip)

        self.in_blocks = nn.ModuleList(block() for _ in range(a.depth // 2))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(skip=True) for _ in range(a.depth // 2))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, a.patch_size**2 * a.in_channels)
        channels = a.in_channels
        self.final_layer = nn.Conv2d(channels, channels, 3, padding=1) if a.final_conv else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published: truncated normal of 0.02, and the output small."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.cond_dim and self.architecture.cond_tokens:
            nn.init.normal_(self.context_embed.weight, std=self.architecture.cond_init_std)

    def all_blocks(self) -> list[nn.Module]:
        """Return the blocks of the first half, the middle one, and those of the second half."""
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def extra_tokens(self, t_cond: Tensor, cond: Tensor | None) -> Tensor:
        """Return the tokens of time and condition in the published order, (N, E, D)."""
        width = self.architecture.hidden_size
        time = sinusoids(TIME_STEPS * t_cond, width)[:, None]  # (N, 1, D)
        if not self.cond_dim:
            return time
        if cond is None:
            cond = time.new_zeros(len(time), self.cond_dim)
        if not self.architecture.cond_tokens:  # one-hot labels; zeros choose the last row
            choice = torch.cat([cond, 1 - cond.sum(dim=1, keepdim=True)], dim=1)
            return torch.cat([(choice @ self.label_emb.weight)[:, None], time], dim=1)
        parts = cond.unflatten(1, (self.architecture.cond_tokens, -1))
        return torch.cat([time, self.context_embed(parts)], dim=1)

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
        """Map x (N, C, H, W), t_cond (N,) and cond (N, cond_width) or None; see Backbone."""
        positions = self.pos_embed[0, self.extras :]  # (L, D)
        if mask is None:
            x = self.patch_embed(x) + positions  # (N, L, D)
        else:
            x = self.patch_embed(x, mask.ids_keep) + positions[mask.ids_keep]  # (N, K, D)
        extras = self.extra_tokens(t_cond, cond) + self.pos_embed[:, : self.extras]
        x = torch.cat([extras, x], dim=1)  # (N, E + L or K, D)

        skips: list[Tensor] = []
        half, early = len(self.in_blocks), x
        for number, block in enumerate(self.all_blocks()):
            x = self.run(block, x, skips.pop()) if number > half else self.run(block, x)
            if number < half:
                skips.append(x)
            if number + 1 == tokens_after:
                early = x

        x = self.decoder_pred(self.norm(x))[:, self.extras :]  # (N, L or K, p * p * C)
        prediction = self.unpatchify(x if mask is None else restore(x, None, mask))
        if self.final_layer is not None:
            prediction = self.final_layer(prediction)
            if mask is not None:  # neighbours of hidden patches reach into them
                kept = (1 - mask.mask).unflatten(1, (1, self.grid, self.grid))
                prediction = prediction * F.interpolate(kept, scale_factor=self.patch_size)
        return (prediction, early[:, self.extras :]) if tokens_after else prediction
