"""Configuration: YAML in, typed sections out, every fault named at once.

Sections and keys of the published configs keep their names and meaning; our own keys have defaults
that reproduce the published behaviour. `load_config` reads a file and applies `section.key=value`
overrides. `sections.py` is the reference of what keys exist.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from utils.base.errors import UserError, one_line
from utils.config.faults import all_keys, fault_line, suggestion
from utils.config.published_keys import modernise, none_to_null
from utils.config.schema import Config
from utils.config.sections import SAMPLING_PRESETS


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    require: Sequence[str] = (),
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read a YAML file, apply overrides such as `train.lr=5e-5` and validate the result.

    `require` names keys without which the caller cannot work, e.g. `("data.root",)`.
    `flags`: command-line flag -> keys and values that it sets, e.g. `{"--tag": {"log.tag": "x"}}`.
    Raises a UserError that lists all faults, one line each, with the file or flag and the key.
    """
    raw = _read_yaml(Path(path))
    overridden = _apply_overrides(raw, overrides)
    _apply_flags(raw, flags or {}, overridden)
    return _validate(raw, str(path), require, overridden)


def config_from_dict(
    values: Mapping[str, Any], source: str = "checkpoint", overrides: Sequence[str] = ()
) -> Config:
    """Config out of a checkpoint's plain dict; overrides and faults as in `load_config`."""
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: its configuration is not sections such as `data` and `train`")
    raw = {str(name): dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}
    overridden = _apply_overrides(raw, overrides)
    return _validate(raw, source, overridden=overridden)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML itself lets the second of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not text", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"key {key.value!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load_yaml(text: str) -> Any:
    """Plain values from YAML; raises YAMLError for everything that is none."""
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except RecursionError as error:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply") from error
    except (ValueError, TypeError) as error:  # such as of a date that is none
        raise yaml.MarkedYAMLError(problem=one_line(error)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = _load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give --config a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file; give --config a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError(f"{path}{where}: not valid YAML: {problem}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: should hold sections such as `data:` and `train:`")
    # A section whose keys are all commented out reads as null.
    return {str(name): {} if value is None else value for name, value in raw.items()}


def _apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Set each `section.key=value` in `raw`; returns the dotted keys and what set them."""
    overridden = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and section and name) or "." in name:
            hint = suggestion(key, all_keys())
            raise UserError(f"override {text!r}: should look like section.key=value{hint}")
        try:
            parsed = _load_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(f"override {text!r}: the value is not valid YAML") from error
        _set(raw, f"{section}.{name}", parsed)
        overridden[f"{section}.{name}"] = "override"
    return overridden


def _apply_flags(
    raw: dict[str, Any], flags: Mapping[str, Mapping[str, Any]], overridden: dict[str, str]
) -> None:
    """Set the keys of each flag in `raw`, and add them to `overridden`."""
    for flag, values in flags.items():
        for key, value in values.items():
            there = _get(raw, key)
            if key in overridden and value != there and str(value) != str(there):
                raise UserError(
                    f"{flag} sets {key} to {value}, but {overridden[key]} on the same command line "
                    f"sets it to {there}; give one of them"
                )
            _set(raw, key, value)
            overridden[key] = flag


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    section, name = key.split(".")
    if not isinstance(raw.setdefault(section, {}), dict):
        raw[section] = {}
    raw[section][name] = value


def _validate(
    raw: dict[str, Any],
    source: str,
    require: Sequence[str] = (),
    overridden: Mapping[str, str] | None = None,
) -> Config:
    none_to_null(raw)
    if "sampling.preset" in (overridden or {}):
        # A preset on the command line comes before what the file says, not before other overrides.
        raw["sampling"] = {
            name: value
            for name, value in raw["sampling"].items()
            if name not in SAMPLING_PRESETS["paper"] or f"sampling.{name}" in overridden
        }
    faults = modernise(raw, source)
    faults += [
        f"{source}: {key}: required key is missing; set it there or add {key}=… to the command"
        for key in require
        if _get(raw, key) is None
    ]
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        faults += [fault_line(e, source, overridden or {}) for e in error.errors()]
    if faults:
        raise UserError("\n".join(faults))
    return config


def _get(values: Mapping[str, Any], key: str) -> Any:
    section, name = key.split(".")
    inner = values.get(section)
    return inner.get(name) if isinstance(inner, Mapping) else None
