"""CLIP (Radford 2021): image and text embeddings in one space, on top of `open_clip`.

The condition of the diffusion model is an image embedding in training, and a text embedding in
sampling. Both come from the two towers loaded here.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import build_model_from_openai_state_dict
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from models.encoder_files import import_adapters
from models.tokenizers import Tokenizer, text_only
from models.weights import is_torchscript, read_tensors

MERGES_NAME = "merges.txt.gz"
TEXTS_AT_ONCE = 64
OPENAI_CONSTANTS = {"input_resolution", "context_length", "vocab_size"}  # beside the weights

T = TypeVar("T")
ModelAndTokenizer = tuple[open_clip.CLIP, Tokenizer]


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
        `transformers` writes them (SigLIP), or byte-pair merges in `merges.txt.gz`;
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
        return ClipEncoder(*_from_folder(path), device, dtype)
    if path.is_file():
        return ClipEncoder(*_from_openai_file(path), device, dtype)
    name, _, tag = str(source).partition(":")
    if name in open_clip.list_models() and tag:
        import_adapters(json.dumps(open_clip.get_model_config(name)))
        if Path(tag).is_file():
            return ClipEncoder(*_from_named_file(name, Path(tag)), device, dtype)
        if tag not in open_clip.list_pretrained_tags_by_model(name):
            raise FileNotFoundError(
                f"no weights for {name} at {tag}: give a file or one of its tags"
            )
        return ClipEncoder(*_from_tag(name, tag), device, dtype)
    if path.suffix or "/" in str(source):
        raise FileNotFoundError(f"no CLIP at {source}: give a folder, a file or name:tag")
    raise ValueError(f"unknown CLIP {source!r}: give a folder, a file, or e.g. ViT-B-32:openai")


def _from_folder(folder: Path) -> ModelAndTokenizer:
    """Load a folder as `open_clip` writes it for its hub: JSON and weights."""
    if not (folder / "open_clip_config.json").exists():
        raise ValueError(f"{folder} holds no open_clip_config.json, so it is not a CLIP folder")
    import_adapters((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    merges = folder / MERGES_NAME
    own_vocabulary = {"bpe_path": str(merges)} if merges.exists() else {}
    name = f"local-dir:{folder}"
    tokenizer = _as_value_error(folder, open_clip.get_tokenizer, name, **own_vocabulary)
    model = _as_value_error(
        folder, open_clip.create_model, name, require_pretrained=True, weights_only=True
    )
    return model, tokenizer


def _from_tag(name: str, tag: str) -> ModelAndTokenizer:
    """Load a model of the hub, with the activation that its weights were trained with."""
    quick = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    model = _as_value_error(
        f"{name}:{tag}",
        open_clip.create_model,
        name,
        pretrained=tag,
        force_quick_gelu=quick,
        weights_only=True,
    )
    return model, _as_value_error(name, open_clip.get_tokenizer, name)


def _from_named_file(name: str, path: Path) -> ModelAndTokenizer:
    """Load weights of a named architecture: OpenAI's file, or a checkpoint of `open_clip`."""
    # open_clip reads numpy's formats itself.
    tensors = {} if path.suffix in (".npz", ".npy") else read_tensors(path)
    openai = bool(tensors) and _is_openai(path, tensors)
    model = _as_value_error(
        name,
        open_clip.create_model,
        name,
        force_quick_gelu=openai,
        pretrained_text=False,
        pretrained_image=False,
        force_preprocess_cfg=_preprocessing(name),
    )
    if openai:
        _as_value_error(path, model.load_state_dict, _without_constants(tensors))
        _set_openai_preprocessing(model)
    else:
        # open_clip also reads the older layouts of its checkpoints.
        _as_value_error(path, open_clip.load_checkpoint, model, str(path), weights_only=True)
    return model, _as_value_error(path, _tokenizer_of, name, path.parent)


def _preprocessing(name: str) -> dict[str, Any]:
    """Return how the published weights of an architecture want their pixels, if all agree."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    found = [{key: about[key] for key in keys if key in about} for about in known]
    return found[0] if found and all(one == found[0] for one in found) else {}


def _tokenizer_of(name: str, folder: Path) -> Tokenizer:
    """Return the tokenizer of an architecture, from its files in `folder` if they are there."""
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    if "hf_tokenizer_name" not in text or not (folder / "tokenizer.json").exists():
        found: Tokenizer = open_clip.get_tokenizer(name)
        return found
    options = text.get("tokenizer_kwargs", {})
    return HFTokenizer(str(folder), text.get("context_length", 77), **options)


def _from_openai_file(path: Path) -> ModelAndTokenizer:
    """Load a file of OpenAI's; ValueError for other files, which do not state their activation."""
    tensors = read_tensors(path)
    if not _is_openai(path, tensors):
        raise ValueError(
            f"{path} is not one of OpenAI's files and does not say which CLIP it holds: "
            f"give its open_clip name in front, e.g. ViT-B-32:{path}, or ViT-B-32-quickgelu:{path}"
        )
    build = build_model_from_openai_state_dict
    model = _as_value_error(path, build, _without_constants(tensors), cast_dtype=torch.float32)
    model.float()
    _set_openai_preprocessing(model)
    return model, open_clip.SimpleTokenizer(context_length=model.context_length)


def _is_openai(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Return True if a file is OpenAI's: a TorchScript archive, or tensors with its constants."""
    return is_torchscript(path) or tensors.keys() >= OPENAI_CONSTANTS


def _without_constants(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters among an archive's tensors, without constants and causal mask."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in OPENAI_CONSTANTS and name.rpartition(".")[2] != "attn_mask"
    }


def _set_openai_preprocessing(model: open_clip.CLIP) -> None:
    """Set the mean and standard deviation of pixels that OpenAI's models were trained with."""
    model.visual.image_mean = open_clip.OPENAI_DATASET_MEAN
    model.visual.image_std = open_clip.OPENAI_DATASET_STD


def _as_value_error(where: str | Path, build: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a loader; make its failures one ValueError that names `where`."""
    try:
        return build(*args, **kwargs)
    except (
        RuntimeError,
        OSError,
        AssertionError,
        LookupError,
        AttributeError,
        TypeError,
        pickle.UnpicklingError,
        SafetensorError,
        ImportError,
    ) as fault:
        if isinstance(fault, AttributeError | TypeError) and _raised_here(fault):
            raise  # our own mistake; those of a library come from what it reads
        if isinstance(fault, ImportError) and fault.name == "transformers":
            fault = ImportError("its tokenizer needs a package: pip install transformers")
        lines = str(fault).strip().splitlines()
        reason = lines[0] if lines else repr(fault)
        if reason.endswith(":") and len(lines) > 1:
            reason = f"{reason} {lines[1].strip()}"  # the next line names the tensor
        raise ValueError(f"cannot load a CLIP from {where}: {reason}") from fault


def _raised_here(fault: BaseException) -> bool:
    """Return True if a line of this file raised an exception, not a library that it calls."""
    *_, (frame, _) = traceback.walk_tb(fault.__traceback__)
    return frame.f_code.co_filename == __file__
