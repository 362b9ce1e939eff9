"""Names of keys and flags that other versions use: those of the published code, and of 0.2.

Published configs are those of the text-to-face code and of the MaskDiT code that it is based on.
Their keys keep their names and meaning; those with another name, place or form are translated here.
A published flag on the command line has the effect of `key=value` there, and so wins over the YAML
file. Flags that no longer change anything are accepted too; `note_void_flags` prints why.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from models.choices import Discretization, NoiseSchedule, SignalScaling, Solver
from utils.base.errors import note, short_repr
from utils.config.command_line import either
from utils.config.parsing import parse_scale, parse_seeds, text_or_none
from utils.config.schema import Config
from utils.config.text_keys import is_text, may_be_null
from utils.config.yaml_files import get_value, remove, section_of, set_value

# Our own keys of 0.2 -> their present names.
RENAMED_KEYS = {"prior.levels": "prior.noise_range"}

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


def present_name(key: str) -> str:
    """Return the present name of `section.key`, with a note if the key is one of 0.2."""
    if key in RENAMED_KEYS:
        note(f"{key} is now called {RENAMED_KEYS[key]}")
    return RENAMED_KEYS.get(key, key)


def rename_keys(raw: dict[str, Any], *, is_file: bool) -> None:
    """Give keys of 0.2 their present names, in place; note those that a user's file holds."""
    for old, new in RENAMED_KEYS.items():
        if (value := get_value(raw, old)) is not None:
            remove(raw, old)
            set_value(raw, present_name(old) if is_file else new, value)


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
    """Bring published keys to the present names and forms, in place; return the faults found.

    `source` names the configuration in the faults and in notes on stderr. `overridden`: keys that
    the command line sets, which always have their present meaning.
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
    model, train = section_of(raw, "model"), section_of(raw, "train")
    if isinstance(model.get("perturbation"), bool):
        # It says whether the network learns a perturbation. Published configs that have this key
        # and no type date from when "fixed" was the only one.
        if train.get("perturbation"):
            train.setdefault("perturbation_type", "fixed")
    elif "perturbation" in model:  # older configs give the noise scale here
        value = model.pop("perturbation")
        raw.setdefault("train", train)
        if train.setdefault("perturbation", value) != value:
            return [
                f"{source}: model.perturbation: {short_repr(value)} contradicts train.perturbation "
                f"({short_repr(train['perturbation'])}); keep train.perturbation"
            ]
    kind, bound = train.get("perturbation_type", ""), train.get("truncation")
    if kind in (None, "none"):
        del train["perturbation_type"]
        if train.get("perturbation"):
            return [
                f"{source}: train.perturbation_type: {kind} contradicts train.perturbation "
                f"({short_repr(train['perturbation'])}); give a type, or set that to 0"
            ]
    is_truncated = isinstance(kind, str) and kind.endswith(("trunc_gaussian", "truncated"))
    if is_truncated and isinstance(bound, int | float) and not {"trunc_a", "trunc_b"} & set(train):
        del train["truncation"]  # one bound of older configs is both bounds
        train |= {"trunc_a": -bound, "trunc_b": bound}
        note(f"{source}: train.truncation {bound} is read as trunc_a {-bound}, trunc_b {bound}")
    return []


@dataclass(frozen=True)
class Flag:
    """One flag: its meaning, and the config key that it sets or the reason why it has no effect."""

    help: str
    key: str = ""
    convert: Callable[[str], Any] = text_or_none  # from the command line's text to the key's value
    is_switch: bool = False  # is given without a value
    void: str = ""  # why the flag has no effect
    harmless: tuple[str, ...] = ("None",)  # values without effect in the published scripts too


FLAGS = {
    "global_seed": Flag(
        "seed of the first weights, the order of images and the noise", "train.seed"
    ),
    "num_workers": Flag("threads that read batches ahead; 0 = one thread", "train.num_workers"),
    "no_amp": Flag(
        "compute everything in float32", "train.amp", convert=lambda _: "no", is_switch=True
    ),
    "tag": Flag("ending of the experiment folder's name", "log.tag", convert=str),
    "num_features_per_sample": Flag(
        "number of embeddings of an image, from its first on, of which each step takes one at "
        "random; None = all",
        "data.num_features_per_sample",
    ),
    "train_global_batch": Flag(
        "images per training step, which the experiment folder's name states", "train.batchsize"
    ),
    "seeds": Flag(
        "seeds of the images, e.g. 0-63,100; None = sampling.seed and those after it", "eval.seeds"
    ),
    "class_idx": Flag(
        "class to sample, for models of class labels; None = a random one for each seed",
        "eval.class_idx",
    ),
    "max_batch_size": Flag("images that a process samples at once", "eval.batchsize"),
    "fid_batch_size": Flag("images that a process evaluates at once", "eval.batchsize"),
    "cfg_scale": Flag(
        "guidance scales, e.g. 2.0,None; None is the condition alone; [] = sampling.cfg_scale",
        "eval.cfg_scales",
        convert=lambda text: [parse_scale(part) for part in text.split(",")],
    ),
    "num_steps": Flag("sigmas of the sampler, e.g. 10,40", "sampling.num_steps"),
    "S_churn": Flag("noise added between the sampler's steps, 0 = none", "sampling.S_churn"),
    "solver": Flag(
        f"{either(get_args(Solver))}, or a list of them; None = heun",
        "sampling.solver",
        convert=lambda text: "heun" if text == "None" else text,
    ),
    "discretization": Flag(
        f"time steps: {either([*get_args(Discretization), 'None'])}", "sampling.discretization"
    ),
    "schedule": Flag(
        f"schedule sigma(t): {either([*get_args(NoiseSchedule), 'None'])}",
        "sampling.schedule",
    ),
    "scaling": Flag(
        f"signal scale s(t): {either([*get_args(SignalScaling), 'None'])}", "sampling.scaling"
    ),
    "pretrained_path": Flag(
        "weights of the VAE: file, folder or hub name", "encoders.vae", convert=str
    ),
    "ref_path": Flag("npz of reference statistics", "eval.ref_path"),
    "num_expected": Flag(
        "images from which the Fréchet distance is computed", "eval.fid_sample_size"
    ),
    "subdirs": Flag(
        "put the images that are kept into a folder for every 1000 seeds",
        "eval.subdirs",
        convert=lambda _: True,
        is_switch=True,
    ),
    "local_rank": Flag(
        "index of the process on its node",
        void="the launcher gives each process its own index",
        harmless=("None", "0"),
    ),
    "use_ckpt_path": Flag(
        "go on in the folder of --ckpt_path",
        void="a new run takes its weights from --ckpt_path and has a folder of its own (as with "
        "False); to go on with a run, start its own command again",
        harmless=("False", "false", "no", "0"),
    ),
}

# Evaluation keys that these flags set if they are given a list; one value sets the flag's own key.
LISTS = {"--num_steps": "eval.num_steps", "--solver": "eval.solvers"}
SAMPLING = (
    "seeds", "subdirs", "class_idx", "max_batch_size", "cfg_scale", "num_steps", "S_churn",
    "solver", "discretization", "schedule", "scaling", "pretrained_path", "ref_path",
    "num_expected", "fid_batch_size",
)  # fmt: skip
EVALUATING = ("seeds", "class_idx", "max_batch_size", "ref_path", "num_expected", "fid_batch_size")
TRAINING = (
    "global_seed", "num_workers", "no_amp", "use_ckpt_path", "tag", "num_features_per_sample",
    "local_rank",
)  # fmt: skip

# Flags of the training that mean nothing to the evaluation.
EVALUATION_VOID = {
    "global_seed": Flag("seed", void="each image has a seed of its own, see --seeds"),
    "num_workers": Flag("image loaders", void="images are evaluated from memory, none is loaded"),
}


def add_published_flags(parser: argparse.ArgumentParser, names: Iterable[str], **own: Flag) -> None:
    """Add the flags `names` of the table, and the script's `own` flags, to a parser.

    `flag_settings` and `note_void_flags` read their values.
    """
    group = parser.add_argument_group("published flags; each sets a key of the config")
    flags = {name: FLAGS[name] for name in names} | own
    for name, flag in flags.items():
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if flag.is_switch:
            options |= {"action": "store_const", "const": "True"}
        about = f"{flag.help} (default: {flag.key} of the config, or else {_default_of(flag.key)})"
        if flag.void:
            about = f"{flag.help}; has no effect: {flag.void} (default: not given)"
        group.add_argument(f"--{name}", help=about, **options)
    parser.set_defaults(published=flags)


def flag_settings(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return each given flag with the config keys that it sets and their values.

    Raise UserError if a list of seeds or guidance scales is malformed.
    """
    given = {
        name: (flag, getattr(args, name))
        for name, flag in args.published.items()
        if flag.key and hasattr(args, name)
    }
    found = {f"--{name}": {flag.key: flag.convert(text)} for name, (flag, text) in given.items()}
    if scales := found.get("--cfg_scale"):
        scales["sampling.cfg_scale"] = scales["eval.cfg_scales"][0]
    for flag, key in LISTS.items():
        if flag in found:
            ((single, value),) = found[flag].items()
            parts = [part.strip() for part in str(value).split(",")]
            found[flag] = {key: parts} if len(parts) > 1 else {single: value, key: []}
    if (seeds := found.get("--seeds")) and seeds["eval.seeds"]:
        count = len(parse_seeds(seeds["eval.seeds"]))
        if "--num_expected" not in found:
            seeds["eval.fid_sample_size"] = count
    sizes = [given[name][1] for name in ("max_batch_size", "fid_batch_size") if name in given]
    if len(sizes) == 2 and all(size.isdigit() for size in sizes):
        # Images are sampled and evaluated in one pass, in which neither limit may be exceeded.
        found["--max_batch_size"] = {"eval.batchsize": min(sizes, key=int)}
        del found["--fid_batch_size"]
    return found


def note_void_flags(args: argparse.Namespace) -> None:
    """Print a line on stderr for each given flag that has no effect.

    These are the void flags, and flags of the evaluation in a training without --enable_eval.
    """
    for name, flag in args.published.items():
        value = getattr(args, name, None)
        if not flag.void or value is None or value in flag.harmless:
            continue
        if name == "local_rank" and os.environ.get("LOCAL_RANK") == value:
            continue
        note(f"--{name} has no effect: {flag.void}")
    idle = [f"--{name}" for name in EVALUATING if hasattr(args, name)]
    if idle and not getattr(args, "enable_eval", True):
        note(f"{', '.join(idle)}: only for evaluations, which --enable_eval turns on")


def _default_of(key: str) -> str:
    """Return the default of a config key as text for argparse, which reads % as a format."""
    if not key:
        return ""
    value = get_value(Config().to_dict(), key)
    return repr(value) if value == "" else str(value).replace("%", "%%")
