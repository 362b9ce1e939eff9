"""Keys of published configs that today have another name, place or form."""

from collections.abc import Mapping
from typing import Any

from utils.base.errors import note
from utils.config.faults import short
from utils.config.sections import Model

# Keys of older published configs that change nothing here: whole sections, keys, `*.key` anywhere.
WITHOUT_EFFECT = (
    "wandb",
    "data.total_num",
    "data.random_flip",
    "model.cond_mask_ratio",
    "log.fid_every",
)
WITHOUT_EFFECT_ANYWHERE = ("truncation",)


def none_to_null(raw: dict[str, Any]) -> None:
    """Published configs write Python's None, which YAML reads as a string."""
    for section in filter(lambda s: isinstance(s, dict), raw.values()):
        section.update({k: None for k, v in section.items() if isinstance(v, str) and v == "None"})


def modernise(raw: dict[str, Any], source: str) -> list[str]:
    """Bring a published config's keys to today's, in place; returns the faults found."""
    faults = _modernise_perturbation(raw, source)
    ignored = [key for key in WITHOUT_EFFECT if _pop(raw, key)]
    for name, section in raw.items():
        if isinstance(section, dict):
            anywhere = [k for k in WITHOUT_EFFECT_ANYWHERE if k in section]
            ignored += [f"{name}.{k}" for k in anywhere if _pop(raw, f"{name}.{k}")]
    if ignored:
        note(f"{source}: these keys have no effect here: {', '.join(ignored)}")

    model, data = section_of(raw, "model"), section_of(raw, "data")
    side = data.get("resolution")
    if isinstance(side, int) and side == model.get("in_size", Model().in_size):
        # Published configs give the side of the latents here; their autoencoders reduce 8 times.
        data["resolution"] = 8 * side
        note(f"{source}: data.resolution {side} is the latents' side; read as {8 * side} pixels")
    return faults


def _modernise_perturbation(raw: dict[str, Any], source: str) -> list[str]:
    model, train = section_of(raw, "model"), section_of(raw, "train")
    if isinstance(model.get("perturbation"), bool):
        # Published configs that have this key and no type date from when "fixed" was the only one.
        if train.get("perturbation"):
            train.setdefault("perturbation_type", "fixed")
    elif "perturbation" in model:  # the place of train's in older configs
        value = model.pop("perturbation")
        raw.setdefault("train", train)
        if train.setdefault("perturbation", value) != value:
            return [
                f"{source}: model.perturbation: {short(value)} contradicts train.perturbation "
                f"({short(train['perturbation'])}); keep train.perturbation"
            ]
    kind = train.get("perturbation_type", "")
    if kind in (None, "none"):
        del train["perturbation_type"]
        if train.get("perturbation"):
            return [
                f"{source}: train.perturbation_type: {kind} contradicts train.perturbation "
                f"({short(train['perturbation'])}); give a type, or set that to 0"
            ]
    bound = train.get("truncation")
    is_truncated = isinstance(kind, str) and kind.endswith(("trunc_gaussian", "truncated"))
    if is_truncated and isinstance(bound, int | float) and not {"trunc_a", "trunc_b"} & set(train):
        del train["truncation"]
        train |= {"trunc_a": -bound, "trunc_b": bound}
        note(f"{source}: train.truncation {bound} is read as trunc_a {-bound}, trunc_b {bound}")
    return []


def section_of(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The section as it stands in `raw`; an empty dict that is no part of it if there is none."""
    return raw[name] if isinstance(raw.get(name), dict) else {}


def _pop(raw: dict[str, Any], key: str) -> bool:
    """Remove `section` or `section.key`; tells whether it was there."""
    section, _, name = key.partition(".")
    holder = raw.get(section) if name else raw
    if not isinstance(holder, dict) or (name or section) not in holder:
        return False
    del holder[name or section]
    return True
