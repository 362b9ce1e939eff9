"""CLIP's byte-pair tokenizer in plain Python: it reads tokenizer.json and needs no package.

It equals that of open_clip, but the names of the start and end token are no tokens within a text.
open_clip repairs text with ftfy first: of those repairs, this one makes composed characters and
straight quotes.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from pathlib import Path

QUOTES = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"


class Tokenizer:
    """Tokens of sentences: parts of words, found by merging pairs in the order of their ranks."""

    def __init__(self, path: Path) -> None:
        """Read the vocabulary, the merges and the context length from `path`."""
        content = json.loads(path.read_text(encoding="utf-8"))
        self.vocabulary: dict[str, int] = content["vocabulary"]
        self.symbols: list[str] = content["bytes"]  # the character that stands for each byte
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(content["merges"])}
        self.context_length: int = content["context_length"]
        self.start, self.end = content["start"], content["end"]

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a sentence: start, parts of words, end, then zeros."""
        tokens = [self.vocabulary[self.start]]
        for word in self.words(text):
            tokens += [self.vocabulary[part] for part in self.merge(word)]
        tokens = [*tokens[: self.context_length - 1], self.vocabulary[self.end]]
        return tokens + [0] * (self.context_length - len(tokens))

    def words(self, text: str) -> list[str]:
        """Split a text into words, single digits and runs of other characters, in small letters."""
        text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)).translate(QUOTES))
        text = " ".join(text.split()).lower()
        kinds: dict[str, str] = {"L": "", "N": ""}  # letters and numerals among the characters
        for character in dict.fromkeys(text):
            kind = unicodedata.category(character)[0]
            kinds[kind] = kinds.get(kind, "") + re.escape(character)
        letters, numerals = kinds["L"], kinds["N"]
        patterns = [CONTRACTIONS]
        patterns += [f"[{letters}]+"] * bool(letters) + [f"[{numerals}]"] * bool(numerals)
        return re.findall("|".join([*patterns, rf"[^\s{letters}{numerals}]+"]), text)

    def merge(self, word: str) -> list[str]:
        """Merge the bytes of a word into tokens of the vocabulary."""
        parts = [self.symbols[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = list(zip(parts[:-1], parts[1:], strict=True))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return parts
