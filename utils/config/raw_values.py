"""Keys of a configuration that is not validated yet: plain nested dictionaries, as YAML gives them.

A key is written `section.name`.
"""

from collections.abc import Mapping
from typing import Any


def section_of(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of `raw`, or an empty dict that is no part of `raw` if there is none."""
    section = raw.get(name)
    return section if isinstance(section, dict) else {}


def get_value(raw: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key, or None if the key or its section is absent."""
    section, name = key.split(".")
    return section_of(raw, section).get(name)


def set_value(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, and make its section if there is none."""
    section, name = key.split(".")
    if not isinstance(raw.get(section), dict):
        raw[section] = {}
    raw[section][name] = value


def remove(raw: dict[str, Any], key: str) -> bool:
    """Remove a key, or a whole section; return True if it was there."""
    section, dot, name = key.partition(".")
    holder, entry = (section_of(raw, section), name) if dot else (raw, section)
    was_there = entry in holder
    holder.pop(entry, None)
    return was_there
