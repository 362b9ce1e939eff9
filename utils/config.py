"""Configuration: YAML in, typed sections out, every fault named at once.

Sections and keys of the published configs keep their names and meaning; our own keys have defaults
that reproduce the published behaviour. `load_config` reads a file and applies `section.key=value`
overrides. `utils/config_sections.py` is the reference of what keys exist.
"""

import argparse
import difflib
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError, ValidationInfo, field_validator

from utils.config_sections import (
    SAMPLING_PRESETS,
    Data,
    Encoders,
    Eval,
    Log,
    Model,
    Sampling,
    Section,
    Train,
)
from utils.errors import UserError, note, one_line

DEFAULT_CONFIG = "configs/demo/demo.yaml"

# Keys of older published configs that change nothing here: whole sections, keys, `*.key` anywhere.
WITHOUT_EFFECT = (
    "wandb",
    "data.total_num",
    "data.random_flip",
    "model.cond_mask_ratio",
    "log.fid_every",
)
WITHOUT_EFFECT_ANYWHERE = ("truncation",)


class Config(Section):
    """All sections; agreement between them is checked here."""

    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    eval: Eval = Eval()
    log: Log = Log()
    encoders: Encoders = Encoders()
    sampling: Sampling = Sampling()

    @field_validator("model")
    @classmethod
    def _fits_data(cls, model: Model, info: ValidationInfo) -> Model:
        data = info.data.get("data")
        if data and data.num_channels != model.in_channels:
            raise ValueError(
                f"in_channels is {model.in_channels} but data.num_channels is {data.num_channels}"
            )
        is_condition = data and data.feat_path and not model.ext_feature_dim
        if is_condition and model.num_classes not in (0, data.feat_dim):
            raise ValueError(
                f"num_classes is {model.num_classes} but data.feat_dim is {data.feat_dim}; "
                "both are the dimension of the embeddings in data.feat_path"
            )
        return model

    @property
    def learns_perturbation(self) -> bool:
        """Whether the network has a perturbation of its condition that is trained with it."""
        train = self.train
        by_type = train.perturbation > 0 and train.perturbation_type == "learnable"
        return self.model.perturbation or by_type

    @property
    def samples_classes(self) -> bool:
        """Whether images are drawn of random classes, for want of embeddings to draw them of."""
        no_embeddings = self.data.feat_path is None and self.eval.feat_path is None
        return self.model.num_classes > 0 and no_embeddings

    def to_dict(self) -> dict[str, Any]:
        """Plain builtins only (paths as strings), accepted by `config_from_dict`."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Every key with its resolved value; reading it back gives an equal config."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """For scripts' parsers: shows every flag's default, and keeps the launch lines."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_said = action.required or not action.option_strings
        is_said |= "None = " in action.help or "(default: " in action.help
        if action.default is None or action.default is False:
            nothing = "none" if action.default is None else "off"
            return action.help if is_said else f"{action.help} (default: {nothing})"
        return super()._get_help_string(action)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and the `key=value` overrides; parse with `parser.parse_intermixed_args()`."""
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. train.lr=5e-5"
    )


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
            hint = _suggestion(key, _all_keys())
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
    _none_to_null(raw)
    if "sampling.preset" in (overridden or {}):
        # A preset on the command line comes before what the file says, not before other overrides.
        raw["sampling"] = {
            name: value
            for name, value in raw["sampling"].items()
            if name not in SAMPLING_PRESETS["paper"] or f"sampling.{name}" in overridden
        }
    faults = _modernise(raw, source)
    faults += [
        f"{source}: {key}: required key is missing; set it there or add {key}=… to the command"
        for key in require
        if _get(raw, key) is None
    ]
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        faults += [_fault(e, source, overridden or {}) for e in error.errors()]
    if faults:
        raise UserError("\n".join(faults))
    return config


def _none_to_null(raw: dict[str, Any]) -> None:
    """Published configs write Python's None, which YAML reads as a string."""
    for section in filter(lambda s: isinstance(s, dict), raw.values()):
        section.update({k: None for k, v in section.items() if isinstance(v, str) and v == "None"})


def _modernise(raw: dict[str, Any], source: str) -> list[str]:
    """Bring a published config's keys to today's, in place; returns the faults found."""
    faults = _modernise_perturbation(raw, source)
    ignored = [key for key in WITHOUT_EFFECT if _pop(raw, key)]
    for name, section in raw.items():
        if isinstance(section, dict):
            anywhere = [k for k in WITHOUT_EFFECT_ANYWHERE if k in section]
            ignored += [f"{name}.{k}" for k in anywhere if _pop(raw, f"{name}.{k}")]
    if ignored:
        note(f"{source}: these keys have no effect here: {', '.join(ignored)}")

    model, data = _section(raw, "model"), _section(raw, "data")
    side = data.get("resolution")
    if isinstance(side, int) and side == model.get("in_size", Model().in_size):
        # Published configs give the side of the latents here; their autoencoders reduce 8 times.
        data["resolution"] = 8 * side
        note(f"{source}: data.resolution {side} is the latents' side; read as {8 * side} pixels")
    return faults


def _modernise_perturbation(raw: dict[str, Any], source: str) -> list[str]:
    model, train = _section(raw, "model"), _section(raw, "train")
    if isinstance(model.get("perturbation"), bool):
        # Published configs that have this key and no type date from when "fixed" was the only one.
        if train.get("perturbation"):
            train.setdefault("perturbation_type", "fixed")
    elif "perturbation" in model:  # the place of train's in older configs
        value = model.pop("perturbation")
        raw.setdefault("train", train)
        if train.setdefault("perturbation", value) != value:
            return [
                f"{source}: model.perturbation: {_short(value)} contradicts train.perturbation "
                f"({_short(train['perturbation'])}); keep train.perturbation"
            ]
    kind = train.get("perturbation_type", "")
    if kind in (None, "none"):
        del train["perturbation_type"]
        if train.get("perturbation"):
            return [
                f"{source}: train.perturbation_type: {kind} contradicts train.perturbation "
                f"({_short(train['perturbation'])}); give a type, or set that to 0"
            ]
    bound = train.get("truncation")
    is_truncated = isinstance(kind, str) and kind.endswith(("trunc_gaussian", "truncated"))
    if is_truncated and isinstance(bound, int | float) and not {"trunc_a", "trunc_b"} & set(train):
        del train["truncation"]
        train |= {"trunc_a": -bound, "trunc_b": bound}
        note(f"{source}: train.truncation {bound} is read as trunc_a {-bound}, trunc_b {bound}")
    return []


def _section(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The section as it stands in `raw`; an empty dict that is no part of it if there is none."""
    return raw[name] if isinstance(raw.get(name), dict) else {}


def _fault(error: Mapping[str, Any], source: str, overridden: Mapping[str, str]) -> str:
    """One line for one of pydantic's errors."""
    names = [str(part)[:100] for part in error["loc"]]
    location = [name if name.isprintable() else repr(name) for name in names]
    key = ".".join(location)
    where = overridden.get(".".join(location[:2]), f"{source}:")
    if error["type"] == "extra_forbidden":
        known = _all_keys() if len(location) > 1 else list(Config.model_fields)
        return f"{where} {key}: unknown key{_suggestion(key, known)}"
    got = _short(error["input"])
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{where} {key}: should be a section of keys, got {got}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    message = message.partition(", unable to parse")[0]
    if error["type"] == "value_error":
        return f"{where} {key}: {message}"
    hint = ""
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        hint = _suggestion(error["input"], _choices(location))
    return f"{where} {key}: {message}, got {got}{hint}"


def _short(value: Any) -> str:
    """A value for a message, of bounded length however its parts refer to each other."""
    bounded = reprlib.Repr()
    bounded.maxlevel, bounded.maxlist, bounded.maxdict = 2, 3, 3
    bounded.maxstring, bounded.maxother = 80, 80
    try:
        return bounded.repr(value)
    except ValueError:
        return "a number of too many digits"


def _all_keys() -> list[str]:
    return [f"{s}.{k}" for s, f in Config.model_fields.items() for k in f.annotation.model_fields]


def _choices(location: Sequence[str]) -> list[str]:
    """The strings that a key with fixed choices accepts."""
    annotation = Config.model_fields[location[0]].annotation.model_fields[location[1]].annotation
    nested = [get_args(a) if get_args(a) else (a,) for a in get_args(annotation)]
    return [choice for group in nested for choice in group if isinstance(choice, str)]


def _suggestion(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?` for a close name, or for the same key in another section."""
    name = word.rsplit(".", 1)[-1]
    elsewhere = [k for k in known if k.rsplit(".", 1)[-1] == name]
    close = elsewhere or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _get(values: Mapping[str, Any], key: str) -> Any:
    section, name = key.split(".")
    inner = values.get(section)
    return inner.get(name) if isinstance(inner, Mapping) else None


def _pop(raw: dict[str, Any], key: str) -> bool:
    """Remove `section` or `section.key`; tells whether it was there."""
    section, _, name = key.partition(".")
    holder = raw.get(section) if name else raw
    if not isinstance(holder, dict) or (name or section) not in holder:
        return False
    del holder[name or section]
    return True
