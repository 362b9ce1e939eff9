"""The network of latent diffusion's VAE (Rombach 2022), with the config and weights of diffusers.

It computes what `diffusers.AutoencoderKL` computes, bit for bit. Importing that one takes longer
than anything else between a sentence and its image: it imports all U-Nets, transformers and SciPy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE_OVERLAP = 0.25  # of a tile's side
BLOCKS = ("DownEncoderBlock2D", "UpDecoderBlock2D")


@dataclass(frozen=True)
class VaeConfig:
    """Keys of a VAE's config.json, with the defaults of diffusers; see its AutoencoderKL."""

    block_out_channels: Sequence[int] = (64,)
    layers_per_block: int = 1
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    sample_size: int | Sequence[int] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: Sequence[float] | None = None
    latents_std: Sequence[float] | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)  # the whole file, for diffusers

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VaeConfig:
        """Read a config.json; raise ValueError if it asks for layers that this network lacks."""
        blocks = [*values.get("down_block_types", ()), *values.get("up_block_types", ())]
        if others := {*blocks} - {*BLOCKS} or {values.get("act_fn", "silu")} - {"silu"}:
            raise ValueError(f"its config.json asks for {min(others)}, which is not supported")
        known = {one.name for one in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known}, stated=dict(values))

    @property
    def downsample(self) -> int:
        """Pixels per latent along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def tile(self) -> int:
        """Side of the images that the VAE was trained on, pixels."""
        size = self.sample_size
        return size if isinstance(size, int) else size[0]


class VaeNetwork(nn.Module):
    """Encoder and decoder.

    memory: 'full' runs all images at once; 'sliced' one by one; 'tiled' also cuts large images into
        overlapping tiles.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config, self.memory = config, "full"
        self.encoder, self.decoder = _encoder(config), _decoder(config)
        z = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.use_post_quant_conv else nn.Identity()

    def encode(self, images: Tensor) -> Tensor:
        """Encode (N, 3, H, W) -> (N, 2C, h, w): mean and log variance of the posterior."""
        tile, small = self.config.tile, self.config.tile // self.config.downsample
        return self._run(nn.Sequential(self.encoder, self.quant_conv), images, tile, small)

    def decode(self, z: Tensor) -> Tensor:
        """Decode (N, C, h, w) -> (N, 3, H, W)."""
        tile, small = self.config.tile, self.config.tile // self.config.downsample
        return self._run(nn.Sequential(self.post_quant_conv, self.decoder), z, small, tile)

    def _run(self, network: nn.Module, x: Tensor, side: int, side_out: int) -> Tensor:
        """Run all of x, or slices and tiles of `side`, which give `side_out`."""
        if self.memory != "full" and len(x) > 1:
            return torch.cat([self._run(network, one, side, side_out) for one in x.split(1)])
        if self.memory == "tiled" and max(x.shape[-2:]) > side:
            return _tiled(network, x, side, side_out)
        y: Tensor = network(x)
        return y


def _encoder(config: VaeConfig) -> nn.Sequential:
    widths, groups = config.block_out_channels, config.norm_num_groups
    return _named(
        conv_in=nn.Conv2d(config.in_channels, widths[0], 3, padding=1),
        down_blocks=_levels(widths, config.layers_per_block, groups, "downsamplers", Downsample),
        mid_block=MidBlock(widths[-1], groups, config.mid_block_add_attention),
        conv_norm_out=_norm(widths[-1], groups),
        conv_act=nn.SiLU(),
        conv_out=nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1),
    )


def _decoder(config: VaeConfig) -> nn.Sequential:
    widths, groups = config.block_out_channels[::-1], config.norm_num_groups
    return _named(
        conv_in=nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
        mid_block=MidBlock(widths[0], groups, config.mid_block_add_attention),
        up_blocks=_levels(widths, config.layers_per_block + 1, groups, "upsamplers", Upsample),
        conv_norm_out=_norm(widths[-1], groups),
        conv_act=nn.SiLU(),
        conv_out=nn.Conv2d(widths[-1], config.out_channels, 3, padding=1),
    )


def _levels(
    widths: Sequence[int], count: int, groups: int, name: str, resize: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Return a level for each width: `count` blocks and, but for the last, a change of size."""
    levels, before = [], widths[0]
    for width in widths:
        blocks = [ResnetBlock(width if i else before, width, groups) for i in range(count)]
        levels.append(
            _named(resnets=nn.Sequential(*blocks), **{name: nn.Sequential(resize(width))})
        )
        before = width
    delattr(levels[-1], name)
    return nn.Sequential(*levels)


def _named(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two convolutions with a residual."""

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before, groups), nn.Conv2d(before, width, 3, padding=1)
        self.norm2, self.conv2 = _norm(width, groups), nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, width, 1) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, before, h, w) -> (N, width, h, w)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        residual: Tensor = self.conv_shortcut(x)
        return residual + y


class MidBlock(nn.Module):
    """Two blocks, with attention between them."""

    def __init__(self, width: int, groups: int, attends: bool) -> None:
        super().__init__()
        self.attentions = nn.Sequential(*[Attention(width, groups)] * attends)
        self.resnets = nn.Sequential(*(ResnetBlock(width, width, groups) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, h, w) to the same shape."""
        y: Tensor = self.resnets[1](self.attentions(self.resnets[0](x)))
        return y


class Attention(nn.Module):
    """Attention of one head over all positions, with a residual."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = _norm(width, groups)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, h, w) to the same shape."""
        y = self.group_norm(x.flatten(2)).transpose(1, 2)  # (N, h w, width)
        q, k, v = (part(y)[:, None] for part in (self.to_q, self.to_k, self.to_v))
        y = self.to_out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return y.transpose(1, 2).reshape(x.shape) + x


class Downsample(nn.Module):
    """Halve the size by a strided convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, h, w) -> (N, width, h / 2, w / 2)."""
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Double the size: repeat each value, then convolve."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, h, w) -> (N, width, 2 h, 2 w)."""
        if x.shape[0] >= 64 or 2 * x.numel() > 2**31:
            x = x.contiguous()  # large inputs fail with channels last: pytorch/pytorch#141831
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


def _tiled(network: nn.Module, x: Tensor, side: int, side_out: int) -> Tensor:
    """Run overlapping tiles of `side`, which give `side_out`, and blend them at their seams."""
    step, blend = int(side * (1 - TILE_OVERLAP)), int(side_out * TILE_OVERLAP)
    kept = side_out - blend
    strips: list[Tensor] = []
    above: list[Tensor] = []
    for i in range(0, x.shape[2], step):
        tiles = [network(x[:, :, i : i + side, j : j + side]) for j in range(0, x.shape[3], step)]
        for j, tile in enumerate(tiles):
            if above:
                _blend(above[j], tile, blend, dim=2)
            if j:
                _blend(tiles[j - 1], tile, blend, dim=3)
        strips.append(torch.cat([tile[:, :, :kept, :kept] for tile in tiles], dim=3))
        above = tiles
    return torch.cat(strips, dim=2)


def _blend(before: Tensor, tile: Tensor, extent: int, dim: int) -> None:
    """Let a tile's first `extent` rows or columns, in place, follow from the last ones before."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    for i in range(extent):
        old, new = before.select(dim, before.shape[dim] - extent + i), tile.select(dim, i)
        new.copy_(old * (1 - i / extent) + new * (i / extent))
