"""YAML files of configurations: plain values, and other files that a file starts from (`base:`).

A configuration that is not validated yet is `raw`: sections of plain values, a key is written
`section.name`.
"""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.base.errors import UserError, one_line, short_repr
from utils.config.fields import SAMPLING_PRESETS
from utils.config.text_keys import keep_text

BASE = "base"  # the key that names the file to start from


class _StrictLoader(yaml.SafeLoader):
    """YAML loader that refuses what YAML takes in silence: a second key, numbers of other bases."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; raise YAMLError if a key is given twice or is not text."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not text", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"key {key.value!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return the number; raise YAMLError if YAML reads `010` as 8, or `1:30` as 90."""
        number, text = super().construct_yaml_int(node), node.value.replace("_", "")
        if ":" in text or (text.lstrip("+-").isdigit() and int(text) != number):
            problem = f"YAML reads {node.value} as {number}; write plain digits, no leading zeros"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return number


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)


def load_yaml(text: str, prepare: Callable[[yaml.Node], None] = lambda _: None) -> Any:
    """Return the plain values of a YAML text; raise YAMLError for every fault.

    prepare: may change the node of the whole text before its values are made.
    """
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        prepare(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply") from error
    except (ValueError, TypeError) as error:  # e.g. a date that does not exist
        raise yaml.MarkedYAMLError(problem=one_line(error)) from error


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the sections of a YAML file, merged key by key into those of the file it starts from.

    Returns the sections without `base`, and the file of each section and of each `section.key`.
    Raises UserError if a file holds no sections, or if a `base` is missing or leads back.
    """
    raw = _read_file(path, "give --config a YAML file")
    sections, places = _without_base(raw, path)
    seen, file = [path], path
    while BASE in raw:
        file = _base_of(raw[BASE], file, seen)
        raw = _read_file(file, f"{seen[-1]} names it as its base")
        seen.append(file)
        below, of_below = _without_base(raw, file)
        sections, places = merged(below, sections), of_below | places
    return sections, places


def _base_of(value: Any, file: Path, seen: list[Path]) -> Path:
    """Return the path of the base that `file` names; raise UserError if it was read before."""
    if not isinstance(value, str) or not value:
        raise UserError(f"{file}: base: should be the path of a YAML file, got {short_repr(value)}")
    base = file.parent / os.path.expanduser(value)
    if base.resolve() in [path.resolve() for path in seen]:
        raise UserError(f"{file}: base: {base} leads back to itself; remove one base of the circle")
    return base


def _keep_texts(root: yaml.Node) -> None:
    """Make plain words text at every key of type text or path of a configuration's node."""
    for section, keys in root.value if isinstance(root, yaml.MappingNode) else ():
        for name, value in keys.value if isinstance(keys, yaml.MappingNode) else ():
            keep_text(value, f"{section.value}.{name.value}")


def _read_file(path: Path, hint: str) -> dict[str, Any]:
    """Return the sections of one file; `hint` ends the message if it cannot be read."""
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"), _keep_texts)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file; {hint}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError(f"{path}{where}: not valid YAML: {problem}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: should hold sections, e.g. `data:` and `train:`")
    # A section whose keys are all commented out reads as null.
    return {str(name): {} if value is None else value for name, value in raw.items()}


def _without_base(raw: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the sections of one file, and the file's name for each section and key in it."""
    sections = {name: value for name, value in raw.items() if name != BASE}
    places = dict.fromkeys(sections, str(path))
    for name, keys in sections.items():
        if isinstance(keys, dict):
            places |= {f"{name}.{key}": str(path) for key in keys}
    return sections, places


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return the sections `below` with the keys of those `above`, which count more."""
    forget_replaced(below, [f"sampling.{name}" for name in section_of(above, "sampling")])
    merged = dict(below)
    for name, keys in above.items():
        are_sections = isinstance(keys, dict) and isinstance(below.get(name), dict)
        merged[name] = {**below[name], **keys} if are_sections else keys
    return merged


def forget_replaced(raw: dict[str, Any], later: Collection[str]) -> None:
    """Remove the keys of `sampling` whose values the keys `later` replace, but none of `later`.

    A later `sampling.preset` replaces all keys that presets set, and a later `sampling.sigmas`
    replaces `num_steps`.
    """
    replaced = list(SAMPLING_PRESETS["paper"]) if "sampling.preset" in later else []
    if "sampling.sigmas" in later:
        replaced.append("num_steps")
    sampling = section_of(raw, "sampling")
    for name in replaced:
        if f"sampling.{name}" not in later:
            sampling.pop(name, None)


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
