"""Reading a configuration: YAML becomes typed sections, and all faults are named at once.

Sections and keys of the published configs keep their names and meaning. Keys of our own have
defaults that reproduce the published behaviour, but for `train.ema_rampup`: the configs of
published runs name it, and `published.py` sets it in the original files. `sections.py` lists
all keys.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from utils.base.errors import UserError, short_repr
from utils.config.faults import all_keys, fault_line, suggestion
from utils.config.published import (
    present_name,
    rename_keys,
    replace_none_words,
    translate_published_keys,
)
from utils.config.schema import Config
from utils.config.text_keys import is_text, keep_text, may_be_null
from utils.config.yaml_files import (
    forget_replaced,
    get_value,
    load_yaml,
    read_yaml,
    set_value,
)


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    require: Sequence[str] = (),
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read a YAML file, apply overrides and flags, and validate the result.

    Args:
        path: the YAML file; `base: other.yaml` in it starts from another file, relative to it.
        overrides: texts `section.key=value`, e.g. `train.lr=5e-5`; the value is YAML, but for keys
            of text or path, which take all that follows the first `=` as it is.
        require: keys that the caller cannot work without, e.g. `("data.root",)`.
        flags: command-line flag → keys and values that it sets, e.g. `{"--tag": {"log.tag": "x"}}`.

    Raises UserError with all faults, one line each, with the file or flag and the key.
    """
    raw, places = read_yaml(Path(path))
    rename_keys(raw, is_file=True)
    overridden = _apply(raw, overrides, flags or {})
    return _validate(raw, str(path), require, overridden, places)


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
    rename_keys(raw, is_file=False)
    return _validate(raw, source, require, _apply(raw, overrides, flags or {}))


def _apply(
    raw: dict[str, Any], overrides: Sequence[str], flags: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Set overrides and flags in `raw`; return each key that they set, with its origin.

    Raise UserError for an override of another form, and if two of them give a key other values.
    """
    overridden = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = present_name(key.strip())
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name) or "." in name:
            hint = suggestion(key, all_keys())
            raise UserError(
                f"override {short_repr(text)}: should look like section.key=value{hint}"
            )
        try:
            parsed = _read_value(key, value)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "no value"
            message = f"override {short_repr(text)}: not valid YAML: {problem}"
            raise UserError(message) from error
        set_value(raw, key, parsed)
        overridden[key] = "override"
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
    return overridden


def _read_value(key: str, text: str) -> Any:
    """Return the value of an override: the text itself for keys of text or path, else YAML.

    Nothing, and the word null, mean null where the key may be null; `replace_none_words` adds None.
    """
    if is_text(key):
        return None if may_be_null(key) and text in ("", "null") else text
    return load_yaml(text, lambda node: keep_text(node, key))


def _validate(
    raw: dict[str, Any],
    source: str,
    require: Sequence[str],
    overridden: Mapping[str, str],
    places: Mapping[str, str] | None = None,
) -> Config:
    """Return the config of raw values (which are changed); raise UserError with all faults.

    `overridden`: keys that the command line set, with the override's or flag's name. `places`: the
    file of each section and key, where it is not `source`.
    """
    origins = {key: f"{file}:" for key, file in (places or {}).items()} | dict(overridden)
    replace_none_words(raw)
    forget_replaced(raw, overridden)
    faults = translate_published_keys(raw, source, overridden)
    faults += [
        f"{source}: {key}: required key is missing; set it there or add {key}=… to the command"
        for key in require
        if get_value(raw, key) is None
    ]
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        faults += [fault_line(e, source, origins) for e in error.errors()]
    if faults:
        raise UserError("\n".join(faults))
    return config
