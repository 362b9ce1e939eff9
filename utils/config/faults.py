"""One line for each fault of a configuration, with a close name where there is one."""

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from utils.config.schema import Config


def fault_line(error: Mapping[str, Any], source: str, overridden: Mapping[str, str]) -> str:
    """One line for one of pydantic's errors."""
    names = [str(part)[:100] for part in error["loc"]]
    location = [name if name.isprintable() else repr(name) for name in names]
    key = ".".join(location)
    where = overridden.get(".".join(location[:2]), f"{source}:")
    if error["type"] == "extra_forbidden":
        known = all_keys() if len(location) > 1 else list(Config.model_fields)
        return f"{where} {key}: unknown key{suggestion(key, known)}"
    got = short(error["input"])
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


def short(value: Any) -> str:
    """A value for a message, of bounded length however its parts refer to each other."""
    bounded = reprlib.Repr()
    bounded.maxlevel, bounded.maxlist, bounded.maxdict = 2, 3, 3
    bounded.maxstring, bounded.maxother = 80, 80
    try:
        return bounded.repr(value)
    except ValueError:
        return "a number of too many digits"


def all_keys() -> list[str]:
    return [f"{s}.{k}" for s, f in Config.model_fields.items() for k in f.annotation.model_fields]


def _choices(location: Sequence[str]) -> list[str]:
    """The strings that a key with fixed choices accepts."""
    annotation = Config.model_fields[location[0]].annotation.model_fields[location[1]].annotation
    nested = [get_args(a) if get_args(a) else (a,) for a in get_args(annotation)]
    return [choice for group in nested for choice in group if isinstance(choice, str)]


def suggestion(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?` for a close name, or for the same key in another section."""
    name = word.rsplit(".", 1)[-1]
    elsewhere = [k for k in known if k.rsplit(".", 1)[-1] == name]
    close = elsewhere or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
