"""The network written a second time, in plain formulas on a dict of weights.

Tests compare every option of models/maskdit.py with it. It has no modules and no masks. Weights
have the names of the published MaskDiT code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """Return x W^T + b; without b if the weights have none."""
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def standardised(x: Tensor) -> Tensor:
    """Return x with mean 0 and variance 1 over its last dimension (layer norm)."""
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt()


def silu(x: Tensor) -> Tensor:
    """Return x times its sigmoid."""
    return x / (1 + (-x).exp())


def modulation(w: Weights, name: str, c: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return `count` shifts, scales and gates (N, 1, D) of adaLN for the condition c (N, D)."""
    return linear(w, f"{name}.adaLN_modulation.1", silu(c))[:, None].chunk(count, dim=2)


def mlp(w: Weights, name: str, x: Tensor, kind: str) -> Tensor:
    """Apply an MLP to tokens x (N, T, D); `kind` is that of models/blocks.py: Mlp."""
    h = linear(w, f"{name}.fc1", x)
    if kind == "gelu":
        h = h * (1 + (h / math.sqrt(2)).erf()) / 2
    else:
        h = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
    return linear(w, f"{name}.fc2", h)


def block(w: Weights, name: str, x: Tensor, c: Tensor, heads: int, kind: str) -> Tensor:
    """Apply a DiT block, attention and then an MLP, to tokens x (N, T, D)."""
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation(w, name, c, 6)
    h = standardised(x) * (1 + scale1) + shift1
    query, key, value = linear(w, f"{name}.attn.qkv", h).chunk(3, dim=2)
    parts = []
    for q, k, v in zip(*(t.chunk(heads, dim=2) for t in (query, key, value)), strict=True):
        weight = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).exp()
        parts.append(weight / weight.sum(dim=2, keepdim=True) @ v)
    x = x + gate1 * linear(w, f"{name}.attn.proj", torch.cat(parts, dim=2))
    return x + gate2 * mlp(w, f"{name}.mlp", standardised(x) * (1 + scale2) + shift2, kind)


def modulated_linear(w: Weights, name: str, x: Tensor, c: Tensor) -> Tensor:
    """Apply adaLN and a linear layer to tokens x (N, T, D)."""
    shift, scale = modulation(w, name, c, 2)
    return linear(w, f"{name}.linear", standardised(x) * (1 + scale) + shift)


def blocks(w: Weights, name: str, x: Tensor, c: Tensor, heads: int, kind: str) -> Tensor:
    """Apply all blocks whose weights are called `{name}.0`, `{name}.1` and so on."""
    for i in range(len({n.split(".")[1] for n in w if n.startswith(f"{name}.")})):
        x = block(w, f"{name}.{i}", x, c, heads, kind)
    return x


def denoised(
    weights: Weights,
    x: Tensor,
    sigma: Tensor,
    y: Tensor,
    features: Tensor | None = None,
    noise: Tensor | None = None,
    *,
    heads: int,
    decoder_heads: int,
    kind: str = "gelu_tanh",
) -> Tensor:
    """Return D(x; sigma, y), x (N, C, H, W), with patches of 2 x 2.

    Options of the network are on if `weights` has their weights. `features`: external features
    (N, F), `noise`: random numbers of the learned perturbation (N, D). `kind`: of the MLPs.
    """
    w = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    n, channels, side, _ = x.shape
    s = sigma[:, None, None, None]
    scaled = x / (0.25 + s**2).sqrt()

    angle = (sigma.log() / 4)[:, None] * torch.tensor([10000 ** (-i / 128) for i in range(128)])
    t = linear(w, "t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], dim=1))
    c = linear(w, "t_embedder.mlp.2", silu(t))
    if features is not None:
        c = c + linear(w, "feat_embedder", features)
    c_unperturbed = c + linear(w, "y_embedder.embedding_table", y)
    if noise is not None:
        scale = y / y.norm(dim=1, keepdim=True)
        for layer in range(1, 5):
            scale = linear(w, f"y_embedder.perturbator.r2_net.layer{layer}", scale).clamp(min=0)
        y = y / y.norm(dim=1, keepdim=True) + scale * noise / noise.norm(dim=1, keepdim=True)
        y = y / y.norm(dim=1, keepdim=True)
    c = c + linear(w, "y_embedder.embedding_table", y)

    tokens = F.unfold(scaled, 2, stride=2).transpose(1, 2)
    tokens = tokens @ w["x_embedder.proj.weight"].flatten(1).T + w["x_embedder.proj.bias"]
    has_class_token = "cls_token" in w
    if has_class_token:
        tokens = torch.cat([w["cls_token"].expand(n, -1, -1), tokens], dim=1)
    tokens = tokens + w["pos_embed"]
    if "enc_feat_embedder.weight" in w:
        seen = blocks(w, "blocks", tokens, c_unperturbed, heads, kind)[:, int(has_class_token) :]
        c = c + linear(w, "enc_feat_embedder", standardised(seen.mean(dim=1)))
    tokens = blocks(w, "blocks", tokens, c, heads, kind)
    if has_class_token:
        first, tokens = tokens[:, 0], tokens[:, 1:]
        c = c + linear(w, "cls_token_embedder", standardised(first))
    tokens = modulated_linear(w, "decoder_layer", tokens, c) + w["decoder_pos_embed"]
    tokens = blocks(w, "decoder_blocks", tokens, c, decoder_heads, kind)
    tokens = modulated_linear(w, "final_layer", tokens, c)

    # A token's numbers are in the order row, column, channel.
    grid = side // 2
    image = tokens.reshape(n, grid, grid, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
    prediction = image.reshape(n, channels, side, side)
    return 0.25 / (s**2 + 0.25) * x + s * 0.5 / (s**2 + 0.25).sqrt() * prediction
