"""Keys of published configs that today have another name, place or form.

Published configs are those of the text-to-face code and of the MaskDiT code that it is based on.
"""

from collections.abc import Mapping
from typing import Any

from utils.base.errors import note, short_repr
from utils.config.raw_values import remove, section_of
from utils.config.text_keys import is_text, may_be_null

# Published sections and keys that have no effect here.
WITHOUT_EFFECT = (
    "wandb",
    "data.total_num",
    "data.random_flip",
    "model.cond_mask_ratio",
    "log.fid_every",
)
SIDES = {"data.resolution", "model.in_size"}
WITHOUT_EFFECT_ANYWHERE = ("truncation",)  # keys without effect in every section


def replace_none_words(raw: dict[str, Any]) -> None:
    """Replace the word None by null, in place: published configs write None, a string in YAML.

    A text that may not be null is the word.
    """
    for name in raw:
        section = section_of(raw, name)
        for key in [key for key, value in section.items() if value == "None"]:
            if may_be_null(f"{name}.{key}") or not is_text(f"{name}.{key}"):
                section[key] = None


def translate_published_keys(
    raw: dict[str, Any], source: str, overridden: Mapping[str, str]
) -> list[str]:
    """Bring published keys to today's names and forms, in place; return the faults found.

    `source` names the configuration in the faults and in notes on stderr. `overridden`: keys that
    the command line sets, which always have today's meaning.
    """
    faults = _translate_perturbation(raw, source)
    ignored = [key for key in WITHOUT_EFFECT if remove(raw, key)]
    anywhere = [f"{section}.{name}" for section in raw for name in WITHOUT_EFFECT_ANYWHERE]
    ignored += [key for key in anywhere if remove(raw, key)]
    if ignored:
        note(f"{source}: these keys have no effect here: {', '.join(ignored)}")

    model, data = section_of(raw, "model"), section_of(raw, "data")
    side = data.get("resolution")
    if isinstance(side, int) and side == model.get("in_size") and not SIDES & overridden.keys():
        # Published configs give the side of the latents here; their autoencoders reduce 8 times.
        data["resolution"] = 8 * side
        note(f"{source}: data.resolution {side} is the latents' side; read as {8 * side} pixels")
        ignored.append("data.resolution")
    if ignored:  # only a published config has these keys, and its average never ramps
        raw.setdefault("train", {})
        section_of(raw, "train").setdefault("ema_rampup", None)
    return faults


def _translate_perturbation(raw: dict[str, Any], source: str) -> list[str]:
    """Translate the keys of the perturbation, in place; return the faults found."""
    fault = _move_perturbation_to_train(raw, source) or _drop_type_none(raw, source)
    if not fault:
        _split_truncation(raw, source)
    return [fault] if fault else []


def _move_perturbation_to_train(raw: dict[str, Any], source: str) -> str:
    """Move the level of older configs from `model` to `train`; return a fault or an empty string.

    A true or false at its place says whether the network learns a perturbation, and stays.
    """
    model, train = section_of(raw, "model"), section_of(raw, "train")
    if "perturbation" not in model:
        return ""
    if isinstance(model["perturbation"], bool):
        # Published configs that have this key and no type date from when "fixed" was the only one.
        if train.get("perturbation"):
            train.setdefault("perturbation_type", "fixed")
        return ""
    value = model.pop("perturbation")
    raw.setdefault("train", train)
    if train.setdefault("perturbation", value) == value:
        return ""
    return (
        f"{source}: model.perturbation: {short_repr(value)} contradicts train.perturbation "
        f"({short_repr(train['perturbation'])}); keep train.perturbation"
    )


def _drop_type_none(raw: dict[str, Any], source: str) -> str:
    """Remove a perturbation_type of none or null; return a fault or an empty string."""
    train = section_of(raw, "train")
    kind = train.get("perturbation_type", "")
    if kind not in (None, "none"):
        return ""
    del train["perturbation_type"]
    if not train.get("perturbation"):
        return ""
    return (
        f"{source}: train.perturbation_type: {kind} contradicts train.perturbation "
        f"({short_repr(train['perturbation'])}); give a type, or set that to 0"
    )


def _split_truncation(raw: dict[str, Any], source: str) -> None:
    """Read the one bound of older truncated perturbations as both bounds."""
    train = section_of(raw, "train")
    kind, bound = train.get("perturbation_type"), train.get("truncation")
    is_truncated = isinstance(kind, str) and kind.endswith(("trunc_gaussian", "truncated"))
    if is_truncated and isinstance(bound, int | float) and not {"trunc_a", "trunc_b"} & set(train):
        del train["truncation"]
        train |= {"trunc_a": -bound, "trunc_b": bound}
        note(f"{source}: train.truncation {bound} is read as trunc_a {-bound}, trunc_b {bound}")
