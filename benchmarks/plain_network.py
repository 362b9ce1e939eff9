"""The baseline of benchmarks/train_step.py: a first, plain version of masked diffusion training.

The network is a DiT with a MaskDiT decoder, made of plain PyTorch modules and run eagerly. Its
attention is written out like that of the published blocks. AdamW is not fused, a loop averages the
weights, and the loss is read at every step. Weight names are those of models/maskdit.py: from equal
weights both give equal losses.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D)."""
        n, length, dim = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1) @ v
        out: Tensor = self.proj(x.transpose(1, 2).reshape(n, length, dim))
        return out


class Mlp(nn.Module):
    """Two layers with four times the width between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D)."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens (N, T, D) by (N, D) each."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Block(nn.Module):
    """Transformer block of DiT (Peebles & Xie 2023, adaLN-Zero)."""

    def __init__(self, dim: int, cond_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map tokens (N, T, D) and conditions (N, C) to (N, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))
        x = x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x


class FinalLayer(nn.Module):
    """Modulated linear layer after the blocks."""

    def __init__(self, dim: int, out: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map tokens (N, T, D) and conditions (N, C) to (N, T, out)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        out: Tensor = self.linear(modulate(self.norm(x), shift, scale))
        return out


class PlainMaskDiT(nn.Module):
    """MaskDiT for latents (N, 4, side, side), with patches of 2 x 2.

    The decoder, if there is one, has 8 blocks of width 512.
    """

    def __init__(self, side: int, depth: int, dim: int, heads: int, decoder: bool) -> None:
        super().__init__()
        self.grid, self.length = side // 2, (side // 2) ** 2
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(4, dim, 2, stride=2)})
        time_mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.t_embedder = nn.ModuleDict({"mlp": time_mlp})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Linear(512, dim, bias=False)})
        self.pos_embed = nn.Parameter(torch.zeros(1, self.length, dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, dim, heads) for _ in range(depth))
        self.decoder, width = decoder, dim
        if decoder:
            width = 512
            self.decoder_layer = FinalLayer(dim, width, dim)
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, self.length, width), False)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
            self.decoder_blocks = nn.ModuleList(Block(width, dim, 16) for _ in range(8))
        self.final_layer = FinalLayer(width, 16, dim)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, mask: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Predict (N, 4, side, side) from scaled latents x, times t (N,) and conditions y (N, 512).

        mask: (keep, back), or None. keep (N, K): the tokens that the encoder sees; back (N, L): the
        place of each token of the image among the kept and then the hidden ones.
        """
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
        angles = t[:, None] * frequencies[None]
        c = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], dim=-1))
        c = c + self.y_embedder["embedding_table"](y)

        x = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        if mask is not None:
            keep, back = mask
            x = torch.gather(x, 1, keep.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        for block in self.blocks:
            x = block(x, c)
        if self.decoder:
            x = self.decoder_layer(x, c)
            if mask is not None:
                gaps = self.mask_token.repeat(x.shape[0], self.length - x.shape[1], 1)
                x = torch.cat([x, gaps.to(x.dtype)], dim=1)
                x = torch.gather(x, 1, back.unsqueeze(-1).repeat(1, 1, x.shape[2]))
            x = x + self.decoder_pos_embed
            for block in self.decoder_blocks:
                x = block(x, c)
        x = self.final_layer(x, c).reshape(-1, self.grid, self.grid, 2, 2, 4)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, 4, 2 * self.grid, 2 * self.grid)


def patches(x: Tensor) -> Tensor:
    """Cut images into patches, (N, C, H, W) -> (N, L, C * 2 * 2)."""
    return F.unfold(x, 2, stride=2).transpose(1, 2)


class PlainTraining:
    """Training of a network, with autocast to bfloat16 or in plain float32."""

    def __init__(self, network: PlainMaskDiT, autocast: bool) -> None:
        self.network, self.autocast = network.train(), autocast
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0)

    def step(self, clean: Tensor, y: Tensor, mask_ratio: float) -> float:
        """Do one step on latents (N, 4, H, W) and conditions (N, 512); return the loss."""
        n, length = len(clean), self.network.length
        sigma = (-1.2 + 1.2 * torch.randn(n, 1, 1, 1, device=clean.device)).exp()
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        noised = clean + sigma * torch.randn_like(clean)
        mask = None
        if mask_ratio:
            order = torch.rand(n, length, device=clean.device).argsort(dim=1)
            keep, back = order[:, : int(length * (1 - mask_ratio))], order.argsort(dim=1)
            mask = (keep, back)
            hidden = (back >= keep.shape[1]).float()
        bf16 = torch.autocast(clean.device.type, torch.bfloat16) if self.autocast else nullcontext()
        with bf16:
            scaled, t = noised / (sigma**2 + 0.25).sqrt(), sigma.flatten().log() / 4
            prediction: Tensor = self.network(scaled, t, y, mask).float()
            skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
            denoised = skip * noised + out * prediction
            error = weight * (denoised - clean) ** 2
            if not mask_ratio:
                loss = error.mean()
            else:
                target = patches(noised)
                mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
                target = (target - mean) / (var + 1e-6) ** 0.5
                kept, seen = 1 - hidden, patches(error).mean(-1)
                loss = (seen * kept).sum(1) / kept.sum(1)
                mae = ((patches(denoised) - target) ** 2).mean(-1)
                loss = (loss + 0.1 * (mae * hidden).sum(1) / hidden.sum(1)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            own = dict(self.network.named_parameters())
            for name, average in self.average.named_parameters():
                average.mul_(0.9999).add_(own[name], alpha=1 - 0.9999)
        return loss.item()
