"""Load the two towers of a CLIP, and its tokenizer, from each form that `load_clip` takes.

`open_clip` builds them. Here is what it leaves open: files of OpenAI's, text towers of Hugging Face
in a folder, and one line for whatever goes wrong.
"""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch
from open_clip.hf_configs import arch_dict
from open_clip.model import build_model_from_openai_state_dict
from open_clip.tokenizer import HFTokenizer
from safetensors import SafetensorError
from torch import Tensor

from models.encoder_files import import_adapters
from models.tokenizers import Tokenizer
from models.weights import is_torchscript, read_tensors

CONFIG_NAME, MERGES_NAME = "open_clip_config.json", "merges.txt.gz"
OPENAI_CONSTANTS = {"input_resolution", "context_length", "vocab_size"}  # beside the weights

T = TypeVar("T")
ModelAndTokenizer = tuple[open_clip.CLIP, Tokenizer]


def from_folder(folder: Path) -> ModelAndTokenizer:
    """Load a folder as `open_clip` writes it for its hub: JSON and weights."""
    if not (folder / CONFIG_NAME).exists():
        raise ValueError(f"{folder} holds no {CONFIG_NAME}, so it is not a CLIP folder")
    import_adapters((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    merges = folder / MERGES_NAME
    own_vocabulary = {"bpe_path": str(merges)} if merges.exists() else {}
    name = f"local-dir:{folder}"
    tokenizer = _as_value_error(folder, open_clip.get_tokenizer, name, **own_vocabulary)
    model = _as_value_error(
        folder,
        open_clip.create_model,
        name,
        require_pretrained=True,
        weights_only=True,
        **_text_tower(folder, _read_json(folder / CONFIG_NAME)["model_cfg"].get("text_cfg", {})),
    )
    return model, tokenizer


def _text_tower(folder: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option that lets open_clip build a text tower of Hugging Face; {} for others.

    folder: of the weights. Its config.json describes the tower, or that of a folder which
        `hf_model_name` names there. open_clip would look from the working directory.
    described: the `text_cfg` of the CLIP.

    Without such a file the name is one of the hub. Raises ValueError if it is a folder elsewhere.
    """
    if "hf_model_name" not in described:
        return {}
    name = str(described["hf_model_name"])
    files = [place / "config.json" for place in (folder / name, folder)]
    known = [f for f in files if f.is_file() and _read_json(f).get("model_type") in arch_dict]
    if not known and Path(name).exists():
        raise ValueError(f"{folder} holds no config.json of its text tower {name}: copy it there")
    place = str(known[0].parent) if known else name
    text = {**described, "hf_model_name": place, "hf_model_pretrained": False}
    return {"text_cfg": text}


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file; raise ValueError that names it if it is damaged."""
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ValueError(f"{file} is damaged: {fault}") from fault
    return values


def from_tag(name: str, tag: str) -> ModelAndTokenizer:
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


def from_named_file(name: str, path: Path) -> ModelAndTokenizer:
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
        **_text_tower(path.parent, (open_clip.get_model_config(name) or {}).get("text_cfg", {})),
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


def from_openai_file(path: Path) -> ModelAndTokenizer:
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
