"""The VAE between pixels and latents.

Latents are multiplied by a scale factor (0.18215 for Stable Diffusion's VAE), so that their
variance is near 1; newer VAEs also subtract a mean first. "Scaled" latents are those after both.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from models.encoder_files import (
    KL,
    LDM_SCALE_FACTOR,
    hub_place,
    ldm_levels,
    vae_config,
    vae_folder,
    vae_pair,
)
from models.finite import is_finite
from models.tiny_autoencoder import TinyNetwork, tiny_from_pair, tiny_with
from models.vae_network import BLOCKS, VaeConfig, VaeNetwork
from models.weights import looks_like_path, read_tensors

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

# Part of a parameter's name in LDM's code -> in diffusers; applied in this order.
LDM_RENAMES = (
    (r"\.down\.(\d+)\.block\.(\d+)\.", r".down_blocks.\1.resnets.\2."),
    (r"\.up\.(\d+)\.block\.(\d+)\.", r".up_blocks.\1.resnets.\2."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)
# Names of attention weights in older folders of diffusers -> in newer ones.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Autoencoder:
    """A VAE in inference mode.

    scale_factor: of the latents.
    shift, scale: scaled latents are (latents - shift) * scale; numbers, or (C, 1, 1) each.
    latent_channels: C of a latent.
    downsample: pixels per latent along one side.
    identity: short hash of the weights.
    rescued: number of images that were decoded in float32, as they overflowed in half precision.
    has_posterior: False for a tiny one, which gives an image one latent.
    """

    def __init__(
        self,
        vae: VaeNetwork | TinyNetwork,
        scale_factor: float,
        device: torch.device,
        dtype: torch.dtype,
        memory: str = "full",
    ) -> None:
        """Move a VAE to its device and precision; see `load_autoencoder` for the arguments."""
        self.has_posterior = isinstance(vae, VaeNetwork)
        if memory == "tiled" and not self.has_posterior:
            raise ValueError("a tiny autoencoder sees no tiles; set vae_memory to sliced or full")
        digest = hashlib.sha256()
        for name, tensor in sorted(vae.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.float().cpu().numpy().tobytes())
        self.identity = f"vae-{digest.hexdigest()[:12]}"
        # Convolutions are faster with the channels innermost, on CPUs by half.
        self.vae = vae.eval().requires_grad_(False).to(device, dtype)
        self.vae.to(memory_format=torch.channels_last)
        self.vae.memory = memory
        self.scale_factor = scale_factor
        self.shift, self.scale = latent_statistics(vae.config, scale_factor, device)
        self.latent_channels, self.downsample = vae.config.latent_channels, vae.config.downsample
        self.device, self.dtype, self.rescued = device, dtype, 0
        self._whole: VaeNetwork | TinyNetwork | None = None  # of `_in_float32`

    def normalise(self, mean: Tensor, deviation: Tensor) -> None:
        """Let scaled latents be those that were scaled before, minus `mean`, over `deviation`.

        Both are (C, 1, 1): statistics of a training's latents.
        """
        mean, deviation = mean.to(self.device), deviation.to(self.device)
        self.shift = self.shift + mean / self.scale
        self.scale = self.scale / deviation

    def take_latents_of(self, vae: Autoencoder) -> None:
        """Let a tiny autoencoder decode the latents of the VAE that it imitates, as `vae` has them.

        It expects them as that VAE's config.json scales them; `vae` may scale them otherwise.
        """
        config = vae.vae.config
        shift, scale = latent_statistics(config, config.scaling_factor, self.device)
        own = self.scale
        self.scale = vae.scale * own / scale
        self.shift = (vae.shift - shift) * scale / own + self.shift

    @torch.inference_mode()
    def encode_moments(self, images: Tensor) -> Tensor:
        """Encode (N, 3, H, W) in [-1, 1] -> (N, 2C, h, w) float32: mean, log variance; unscaled.

        A VAE without posterior gives its latents, (N, C, h, w).
        """
        images = images.to(self.device, self.dtype)
        return self.vae.encode(images).float()

    def mean_latents(self, moments: Tensor) -> Tensor:
        """Return the mean of the posterior: (N, 2C, h, w) moments -> (N, C, h, w), scaled."""
        return self.scaled(moments[:, : self.latent_channels])

    def sample_latents(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample the posterior: (N, 2C, h, w) moments -> (N, C, h, w), scaled."""
        mean, log_variance = moments.chunk(2, dim=1)
        # The VAE itself bounds its log variance so.
        deviation = (0.5 * log_variance.clamp(-30, 20)).exp()
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return self.scaled(mean + deviation * noise)

    def scaled_moments(self, moments: Tensor) -> Tensor:
        """Return mean and bounded log variance of the scaled latents, both in (N, 2C, h, w)."""
        mean, log_variance = moments.chunk(2, dim=1)
        log = math.log(self.scale) if isinstance(self.scale, float) else self.scale.log()
        return torch.cat([self.scaled(mean), log_variance.clamp(-30, 20) + 2 * log], dim=1)

    def scaled(self, z: Tensor) -> Tensor:
        """Shift and scale latents as the VAE gives them, (N, C, h, w) on its device."""
        return (z - self.shift) * self.scale

    def unscaled(self, z: Tensor) -> Tensor:
        """Undo `scaled`."""
        return z / self.scale + self.shift

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """Decode scaled latents (N, C, h, w) -> images (N, 3, H, W) float32 in [-1, 1].

        Images that overflow in half precision, as those of Stable Diffusion XL's VAE do in
        float16, are decoded again in float32. Infinite numbers become NaN, so that the bounds do
        not hide them.
        """
        z = self.unscaled(z.to(self.device))
        images = self.vae.decode(z.to(self.dtype)).float()
        is_half = self.dtype != torch.float32 or torch.is_autocast_enabled(self.device.type)
        if is_half and not is_finite(images):
            bad = ~images.flatten(1).isfinite().all(dim=1)  # each image alone decides
            with torch.autocast(self.device.type, enabled=False):
                images[bad] = self._in_float32().decode(z[bad].float())
            self.rescued += int(bad.sum())
        return images.masked_fill(images.isinf(), math.nan).clamp(-1, 1)

    def _in_float32(self) -> VaeNetwork | TinyNetwork:
        """Return the network in float32; a copy is made at the first call if it is another."""
        if self.dtype == torch.float32:
            return self.vae
        if self._whole is None:
            self._whole = copy.deepcopy(self.vae).float()
        return self._whole


def latent_statistics(
    config: VaeConfig, scale_factor: float, device: torch.device
) -> tuple[float | Tensor, float | Tensor]:
    """Return shift and scale of a VAE's latents, by what its config.json states.

    There is one shift (`shift_factor`, as of Stable Diffusion 3 and FLUX), or a mean and a standard
    deviation of each channel (`latents_mean`, `latents_std`), or neither.
    """
    if config.latents_mean is None or config.latents_std is None:
        return float(config.shift_factor or 0.0), float(scale_factor)
    mean, deviation = (
        torch.tensor(x, device=device).view(-1, 1, 1)
        for x in (config.latents_mean, config.latents_std)
    )
    return mean, scale_factor / deviation


def load_autoencoder(
    source: str | Path,
    *,
    scale_factor: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    memory: str = "full",
) -> Autoencoder:
    """Load a VAE from a folder, a file or the hub.

    source: a diffusers folder (config.json, and weights as safetensors or .bin), or that of a whole
        pipeline, whose `vae` folder is taken; or a file of LDM's code (`autoencoder_kl.pth`, or
        safetensors), where the shapes of the weights give the architecture; or the two files of a
        tiny autoencoder (`*_encoder.pth`, `*_decoder.pth`), by one of them or their folder; or a
        name on the hub, `owner/name` or `owner/name/subfolder`, which is downloaded on first use.
    scale_factor: of the latents; None = the folder's own, and 0.18215 for an LDM file, 1
        for a tiny autoencoder.
    dtype: precision in which the network is kept and run.
    memory: 'full' runs all images at once; 'sliced' runs one by one, with equal results; 'tiled'
        also cuts images larger than those of the VAE's training into overlapping tiles.

    Raises FileNotFoundError if a path does not exist, and ValueError if it is not a VAE.
    """
    vae = load_network(source)
    scale_factor = scale_factor or vae.config.scaling_factor
    return Autoencoder(vae, scale_factor, torch.device(device), dtype, memory)


def load_network(source: str | Path) -> VaeNetwork | TinyNetwork:
    """Load the network of a VAE in float32; source and errors are those of `load_autoencoder`."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        path = vae_folder(path)
    elif not path.exists():
        if looks_like_path(str(source)):
            raise FileNotFoundError(f"no VAE at {source}: give a folder, a file or a hub name")
        path = _fetched(str(source))
    if pair := vae_pair(path):
        return tiny_from_pair(*pair)
    return _from_folder(path) if path.is_dir() else from_ldm(_vae_tensors(path), str(path))


def vae_with(weights: Mapping[str, Tensor], config: VaeConfig, where: object) -> VaeNetwork:
    """Return a VAE with weights, in float32; others than its own are left out.

    `where` names the weights in messages. Raises ValueError if some are missing or do not fit.
    """
    with torch.device("meta"):  # no time is lost on initialising weights that are replaced
        vae = VaeNetwork(config)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    try:
        missing = vae.load_state_dict(weights, strict=False, assign=True).missing_keys
    except RuntimeError as fault:
        first = str(fault).splitlines()[1].strip()
        raise ValueError(f"cannot load a VAE from {where}: {first}") from fault
    if missing:
        raise ValueError(f"cannot load a VAE from {where}: it has no weights {min(missing)}")
    return vae


def _from_folder(folder: Path) -> VaeNetwork | TinyNetwork:
    """Load a folder that diffusers has written."""
    described = vae_config(folder)
    file = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if file is None:
        raise ValueError(f"cannot load a VAE from {folder}: it holds no {WEIGHTS[0]}")
    if described.get("_class_name", KL) != KL:
        return tiny_with(read_tensors(file), described, folder)
    try:
        config = VaeConfig.from_dict(described)
    except (TypeError, ValueError) as fault:
        raise ValueError(f"cannot load a VAE from {folder}: {fault}") from fault
    old = rf"(\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\."
    weights = {
        re.sub(old, lambda m: f"{m[1]}.{OLD_ATTENTION[m[2]]}.", name): tensor
        for name, tensor in read_tensors(file).items()
    }
    return vae_with(weights, config, folder)


def _fetched(name: str) -> Path:
    """Return the folder of a VAE of the hub in the cache; what is missing there is downloaded."""
    repository, subfolder = hub_place(name)
    fetch = partial(hf_hub_download, repository, subfolder=subfolder or None)
    try:
        config = fetch("config.json")
        try:
            fetch(WEIGHTS[0])
        except EntryNotFoundError:
            fetch(WEIGHTS[1])
    except (OSError, ValueError) as fault:
        first_line = str(fault).strip().splitlines()[0]
        raise ValueError(f"cannot load a VAE from {name}: {first_line}") from fault
    return Path(config).parent


def _vae_tensors(path: Path) -> dict[str, Tensor]:
    """Read the VAE's tensors from a file; a whole LDM checkpoint also holds other networks."""
    tensors = read_tensors(path)
    prefix = "first_stage_model."
    inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return inside or tensors


def from_ldm(weights: dict[str, Tensor], where: str) -> VaeNetwork:
    """Return a VAE with weights that have the names of LDM's code.

    `where` names the weights in messages. Raises ValueError if they are not a VAE's.
    """
    needed = ("encoder.conv_in.weight", "decoder.conv_in.weight", "post_quant_conv.weight")
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(f"{where} is not an LDM autoencoder: it has no {missing[0]}")
    levels = ldm_levels(weights)
    blocks = 1 + max(int(n.split(".")[4]) for n in weights if n.startswith("encoder.down.0.block."))
    widths = [weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    described = {
        "down_block_types": [BLOCKS[0]] * levels,
        "up_block_types": [BLOCKS[1]] * levels,
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "latent_channels": weights["post_quant_conv.weight"].shape[1],
        "norm_num_groups": 32,
        "scaling_factor": LDM_SCALE_FACTOR,
    }
    renamed = {}
    for name, tensor in weights.items():
        if not name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            continue  # weights of the training losses
        for pattern, replacement in LDM_RENAMES:
            name = re.sub(pattern, replacement, name)
        # LDM counts the decoder's levels from the image, diffusers counts them from the latents.
        name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)
        if ".attentions." in name and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]  # a 1x1 convolution in LDM, a linear layer in diffusers
        renamed[name] = tensor
    vae = vae_with(renamed, VaeConfig.from_dict(described), where)
    if others := renamed.keys() - vae.state_dict().keys():
        raise ValueError(f"{where} does not fit an LDM autoencoder: it holds {min(others)}")
    return vae
