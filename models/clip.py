"""CLIP (Radford 2021): image and text embeddings in one space, on top of `open_clip`.

The condition of the diffusion model is an image embedding in training and a text embedding when
sampling; both come from the towers loaded here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

MERGES_NAME = "merges.txt.gz"


def encode_tokens(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Text embeddings, not normalised.

    The text tower is causal and reads its output at the end token, so positions after the
    longest caption's end change nothing: they are cut off before any work is done.

    Args:
        model: `open_clip.CLIP`, or another of its models, which then sees every position.
        tokens: (N, context length) int64, padded with zeros.

    Returns:
        (N, D)
    """
    if not isinstance(model, open_clip.CLIP) or model.text_pool_type != "argmax":
        return model.encode_text(tokens)
    end = tokens.argmax(dim=1)  # the end token has the highest id
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    mask = None if model.attn_mask is None else model.attn_mask[:length, :length]
    x = model.transformer(x, attn_mask=mask)  # (N, length, width)
    x = model.ln_final(x)[torch.arange(len(x), device=x.device), end]
    projection = model.text_projection
    return projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection


class ClipEncoder:
    """Both towers of a CLIP in inference mode."""

    def __init__(
        self, model: torch.nn.Module, tokenizer, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        preprocess = open_clip.get_model_preprocess_cfg(model)
        size = preprocess["size"]
        self.image_size: int = size if isinstance(size, int) else size[0]
        self._mean = torch.tensor(preprocess["mean"], device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess["std"], device=device).view(1, 3, 1, 1)
        self.context_length: int = tokenizer.context_length
        digest = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.float().cpu().numpy().tobytes())
        self.identity = f"clip-{digest.hexdigest()[:12]}"
        self.dim: int = self.encode_texts(["a"]).shape[1]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """Image embeddings, not normalised.

        Args:
            images: (N, 3, H, W) uint8 RGB of any size; the short side is resized to the model's
                (bicubic, antialiased) and the centre is cut out.

        Returns:
            (N, D) float32 on the CPU.
        """
        images = images.to(self.device)
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = tvf.resize(images, [self.image_size], InterpolationMode.BICUBIC)
            images = tvf.center_crop(images, [self.image_size, self.image_size])
        pixels = (images.float() / 255 - self._mean) / self._std
        with self._autocast():
            return self.model.encode_image(pixels).float().cpu()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings, (N, D) float32 on the CPU, not normalised.

        A text over the context length is cut; `count_truncated` tells how many are.
        """
        tokens = self.tokenizer(list(texts)).to(self.device)
        with self._autocast():
            return encode_tokens(self.model, tokens).float().cpu()

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many texts have more tokens than the model reads."""
        room = self.context_length - 2  # start and end token
        return sum(len(self.tokenizer.encode(text)) > room for text in texts)


def load_clip(
    source: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> ClipEncoder:
    """Load a CLIP from where `source` points.

    Args:
        source: one of
            a folder with `open_clip_config.json` and weights (as `open_clip` writes for its hub),
            and its own byte-pair merges in `merges.txt.gz` if its vocabulary is not the usual one;
            a file in OpenAI's format (`ViT-B-32.pt`);
            an `open_clip` name and tag, `ViT-B-32:openai`, fetched on first use.
        device: where to run it.
        dtype: float32, or a half type to run the towers under autocast.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: the folder or file does not hold a CLIP, or the name is not known.
    """
    path = Path(source)
    device = torch.device(device)
    if path.is_dir():
        if not (path / "open_clip_config.json").exists():
            raise ValueError(f"{path} holds no open_clip_config.json, so it is not a CLIP folder")
        merges = path / MERGES_NAME
        own_vocabulary = {"bpe_path": str(merges)} if merges.exists() else {}
        name = f"local-dir:{path}"
        model = _quietly(open_clip.create_model, name, require_pretrained=True)
        return ClipEncoder(model, open_clip.get_tokenizer(name, **own_vocabulary), device, dtype)
    if path.is_file():
        model = _quietly(open_clip.load_openai_model, str(path), precision="fp32")
        return ClipEncoder(model, open_clip.SimpleTokenizer(), device, dtype)
    if path.suffix or "/" in str(source):
        raise FileNotFoundError(f"no CLIP at {source}: give a folder, a file or name:tag")
    name, _, tag = str(source).partition(":")
    if name not in open_clip.list_models() or not tag:
        raise ValueError(f"unknown CLIP {source!r}: give a folder, a file, or e.g. ViT-B-32:openai")
    # OpenAI's weights were trained with the quick GELU; the tag alone does not switch it on.
    model = _quietly(open_clip.create_model, name, pretrained=tag, force_quick_gelu=tag == "openai")
    return ClipEncoder(model, open_clip.get_tokenizer(name), device, dtype)


def _quietly(build, *args, **kwargs) -> torch.nn.Module:
    """Call an open_clip loader; its failures come out as one ValueError."""
    try:
        return build(*args, **kwargs)
    except (RuntimeError, OSError, KeyError) as fault:
        where = next((a for a in args if isinstance(a, str)), "CLIP")
        first_line = str(fault).strip().splitlines()[0] if str(fault).strip() else repr(fault)
        raise ValueError(f"cannot load a CLIP from {where}: {first_line}") from fault
