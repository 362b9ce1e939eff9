"""Tiny autoencoders in the form of TAESD: TAESD, TAESDXL, TAESD3, TAEF1 and TAEF2.

Each is distilled from a large VAE, and its latents are the scaled latents of that VAE. It has no
posterior: an image has one latent. Source: github.com/madebyollin/taesd. `AutoencoderTiny` of
diffusers is the same network without the pooled blocks of TAEF2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder_files import POOLED_TINY, TINY
from models.vae_network import VaeConfig
from models.weights import read_tensors

BOUND = 3.0  # of the latents that the decoder sees
GROUPS = 4  # of the normalisation in a pooled block
# Keys of config.json, and the value of each that this network computes.
FIXED = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}


class TinyNetwork(nn.Module):
    """Encoder and decoder; weights have the names of diffusers, e.g. `encoder.layers.0.weight`.

    memory: 'full' runs all images at once; 'sliced' one by one, with equal results.
    """

    def __init__(self, weights: Mapping[str, Tensor], stated: Mapping[str, Any]) -> None:
        """Build the layers that have weights of these names and shapes.

        stated: its config.json; {} = it has none. Raises ValueError if they make no autoencoder.
        """
        super().__init__()
        if others := [key for key, value in FIXED.items() if stated.get(key, value) != value]:
            asked = f"{others[0]} {stated[others[0]]}"
            raise ValueError(f"its config.json asks for {asked}, which is not supported")
        self.encoder, self.decoder = _Half(weights, "encoder"), _Half(weights, "decoder")
        self.memory, self.config = "full", self._config(stated)

    def _config(self, stated: Mapping[str, Any]) -> VaeConfig:
        """Describe the layers as diffusers does; raise ValueError if the halves do not fit."""
        *down, (channels, _) = self.encoder.levels()
        *up, _ = self.decoder.levels()
        taken = self.decoder.channels
        if (channels, len(down)) != (taken, len(up)):
            raise ValueError(
                f"its encoder gives {channels} channels at {len(down)} levels, its decoder takes "
                f"{taken} at {len(up)}"
            )
        is_pooled = any(isinstance(block, Block) and block.pool for block in self.modules())
        described = {
            "_class_name": POOLED_TINY if is_pooled else TINY,
            "latent_channels": channels,
            "scaling_factor": 1.0,
            "shift_factor": 0.0,
            **stated,
            "encoder_block_out_channels": [width for width, _ in down],
            "num_encoder_blocks": [blocks for _, blocks in down],
            "decoder_block_out_channels": [width for width, _ in up],
            "num_decoder_blocks": [blocks for _, blocks in up],
        }
        return VaeConfig(
            block_out_channels=described["encoder_block_out_channels"],
            latent_channels=channels,
            scaling_factor=described["scaling_factor"],
            shift_factor=described["shift_factor"],
            stated=described,
        )

    def encode(self, images: Tensor) -> Tensor:
        """Encode (N, 3, H, W) in [-1, 1] -> latents (N, C, h, w)."""
        return self._run(self.encoder, images.add(1).div(2))

    def decode(self, z: Tensor) -> Tensor:
        """Decode (N, C, h, w) -> (N, 3, H, W)."""
        return self._run(self.decoder, torch.tanh(z / BOUND) * BOUND).mul(2).sub(1)

    def _run(self, half: _Half, x: Tensor) -> Tensor:
        """Run all of x, or slice by slice."""
        parts = x.split(1) if self.memory == "sliced" else [x]
        return torch.cat([half.layers(part) for part in parts])


class _Half(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        prefix = f"{name}.layers."
        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        count = 1 + max((int(n.partition(".")[0]) for n in own), default=-1)
        layers = [_layer(own, i, name) for i in range(count)]
        if not layers or not all(isinstance(layers[i], nn.Conv2d) for i in (0, -1)):
            raise ValueError(f"it has no weights of an {name}")
        self.layers = nn.Sequential(*layers)
        self.channels = int(own["0.weight"].shape[1])  # of its input

    def levels(self) -> list[tuple[int, int]]:
        """Return width and number of blocks after each convolution; none follow the last one."""
        found: list[list[int]] = []
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                found.append([layer.out_channels, 0])
            found[-1][1] += isinstance(layer, Block)
        return [(width, blocks) for width, blocks in found]


def _layer(weights: Mapping[str, Tensor], i: int, half: str) -> nn.Module:
    """Return layer i of a half: a block or a convolution, or what has no weights."""
    if (first := weights.get(f"{i}.conv.0.weight")) is not None:
        pooled = weights.get(f"{i}.pool.0.weight")
        return Block(first.shape[1], first.shape[0], 0 if pooled is None else len(pooled))
    if (kernel := weights.get(f"{i}.weight")) is not None:
        # Those without bias change the size: the encoder's by their stride, the decoder's after
        # an `Upsample`.
        has_bias = f"{i}.bias" in weights
        stride = 1 if has_bias or half == "decoder" else 2
        before, width = kernel.shape[1], kernel.shape[0]
        return nn.Conv2d(before, width, 3, stride, padding=1, bias=has_bias)
    if half == "encoder":
        raise ValueError(f"it has no weights encoder.layers.{i}")
    return nn.ReLU() if i == 1 else nn.Upsample(scale_factor=2)


class Block(nn.Module):
    """Three convolutions with a residual.

    pool: of the width of its normalisation, 0 = none; it adds to the input what it sees of the
        whole image.
    """

    def __init__(self, before: int, width: int, pool: int = 0) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(before, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        residual = nn.Conv2d(before, width, 1, bias=False)
        self.skip = residual if before != width else nn.Identity()
        self.pool = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(before, pool, 1, bias=False),
                nn.GroupNorm(GROUPS, pool),
                nn.ReLU(),
                nn.Conv2d(pool, before, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, before, h, w) -> (N, width, h, w)."""
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + self.skip(x))


def tiny_with(
    weights: Mapping[str, Tensor], stated: Mapping[str, Any], where: object
) -> TinyNetwork:
    """Return a tiny autoencoder with weights, in float32.

    stated: its config.json, or {}. `where` names the weights in messages. Raises ValueError if they
    do not fit.
    """
    try:
        with torch.device("meta"):  # no time is lost on initialising weights that are replaced
            network = TinyNetwork(weights, stated)
        network.load_state_dict({n: w.float() for n, w in weights.items()}, assign=True)
    except (ValueError, RuntimeError, LookupError) as fault:
        first, *others = str(fault).splitlines()  # PyTorch names a tensor in its second line
        raise ValueError(
            f"cannot load a VAE from {where}: {(others or [first])[0].strip()}"
        ) from fault
    return network


def tiny_from_pair(encoder: Path, decoder: Path) -> TinyNetwork:
    """Load the published files of a tiny autoencoder; raise ValueError if they hold none.

    Their names are numbers of layers, and the decoder's first layer is the bound of its input.
    """
    weights = {f"encoder.layers.{name}": w for name, w in read_tensors(encoder).items()}
    for name, tensor in read_tensors(decoder).items():
        number, _, rest = name.partition(".")
        number = str(int(number) - 1) if number.isdigit() else number
        weights[f"decoder.layers.{number}.{rest}"] = tensor
    return tiny_with(weights, {}, encoder)
