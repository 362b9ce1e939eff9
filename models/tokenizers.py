"""Tokenizers of `open_clip` that read nothing but text."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Protocol

import open_clip
from torch import Tensor


class Tokenizer(Protocol):
    """A tokenizer of `open_clip`."""

    context_length: int

    def __call__(self, texts: list[str], context_length: int | None = None, /) -> Tensor:
        """Return the tokens (N, context length) int64, cut or padded; None = as the model reads."""


def text_only(tokenizer: Any) -> Tokenizer:
    """Let a tokenizer read `<end_of_text>`, `</s>` or `[SEP]` in a text as the letters they are.

    Otherwise each becomes a special token, and CLIP may not see what follows. Other texts keep
    their tokens. The tokenizer itself is changed, and returned.
    """
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        special = [re.escape(tokenizer.decoder[number]) for number in tokenizer.all_special_ids]
        names = re.compile("|".join(special), re.IGNORECASE)
        tokenizer.clean_fn = partial(_clean_and_split, tokenizer.clean_fn, names)
    elif hasattr(tokenizer, "tokenizer"):  # of transformers
        tokenizer.tokenizer.split_special_tokens = True
    found: Tokenizer = tokenizer
    return found


def _clean_and_split(clean: Any, names: re.Pattern[str], text: str) -> str:
    """Return a cleaned text, in which a space follows the bracket of each special name.

    The tokenizer parts a bracket from letters anyway. Cleaning comes first: it makes `&lt;` a a
    bracket.
    """
    cleaned: str = clean(text)
    return names.sub(lambda name: f"{name[0][0]} {name[0][1:]}", cleaned)
