"""Reading a configuration: YAML becomes typed sections, and all faults are named at once.

Sections and keys of the published configs keep their names and meaning; keys of our own have
defaults that reproduce the published behaviour. `sections.py` lists all keys.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from utils.base.errors import UserError, one_line
from utils.config.faults import all_keys, fault_line, suggestion
from utils.config.published_keys import replace_none_words, translate_published_keys
from utils.config.raw_values import get_value, section_of, set_value
from utils.config.schema import Config
from utils.config.sections import SAMPLING_PRESETS


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    require: Sequence[str] = (),
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read a YAML file, apply overrides and flags, and validate the result.

    Args:
        path: the YAML file.
        overrides: texts `section.key=value`, e.g. `train.lr=5e-5`; the value is YAML.
        require: keys that the caller cannot work without, e.g. `("data.root",)`.
        flags: command-line flag → keys and values that it sets, e.g. `{"--tag": {"log.tag": "x"}}`.

    Raises UserError with all faults, one line each, with the file or flag and the key.
    """
    raw = _read_yaml(Path(path))
    overridden = _apply_overrides(raw, overrides)
    _apply_flags(raw, flags or {}, overridden)
    return _validate(raw, str(path), require, overridden)


def config_from_dict(
    values: Mapping[str, Any],
    source: str = "checkpoint",
    overrides: Sequence[str] = (),
    require: Sequence[str] = (),
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Validate the plain dict of a checkpoint; further arguments and faults as in `load_config`."""
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: the configuration should hold sections, e.g. `data:`")
    raw = {str(name): dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}
    overridden = _apply_overrides(raw, overrides)
    _apply_flags(raw, flags or {}, overridden)
    return _validate(raw, source, require, overridden)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML loader that refuses a second key of one name, where YAML takes it in silence."""

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


def _load_yaml(text: str) -> Any:
    """Return the plain values of a YAML text; raise YAMLError for every fault."""
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except RecursionError as error:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply") from error
    except (ValueError, TypeError) as error:  # e.g. a date that does not exist
        raise yaml.MarkedYAMLError(problem=one_line(error)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return the sections of a YAML file; raise UserError if it holds none."""
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
        raise UserError(f"{path}: should hold sections, e.g. `data:` and `train:`")
    # A section whose keys are all commented out reads as null.
    return {str(name): {} if value is None else value for name, value in raw.items()}


def _apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Set each `section.key=value` in `raw`; return each dotted key with the word "override"."""
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
        set_value(raw, f"{section}.{name}", parsed)
        overridden[f"{section}.{name}"] = "override"
    return overridden


def _apply_flags(
    raw: dict[str, Any], flags: Mapping[str, Mapping[str, Any]], overridden: dict[str, str]
) -> None:
    """Set the keys of each flag in `raw`, and add them to `overridden` with the flag's name.

    Raise UserError if an override or another flag gives a key another value.
    """
    for flag, values in flags.items():
        for key, value in values.items():
            there = get_value(raw, key)
            if key in overridden and value != there and str(value) != str(there):
                raise UserError(
                    f"{flag} sets {key} to {value}, but {overridden[key]} on the same command line "
                    f"sets it to {there}; give one of them"
                )
            set_value(raw, key, value)
            overridden[key] = flag


def _validate(
    raw: dict[str, Any], source: str, require: Sequence[str], overridden: Mapping[str, str]
) -> Config:
    """Return the config of raw values (which are changed); raise UserError with all faults.

    `overridden`: keys that the command line set, with the override's or flag's name.
    """
    replace_none_words(raw)
    if "sampling.preset" in overridden:
        _forget_preset_values(raw, overridden)
    faults = translate_published_keys(raw, source)
    faults += [
        f"{source}: {key}: required key is missing; set it there or add {key}=… to the command"
        for key in require
        if get_value(raw, key) is None
    ]
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        faults += [fault_line(e, source, overridden) for e in error.errors()]
    if faults:
        raise UserError("\n".join(faults))
    return config


def _forget_preset_values(raw: dict[str, Any], overridden: Mapping[str, str]) -> None:
    """Remove the file's values for keys that a preset sets: a preset on the command line wins.

    Other overrides of these keys stay, since they are more specific than the preset.
    """
    sampling = section_of(raw, "sampling")
    for name in SAMPLING_PRESETS["paper"]:
        if f"sampling.{name}" not in overridden:
            sampling.pop(name, None)
