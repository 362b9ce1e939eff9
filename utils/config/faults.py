"""The lines that name the faults of a configuration, with a close name where there is one."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from utils.base.errors import short_repr
from utils.config.fields import Section
from utils.config.schema import Config


def fault_line(error: Mapping[str, Any], source: str, origins: Mapping[str, str]) -> str:
    """Return one line for one of pydantic's errors (`ValidationError.errors()`).

    The line begins with the key's origin: an override, a flag, or a file and a colon. Where
    `origins` does not know it, the origin is the file `source`.
    """
    names = [str(part)[:100] for part in error["loc"]]
    location = [name if name.isprintable() else repr(name) for name in names]
    key = ".".join(location)
    if not key:  # a fault between sections, whose message names the keys
        return f"{source}: {error['msg'].removeprefix('Value error, ')}"
    where = origins.get(".".join(location[:2]), f"{source}:")
    if error["type"] == "extra_forbidden":
        known = all_keys() if len(location) > 1 else list(Config.model_fields)
        return f"{where} {key}: unknown key{suggestion(key, known)}"
    got = short_repr(error["input"])
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{where} {key}: should be a section of keys, got {got}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    message = message.partition(", unable to parse")[0]
    if error["type"] == "value_error":
        return f"{where} {key}: {message}"
    hint = ""
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        hint = suggestion(error["input"], _choices(location))
    return f"{where} {key}: {message}, got {got}{hint}"


def all_keys() -> list[str]:
    """Return every `section.key` of the configuration."""
    return [f"{name}.{key}" for name in Config.model_fields for key in _section(name).model_fields]


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean …?` with a close name, or an empty string if there is none.

    A key with the right name in another section counts as closest.
    """
    name = word.rsplit(".", 1)[-1]
    elsewhere = [k for k in known if k.rsplit(".", 1)[-1] == name]
    close = elsewhere or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _section(name: str) -> type[Section]:
    """Return the class of a section."""
    return type(getattr(Config(), name))


def _choices(location: Sequence[str]) -> list[str]:
    """Return the strings that a key with fixed choices accepts."""
    annotation = _section(location[0]).model_fields[location[1]].annotation
    nested = [get_args(a) if get_args(a) else (a,) for a in get_args(annotation)]
    return [choice for group in nested for choice in group if isinstance(choice, str)]
