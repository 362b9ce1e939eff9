"""The demo's CLIP as a model: vocabulary, towers, its file."""

from __future__ import annotations

import gzip
import math
import random
import re
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from demo.make_faces import ATTRIBUTES, hide, make_face, random_attributes
from models.clip_towers import MERGES_NAME
from research.demo_weights.free_captions import write_free_caption
from utils.base.files import write_json

WORD_USES = 3  # a word gets tokens of its own if it comes so often in the sample of texts


def sample_words(count: int) -> set[str]:
    """Return the words of so many faces' captions and free texts that come several times."""
    uses: dict[str, int] = {}
    for index in range(count):
        rng = random.Random(f"words-{index}")
        shown = hide(random_attributes(rng))
        name = rng.choice(list(ATTRIBUTES))
        texts = [write_free_caption(shown, rng, name)["text"] for _ in range(8)]
        texts += [c["text"] for c in make_face("words", index, 1)[1]["captions"]]
        for word in re.findall(r"[a-z]+", " ".join(texts).lower()):
            uses[word] = uses.get(word, 0) + 1
    return {word for word, times in uses.items() if times >= WORD_USES}


def write_merges(path: Path, faces: int = 4000) -> int:
    """Write those of CLIP's byte-pair merges that the demo's words need; return their number.

    All other words are encoded letter by letter, or by parts of the demo's words.

    faces: number of faces whose captions and free texts give the words.
    """
    tokenizer = open_clip.SimpleTokenizer()
    needed = set()
    for word in sample_words(faces):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            pair = min(pairs, key=lambda p: tokenizer.bpe_ranks.get(p, math.inf))
            if pair not in tokenizer.bpe_ranks:
                break
            needed.add(pair)
            at = pairs.index(pair)
            parts[at : at + 2] = ["".join(pair)]
    merges = sorted(needed, key=tokenizer.bpe_ranks.get)
    body = "\n".join(["#merges used by the demo's sentences", *(" ".join(m) for m in merges)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(body.encode(), mtime=0))
    return len(merges)


def clip_config(vocabulary: int) -> dict[str, Any]:
    """Return the CLIP's configuration in open_clip's form, for a `vocabulary` of so many tokens."""
    return {
        "model_cfg": {
            "embed_dim": 256,
            "vision_cfg": {"image_size": 128, "layers": [1, 2, 3, 2], "width": 16},
            "text_cfg": {
                "context_length": 77,
                "width": 128,
                "heads": 4,
                "layers": 3,
                "vocab_size": vocabulary,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }


def build_clip(folder: Path) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer]:
    """Return an untrained CLIP and its tokenizer, whose files are written into `folder`."""
    # Each byte as itself and as the end of a word, the merges, and the tokens of start and end.
    vocabulary = 2 * 256 + write_merges(folder / MERGES_NAME) + 2
    config = clip_config(vocabulary)
    write_json(folder / "open_clip_config.json", config)
    model = open_clip.CLIP(**config["model_cfg"])
    model.visual.to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {vocabulary} tokens")
    return model, open_clip.SimpleTokenizer(bpe_path=str(folder / MERGES_NAME))


def export(model: torch.nn.Module, out: Path) -> None:
    """Write the weights as float16, in the form that `models.clip.load_clip` reads."""
    weights = {
        k: v.half().contiguous() if v.is_floating_point() else v.contiguous()
        for k, v in model.state_dict().items()
    }
    save_file(weights, out / "model.safetensors")
