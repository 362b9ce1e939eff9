"""Parts of the networks: embedders, positions, attention, and the adaLN-Zero block of DiT.

Parameter names are those of the published checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.choices import MlpKind
from models.perturbation import LearnedPerturbation


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """Return sines, then cosines of `positions` (M,) at dim / 2 frequencies, (M, dim) float64."""
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(dim: int, grid: int, extra_tokens: int = 0, of_grid: int | None = None) -> Tensor:
    """Return fixed positions of a grid x grid image, (1, extra_tokens + grid², dim) float32.

    The first half of the features encodes the column, the second half the row; extra tokens get
    zeros. of_grid: side of another grid over the same image, in whose steps positions are counted.
    """
    # Built on the CPU even inside `with torch.device("meta")`, as its values are copied later.
    with torch.device("cpu"):
        steps = torch.arange(grid)
        if of_grid is not None:
            steps = (steps + 0.5) * of_grid / grid - 0.5
        columns = sincos_1d(dim // 2, steps.repeat(grid))
        rows = sincos_1d(dim // 2, steps.repeat_interleave(grid))
        positions = torch.cat([torch.zeros(extra_tokens, dim), torch.cat([columns, rows], dim=1)])
    return positions.float()[None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens (N, T, D) by one (N, D) pair per image."""
    return x * (1 + scale[:, None]) + shift[:, None]


class PatchEmbed(nn.Module):
    """Embedder of patches: an image becomes a row of tokens."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embed x (N, C, H, W) -> a token per patch (N, L, D), or per patch of `keep` (N, K, D)."""
        patches = F.unfold(x, self.proj.kernel_size, stride=self.proj.stride).transpose(1, 2)
        if keep is not None:  # before anything is computed, where a token is only p * p * C wide
            patches = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Return cosines, then sines of t (N,) at width / 2 frequencies from 1 on, (N, width)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedder(nn.Module):
    """Embedder of the noise condition: 256 sinusoids, then a two-layer network."""

    FREQUENCIES = 256

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.FREQUENCIES, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed t (N,) -> (N, D)."""
        return self.mlp(sinusoids(t, self.FREQUENCIES))


class ConditionEmbedder(nn.Module):
    """Embedder of the condition: one linear layer without bias, so that zeros mean "no condition".

    perturbation: conditions are perturbed by a learned angle, in training.
    """

    def __init__(self, cond_dim: int, hidden_size: int, perturbation: bool = False):
        super().__init__()
        self.embedding_table = nn.Linear(cond_dim, hidden_size, bias=False)
        self.perturbator = LearnedPerturbation(cond_dim) if perturbation else None

    def forward(self, y: Tensor, noise: Tensor | None = None) -> Tensor:
        """Embed y (N, cond_dim) -> (N, D).

        noise: (N, cond_dim), directions of the learned perturbation; None = not perturbed.
        """
        if noise is not None and self.perturbator is not None:
            y = self.perturbator(y, noise)
        return self.embedding_table(y)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with each head: q, k, v (N, heads, T, D / heads) -> the same shape."""
    # The backward pass of the fused kernel for bfloat16 on CPUs is eight times slower than this.
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        weights = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        return weights.softmax(dim=3).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} cannot be split into {num_heads} attention heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens x (N, T, D) -> (N, T, D)."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # (N, T, 3, heads, D / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = attend(q, k, v)  # (N, heads, T, D / heads)
        return self.proj(x.transpose(1, 2).flatten(2))


def tanh_gelu(x: Tensor) -> Tensor:
    """Apply the tanh-approximated GELU."""
    # 0.5 (1 + tanh u) = sigmoid(2 u), which compiled code for CPUs evaluates much faster.
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * x * (1 + 0.044715 * x * x))
    return F.gelu(x, approximate="tanh")


class Mlp(nn.Module):
    """Two linear layers; `kind` says what stands between them.

    gelu_tanh: GELU in its tanh approximation, as published.
    gelu: GELU itself (Hendrycks & Gimpel 2016). It differs by less than 5e-4, and CPUs evaluate it
        in a fourth of the time in bfloat16.
    """

    def __init__(self, dim: int, hidden: int, kind: MlpKind = "gelu_tanh"):
        super().__init__()
        self.kind = kind
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of x (N, T, D) -> (N, T, D)."""
        x = self.fc1(x)
        return self.fc2(F.gelu(x) if self.kind == "gelu" else tanh_gelu(x))


def adaln(cond_width: int, width: int, vectors: int) -> nn.Sequential:
    """Build the network from conditioning vectors to `vectors` shifts, scales or gates."""
    return nn.Sequential(nn.SiLU(), nn.Linear(cond_width, vectors * width))


class Block(nn.Module):
    """Transformer block with adaLN-Zero conditioning (DiT, section 3.2)."""

    def __init__(
        self,
        dim: int,
        cond_width: int,
        num_heads: int,
        mlp_ratio: float,
        mlp: MlpKind = "gelu_tanh",
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), mlp)
        self.adaLN_modulation = adaln(cond_width, dim, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Transform tokens x (N, T, D) with conditioning vectors c (N, cond_width) -> (N, T, D)."""
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
        """Project tokens x (N, T, D) with vectors c (N, cond_width) -> (N, T, out_dim)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm(x), shift, scale))
