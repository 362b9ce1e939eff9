"""CLIP (Radford 2021): image and text embeddings in one space, on top of `open_clip`.

The condition of the diffusion model is an image embedding in training, and a text embedding in
sampling. Both come from the two towers loaded here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from models.clip_towers import from_folder, from_named_file, from_openai_file, from_tag
from models.encoder_files import import_adapters
from models.tokenizers import Tokenizer, text_only

TEXTS_AT_ONCE = 64


def encode_tokens(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Return text embeddings (N, D), not normalised.

    The text tower is causal, and its output is read at the end token. Positions after the end of
    the longest text therefore change nothing, and are cut off first.

    model: an `open_clip.CLIP`; any other model of open_clip runs its own `encode_text`.
    tokens: (N, context length) int64, padded with zeros.
    """
    is_plain = isinstance(model, open_clip.CLIP) and model.text_pool_type == "argmax"
    if not is_plain or model.attn_mask is None:
        y: Tensor = model.encode_text(tokens)
        return y
    end = tokens.argmax(dim=1)  # the end token has the highest id
    length = int(end.max()) + 1
    x: Tensor = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    for block in model.transformer.resblocks:
        x = x + block.ls_1(causal_attention(block.attn, block.ln_1(x)))  # (N, length, width)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    x = model.ln_final(x)[torch.arange(len(x), device=x.device), end]
    projection = model.text_projection
    projected: Tensor = projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection
    return projected


def causal_attention(attention: torch.nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Apply causal self-attention to x: (N, T, D) -> (N, T, D).

    The module's own forward, called with a mask, transposes its input; in bfloat16 its weights are
    then copied for each position.
    """
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)  # (N, T, 3 D)
    q, k, v = qkv.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    x = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (N, heads, T, D / heads)
    out: Tensor = attention.out_proj(x.transpose(1, 2).flatten(2))
    return out


class ClipEncoder:
    """Both towers of a CLIP in inference mode.

    dim: D of an embedding.
    image_size: side of the images that the image tower sees, pixels.
    context_length: tokens that the text tower reads, start and end token included.
    identity: short hash of the weights.
    """

    def __init__(
        self, model: open_clip.CLIP, tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Move a CLIP to its device and precision; see `load_clip`."""
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = text_only(tokenizer)
        self.device = device
        self.dtype = dtype
        preprocess = open_clip.get_model_preprocess_cfg(model)
        size = preprocess["size"]
        self.image_size: int = size if isinstance(size, int) else size[0]
        self._interpolation = InterpolationMode(preprocess.get("interpolation", "bicubic"))
        self._squash = preprocess.get("resize_mode") == "squash"
        self._mean = torch.tensor(preprocess["mean"], device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess["std"], device=device).view(1, 3, 1, 1)
        self.context_length: int = tokenizer.context_length
        digest = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.float().cpu().numpy().tobytes())
        self.identity = f"clip-{digest.hexdigest()[:12]}"
        self.model.to(dtype)
        self.dim: int = self.encode_texts(["a"]).shape[1]

    def autocast(self) -> torch.autocast:
        """Return the context of the towers' precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return embeddings (N, D) float32 on the CPU, not normalised; images as in `pixels`."""
        with self.autocast():
            y: Tensor = self.model.encode_image(self.pixels(images))
        return y.float().cpu()

    def pixels(self, images: Tensor) -> Tensor:
        """Return the image tower's input of RGB uint8 (N, 3, H, W) of any size; see `resized`."""
        images = self.resized(images).to(self.device)
        return ((images.float() / 255 - self._mean) / self._std).to(self.dtype)

    def resized(self, images: Tensor) -> Tensor:
        """Resize the short side of uint8 (N, 3, H, W) to the model's size, and crop the centre.

        Models that were trained on squashed images, as SigLIP, get the whole image squashed to a
        square. This equals the preprocessing of `open_clip` and of OpenAI's code.
        """
        if images.shape[-2:] == (self.image_size, self.image_size):
            return images
        return torch.stack([self._resized(image) for image in images.cpu()])

    def _resized(self, image: Tensor) -> Tensor:
        """Resize one uint8 (3, H, W) with Pillow, because torch's bicubic rounds differently."""
        whole = Image.fromarray(image.permute(1, 2, 0).numpy())
        sides = [self.image_size] * (1 + self._squash)
        resized = tvf.resize(whole, sides, self._interpolation)
        cropped = tvf.center_crop(resized, [self.image_size, self.image_size])
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return text embeddings (N, D) float32 on the CPU, not normalised.

        A text above the context length is cut; `count_truncated` counts those texts.
        """
        tokens = self.tokenizer(list(texts))  # (N, context length)
        # Texts of similar length go together, so that few positions are computed for nothing.
        parts = tokens.argmax(dim=1).argsort().split(TEXTS_AT_ONCE)
        with self.autocast():
            y = [encode_tokens(self.model, tokens[part].to(self.device)) for part in parts]
        order = torch.cat(parts)
        return torch.cat(y).float().cpu()[order.argsort()]

    def is_empty(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether the model reads nothing in it, as in white space."""
        tokens = self.tokenizer(["", *texts])
        return [bool(equal) for equal in (tokens[1:] == tokens[0]).all(dim=1)]

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Count the texts that have more tokens than the model reads."""
        # With room for one token more, the cut of a text moves; texts that fit get padding there.
        tokens = self.tokenizer(list(texts))
        longer = self.tokenizer(list(texts), self.context_length + 1)[:, : self.context_length]
        return int((tokens != longer).any(dim=1).sum())


def load_clip(
    source: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> ClipEncoder:
    """Load a CLIP from a folder, a file or the hub.

    source: one of
        a folder with `open_clip_config.json` and weights (as `open_clip` writes for its hub), and
        with the files of its tokenizer if it has its own: `tokenizer.json` and others as
        `transformers` writes them (SigLIP), or byte-pair merges in `merges.txt.gz`; a text tower of
        `transformers` is described by `config.json`;
        a file that OpenAI published (`ViT-B-32.pt`): the shapes of the weights give the
        architecture, and the activation is the quick GELU;
        an `open_clip` name and a file of its weights, `ViT-B-32:weights/vit_b_32.pt`, with the
        files of the tokenizer beside it if the name has its own;
        an `open_clip` name and tag, `ViT-B-32:openai`, which is downloaded on first use.
    dtype: precision in which the towers are kept and run.

    Never runs code from a file; see models/weights.py.

    Raises FileNotFoundError if a folder or file does not exist, and ValueError if it does not hold
    a CLIP or the name is unknown.
    """
    path, device = Path(os.path.expanduser(source)), torch.device(device)
    if path.is_dir():
        return ClipEncoder(*from_folder(path), device, dtype)
    if path.is_file():
        return ClipEncoder(*from_openai_file(path), device, dtype)
    name, _, tag = str(source).partition(":")
    if name in open_clip.list_models() and tag:
        import_adapters(json.dumps(open_clip.get_model_config(name)))
        if Path(tag).is_file():
            return ClipEncoder(*from_named_file(name, Path(tag)), device, dtype)
        if tag not in open_clip.list_pretrained_tags_by_model(name):
            raise FileNotFoundError(
                f"no weights for {name} at {tag}: give a file or one of its tags"
            )
        return ClipEncoder(*from_tag(name, tag), device, dtype)
    if path.suffix or "/" in str(source):
        raise FileNotFoundError(f"no CLIP at {source}: give a folder, a file or name:tag")
    raise ValueError(f"unknown CLIP {source!r}: give a folder, a file, or e.g. ViT-B-32:openai")
