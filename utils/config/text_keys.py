"""Keys of type text or path: their values are read as they are written.

YAML alone reads the folder `2024` as a number, `no` as false, and `a #1` as `a`.
"""

from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml

from utils.config.schema import Config

TEXT_TAG = "tag:yaml.org,2002:str"
# Meanings, beside text, that YAML gives to words without quotes; null stays null.
OTHER_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp", "merge", "value")
}


@cache
def is_text(key: str) -> bool:
    """Return True if `section.name` is a key of type text or path, also if it may be null."""
    annotation = _annotation(key)
    return annotation is not None and _parts(annotation) - {NoneType} <= {str, Path}


@cache
def may_be_null(key: str) -> bool:
    """Return True if null is a value of `section.name`, or if there is no such key."""
    annotation = _annotation(key)
    return annotation is None or NoneType in _parts(annotation)


def keep_text(node: yaml.Node, key: str) -> None:
    """Make plain words text in the node of a value of `section.name`, if the key's type is text.

    A list of texts or paths keeps those in it.
    """
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not (is_text(key) or _is_text_list(key)):
        return
    for item in items:
        if isinstance(item, yaml.ScalarNode) and item.tag in OTHER_TAGS and item.style is None:
            item.tag = TEXT_TAG


@cache
def _is_text_list(key: str) -> bool:
    annotation = _annotation(key)
    return get_origin(annotation) is list and _parts(get_args(annotation)[0]) <= {str, Path}


def _annotation(key: str) -> Any:
    """Return the type of `section.name`, or None if there is no such key."""
    section, _, name = key.partition(".")
    holder = Config.model_fields.get(section)
    field = type(holder.default).model_fields.get(name) if holder else None
    return field.annotation if field else None


def _parts(annotation: Any) -> set[Any]:
    """Return the types of a union, each without what `Annotated` adds."""
    if hasattr(annotation, "__metadata__"):
        return _parts(get_args(annotation)[0])
    is_list = get_origin(annotation) is list
    inner = () if is_list else get_args(annotation)
    return set().union(*map(_parts, inner)) if inner else {annotation}
