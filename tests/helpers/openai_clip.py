"""CLIP files in OpenAI's format: TorchScript archives, mostly in half precision."""

import warnings
from pathlib import Path

import open_clip
import torch
from open_clip.model import convert_weights_to_fp16
from torch import nn


class Holder(nn.Module):
    """Empty module that parameters and children are registered in by name."""


def random_clip(**config: object) -> open_clip.CLIP:
    """Build a random CLIP of OpenAI's kind, its weights rounded like those of OpenAI's files."""
    torch.manual_seed(0)
    model = open_clip.CLIP(quick_gelu=True, **config).eval().requires_grad_(False)
    convert_weights_to_fp16(model)
    return model


def openai_tensors(model: open_clip.CLIP) -> dict[str, torch.Tensor]:
    """Return a model's weights and the three constants that OpenAI's archives hold."""
    constants = {
        "input_resolution": model.visual.image_size[0],
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
    }
    return model.state_dict() | {name: torch.tensor(value) for name, value in constants.items()}


def save_archive(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    """Write tensors into a TorchScript archive; a name `a.b.c` becomes tensor c of module a.b."""
    root = Holder()
    for name, tensor in tensors.items():
        module = root
        *above, leaf = name.split(".")
        for part in above:
            if part not in module._modules:
                module.add_module(part, Holder())
            module = module._modules[part]
        if tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but OpenAI's files use it
        torch.jit.script(root).save(str(path))
    return path
