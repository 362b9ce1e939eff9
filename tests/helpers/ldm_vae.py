"""Weights of a diffusers VAE, renamed and reshaped for the latent diffusion code (LDM)."""

import torch
from diffusers import AutoencoderKL

# Parts of a weight's name in diffusers -> in LDM.
RENAMES = {
    "down_blocks.": "down.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.": "mid.attn_1.",
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
    "resnets.": "block.",
    "downsamplers.0.": "downsample.",
    "upsamplers.0.": "upsample.",
    "conv_shortcut.": "nin_shortcut.",
    "conv_norm_out.": "norm_out.",
}


def ldm_names(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """Return the weights of a diffusers VAE under the names of `autoencoder_kl.pth`.

    Weights of attention layers become 1 x 1 convolutions.
    """
    depth = len(vae.config.block_out_channels)
    renames = {f"up_blocks.{i}.": f"up.{depth - 1 - i}." for i in range(depth)} | RENAMES
    renamed = {}
    for name, tensor in vae.state_dict().items():
        if ".attentions." in name and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor.clone()
    return renamed
