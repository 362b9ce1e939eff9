"""Masked diffusion transformer (MaskDiT, Zheng et al. 2023) with DiT blocks (Peebles & Xie 2023).

While training, the encoder sees only the kept tokens; a narrower decoder puts mask tokens in the
gaps and predicts every patch. Parameter names are those of the published checkpoints.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

MASK_SCHEDULES = ("constant", "linear", "exp", *(f"cosine{power}" for power in range(2, 7)))


@dataclass(frozen=True)
class TokenMask:
    """Which tokens of each image are hidden from the encoder.

    mask: (N, L) float32, 1 = hidden, 0 = kept.
    ids_keep: (N, K) int64, positions of the kept tokens in the order the encoder sees them.
    ids_restore: (N, L) int64, where each position lies in the row "kept tokens, then hidden ones".
    """

    mask: Tensor
    ids_keep: Tensor
    ids_restore: Tensor


def random_mask(
    n: int,
    length: int,
    ratio: float,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> TokenMask:
    """Hide a random share `ratio` of `length` tokens, drawn for each of `n` images by itself.

    The first int(length * (1 - ratio)) tokens of a random permutation are kept.
    Raises ValueError if that would leave none.
    """
    kept = int(length * (1 - ratio))
    if not 0 < kept <= length:
        raise ValueError(f"mask ratio {ratio} keeps {kept} of {length} tokens; use 0 <= ratio < 1")
    order = torch.rand(n, length, device=device, generator=generator).argsort(dim=1)
    ids_restore = order.argsort(dim=1)
    return TokenMask((ids_restore >= kept).float(), order[:, :kept], ids_restore)


def mask_ratio_at(schedule: str, progress: float, ratio: float, ratio_min: float) -> float:
    """Mask ratio at `progress` (0 = start of training, 1 = its end).

    Every schedule falls from `ratio` towards `ratio_min`, but "linear", which climbs from
    `ratio_min` to `ratio`. Raises ValueError for a name that is not in MASK_SCHEDULES.
    """
    if schedule not in MASK_SCHEDULES:
        raise ValueError(f"mask schedule '{schedule}' is not one of {', '.join(MASK_SCHEDULES)}")
    if schedule == "constant":
        share = 1.0
    elif schedule == "linear":
        share = progress
    elif schedule == "exp":
        share = math.exp(-7 * progress)
    else:
        share = math.cos(math.pi / 2 * progress) ** int(schedule.removeprefix("cosine"))
    return ratio_min + (ratio - ratio_min) * share


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """Sines, then cosines of `positions` (M,) at dim / 2 frequencies -> (M, dim) float64."""
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(dim: int, grid: int, extra_tokens: int = 0) -> Tensor:
    """Fixed positions of a grid x grid image -> (1, extra_tokens + grid², dim) float32.

    The first half of the features encodes the column, the second half the row; extra tokens get
    zeros.
    """
    # Built on the CPU even inside `with torch.device("meta")`, as its values are copied later.
    with torch.device("cpu"):
        steps = torch.arange(grid)
        columns = sincos_1d(dim // 2, steps.repeat(grid))
        rows = sincos_1d(dim // 2, steps.repeat_interleave(grid))
        positions = torch.cat([torch.zeros(extra_tokens, dim), torch.cat([columns, rows], dim=1)])
    return positions.float()[None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens (N, T, D) by one (N, D) pair per image."""
    return x * (1 + scale[:, None]) + shift[:, None]


def restore(x: Tensor, filler: Tensor | None, mask: TokenMask) -> Tensor:
    """Put kept tokens x (N, K, D) back in place, `filler` (D) or zeros in the gaps -> (N, L, D)."""
    n, kept, width = x.shape
    filler = x.new_zeros(1) if filler is None else filler.to(x.dtype)
    gaps = filler.expand(n, mask.ids_restore.shape[1] - kept, width)
    row = torch.cat([x, gaps], dim=1)
    return row.gather(1, mask.ids_restore[:, :, None].expand(-1, -1, width))


class PatchEmbed(nn.Module):
    """Image (N, C, H, W) -> one token per patch (N, L, D)."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Noise condition (N,) -> (N, D): 256 sinusoids, then a two-layer network."""

    FREQUENCIES = 256

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.FREQUENCIES, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, t: Tensor) -> Tensor:
        half = self.FREQUENCIES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class ConditionEmbedder(nn.Module):
    """Condition (N, cond_dim) -> (N, D) by one linear layer, so that zeros mean "no condition"."""

    def __init__(self, cond_dim: int, hidden_size: int):
        super().__init__()
        self.embedding_table = nn.Linear(cond_dim, hidden_size, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each head (N, heads, T, D / heads)."""
    # The backward pass of the fused kernel for bfloat16 on CPUs is eight times slower than this.
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        weights = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        return weights.softmax(dim=3).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} cannot be split into {num_heads} attention heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # (N, T, 3, heads, D / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = attend(q, k, v)  # (N, heads, T, D / heads)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with tanh-approximated GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def adaln(cond_width: int, width: int, vectors: int) -> nn.Sequential:
    """Network that turns the conditioning vector into `vectors` shifts, scales or gates."""
    return nn.Sequential(nn.SiLU(), nn.Linear(cond_width, vectors * width))


class Block(nn.Module):
    """Transformer block with adaLN-Zero conditioning (DiT, section 3.2)."""

    def __init__(self, dim: int, cond_width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = adaln(cond_width, dim, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class ModulatedLinear(nn.Module):
    """adaLN followed by a linear layer: into the decoder, and out of the network."""

    def __init__(self, dim: int, out_dim: int, cond_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, out_dim)
        self.adaLN_modulation = adaln(cond_width, dim, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm(x), shift, scale))


class MaskDiT(nn.Module):
    """The network F of EDM: noisy latents, noise level and condition -> raw prediction.

    img_size: side of the square latents; a multiple of patch_size.
    cond_dim: width of the condition; 0 = unconditional.
    pad_cls_token: one extra token gathers a summary of the image, which conditions the decoder.
    cond_init_std: of the condition's weights; 0.02 as published. A condition of unit length gives
        values of this size, so short trainings learn to use it sooner with 0.5.
    mae_loss_coef: at 0 nothing would train a mask token, so there is none and gaps are zeros.
    Raises ValueError for sizes that do not fit together and for the two published options that no
    published configuration uses (ext_feature_dim, self_cond).
    """

    def __init__(
        self,
        img_size: int,
        in_channels: int,
        cond_dim: int,
        *,
        depth: int,
        hidden_size: int,
        patch_size: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        use_decoder: bool = True,
        decoder_hidden_size: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        cond_init_std: float = 0.02,
        mae_loss_coef: float = 0.1,
        pad_cls_token: bool = False,
        ext_feature_dim: int = 0,
        self_cond: bool = False,
    ):
        super().__init__()
        if ext_feature_dim or self_cond:
            raise ValueError("ext_feature_dim and self_cond are not supported: leave them 0, false")
        if img_size % patch_size:
            raise ValueError(f"patch size {patch_size} does not divide the latent side {img_size}")
        widths = (hidden_size, decoder_hidden_size) if use_decoder else (hidden_size,)
        if any(width % 4 for width in widths):
            raise ValueError(f"widths {widths} must be multiples of 4 for the 2-D positions")
        self.img_size, self.in_channels, self.cond_dim = img_size, in_channels, cond_dim
        self.cond_init_std = cond_init_std
        self.patch_size = patch_size
        self.grid = img_size // patch_size
        self.num_patches = self.grid**2
        self.use_decoder, self.pad_cls_token = use_decoder, pad_cls_token

        self.x_embedder = PatchEmbed(in_channels, hidden_size, patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        if cond_dim:
            self.y_embedder = ConditionEmbedder(cond_dim, hidden_size)
        if pad_cls_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, hidden_size))
        self.pos_embed = self._positions(hidden_size, int(pad_cls_token))
        self.blocks = nn.ModuleList(
            Block(hidden_size, hidden_size, num_heads, mlp_ratio) for _ in range(depth)
        )

        width = hidden_size
        if use_decoder:
            width = decoder_hidden_size
            self.decoder_layer = ModulatedLinear(hidden_size, width, hidden_size)
            if pad_cls_token:
                self.cls_norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
                self.cls_token_embedder = nn.Linear(hidden_size, hidden_size)
            self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if mae_loss_coef > 0 else None
            self.decoder_pos_embed = self._positions(width)
            self.decoder_blocks = nn.ModuleList(
                Block(width, hidden_size, decoder_num_heads, mlp_ratio)
                for _ in range(decoder_depth)
            )
        self.final_layer = ModulatedLinear(width, patch_size**2 * in_channels, hidden_size)
        self.reset_parameters()

    def _positions(self, width: int, extra_tokens: int = 0) -> nn.Parameter:
        """Fixed, but stored among the weights as in the published checkpoints."""
        shape = (1, extra_tokens + self.num_patches, width)
        return nn.Parameter(torch.empty(shape), requires_grad=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as DiT does: Xavier, with every block and the output starting at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block | ModulatedLinear):
                nn.init.zeros_(module.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        if self.cond_dim:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=self.cond_init_std)
        if self.pad_cls_token:
            nn.init.normal_(self.cls_token, std=0.02)
        hidden_size = self.pos_embed.shape[2]
        self.pos_embed.copy_(sincos_2d(hidden_size, self.grid, int(self.pad_cls_token)))
        if self.use_decoder:
            if self.mask_token is not None:
                nn.init.normal_(self.mask_token, std=0.02)
            self.decoder_pos_embed.copy_(sincos_2d(self.decoder_pos_embed.shape[2], self.grid))

    def forward(
        self, x: Tensor, t_cond: Tensor, y: Tensor | None = None, mask: TokenMask | None = None
    ) -> Tensor:
        """x (N, C, H, W), t_cond (N,), y (N, cond_dim) or None = no condition -> (N, C, H, W).

        With `mask`, the encoder sees the kept tokens only; every patch is predicted all the same
        (without a decoder, hidden patches come out as zeros).
        """
        c = self.t_embedder(t_cond)  # (N, D)
        if self.cond_dim and y is not None:
            c = c + self.y_embedder(y)

        first = int(self.pad_cls_token)
        x = self.x_embedder(x) + self.pos_embed[:, first:]  # (N, L, D)
        if mask is not None:
            x = x.gather(1, mask.ids_keep[:, :, None].expand(-1, -1, x.shape[2]))  # (N, K, D)
        if self.pad_cls_token:
            cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
            x = torch.cat([cls_token.to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = block(x, c)
        if self.pad_cls_token:
            cls_token, x = x[:, 0], x[:, 1:]

        if self.use_decoder:
            if self.pad_cls_token:
                c = c + self.cls_token_embedder(self.cls_norm(cls_token))
            x = self.decoder_layer(x, c)  # (N, K, decoder D)
            if mask is not None:
                x = restore(x, self.mask_token, mask)  # (N, L, decoder D)
            elif self.training and self.mask_token is not None:
                x = x + 0 * self.mask_token  # DistributedDataParallel wants a gradient of each
            x = x + self.decoder_pos_embed
            for block in self.decoder_blocks:
                x = block(x, c)
        x = self.final_layer(x, c)  # (N, L or K, p * p * C)
        if mask is not None and not self.use_decoder:
            x = restore(x, None, mask)  # (N, L, p * p * C)
        return self.unpatchify(x)

    def unpatchify(self, x: Tensor) -> Tensor:
        """(N, L, p * p * C) -> (N, C, H, W)."""
        p = self.patch_size
        x = x.unflatten(2, (p, p, self.in_channels)).unflatten(1, (self.grid, self.grid))
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.in_channels, *[self.img_size] * 2)
