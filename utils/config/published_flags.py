"""The command-line flags of the published scripts: a table from each flag to the key it sets.

A flag given on the command line is the same as `key=value` there, and so wins over the YAML file.
Flags that can no longer change anything are accepted too; `note_void_flags` says why.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from utils.base.errors import note
from utils.config.parsing import none_or_text, parse_scale, parse_seeds
from utils.config.schema import Config


@dataclass(frozen=True)
class Flag:
    """One flag: its meaning, and either the config key that it sets or why it has no effect."""

    help: str
    key: str = ""
    convert: Callable[[str], Any] = none_or_text  # from the command line's text to the key's value
    is_switch: bool = False  # takes no value
    void: str = ""
    harmless: tuple[str, ...] = ("None",)  # values that changed nothing before either


FLAGS = {
    "global_seed": Flag("seed of first weights, order of images and noise", "train.seed"),
    "num_workers": Flag("threads that read batches ahead; 0 = one", "train.num_workers"),
    "no_amp": Flag(
        "no mixed precision: all in float32", "train.amp", convert=lambda _: "no", is_switch=True
    ),
    "tag": Flag("ending of the experiment folder's name", "log.tag", convert=str),
    "num_features_per_sample": Flag(
        "draw among the first so many embeddings of an image; None = all of them",
        "data.num_features_per_sample",
    ),
    "train_global_batch": Flag(
        "images per training step, part of the experiment folder's name", "train.batchsize"
    ),
    "seeds": Flag(
        "seeds of the images to judge, e.g. 0-63,100; None = sampling.seed and after", "eval.seeds"
    ),
    "class_idx": Flag(
        "class to draw, for models of class labels; None = one at random for each seed",
        "eval.class_idx",
    ),
    "max_batch_size": Flag("images per process drawn at once", "eval.batchsize"),
    "fid_batch_size": Flag("images per process judged at once", "eval.batchsize"),
    "cfg_scale": Flag(
        "guidance scales, e.g. 2.0,None where None is the condition alone; [] = sampling.cfg_scale",
        "eval.cfg_scales",
        convert=lambda text: [parse_scale(part) for part in text.split(",")],
    ),
    "num_steps": Flag("noise levels of the sampler, e.g. 10,40", "sampling.num_steps"),
    "S_churn": Flag("noise added between the sampler's steps, 0 = none", "sampling.S_churn"),
    "solver": Flag(
        "heun, euler or dpmpp_2m, or a list of them; None = heun",
        "sampling.solver",
        convert=lambda text: "heun" if text == "None" else text,
    ),
    "discretization": Flag("time steps: vp, ve, iddpm, edm or None", "sampling.discretization"),
    "schedule": Flag("noise level sigma(t): vp, ve, linear or None", "sampling.schedule"),
    "scaling": Flag("signal scale s(t): vp, none or None", "sampling.scaling"),
    "pretrained_path": Flag(
        "weights of the VAE: file, folder or hub name", "encoders.vae", convert=str
    ),
    "ref_path": Flag("npz of reference statistics", "eval.ref_path"),
    "num_expected": Flag("images that the Fréchet distance is made from", "eval.fid_sample_size"),
    "subdirs": Flag(
        "a folder for every 1000 seeds, among the images that are kept",
        "eval.subdirs",
        convert=lambda _: True,
        is_switch=True,
    ),
    "local_rank": Flag(
        "index of the process on its node",
        void="the launcher tells each process its own",
        harmless=("None", "0"),
    ),
    "use_ckpt_path": Flag(
        "go on in the folder of --ckpt_path",
        void="a new run has a folder of its own, and --ckpt_path gives its weights (what False "
        "did); a run is continued by its own command",
        harmless=("False", "false", "no", "0"),
    ),
}

# Flags that take a list: the key that it sets, for evaluation; a single value sets the flag's key.
LISTS = {"--num_steps": "eval.num_steps", "--solver": "eval.solvers"}
SAMPLING = (
    "seeds", "subdirs", "class_idx", "max_batch_size", "cfg_scale", "num_steps", "S_churn",
    "solver", "discretization", "schedule", "scaling", "pretrained_path", "ref_path",
    "num_expected", "fid_batch_size",
)  # fmt: skip
JUDGING = ("seeds", "class_idx", "max_batch_size", "ref_path", "num_expected", "fid_batch_size")
TRAINING = (
    "global_seed", "num_workers", "no_amp", "use_ckpt_path", "tag", "num_features_per_sample",
    "local_rank",
)  # fmt: skip

# What seeds and workers meant to the training means nothing to the evaluation.
EVALUATION_VOID = {
    "global_seed": Flag("seed", void="each image has a seed of its own, see --seeds"),
    "num_workers": Flag(
        "image loaders", void="what is drawn is judged from memory, there is nothing to load"
    ),
}


def add_published_flags(parser: argparse.ArgumentParser, names: Iterable[str], **own: Flag) -> None:
    """Add the flags `names` of the table, and flags of the script's `own`, to a parser.

    Their values are found with `flag_settings` and `note_void_flags`.
    """
    group = parser.add_argument_group("published flags, each the same as key=value of the config")
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
    """Flag -> config keys and values that it sets, for those that were given."""
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
        # Images are drawn and judged in one pass, in which neither limit may be exceeded.
        found["--max_batch_size"] = {"eval.batchsize": min(sizes, key=int)}
        del found["--fid_batch_size"]
    return found


def note_void_flags(args: argparse.Namespace) -> None:
    """One line on stderr for each given flag that cannot change what it used to change.

    A training without --enable_eval says so too of flags that only evaluations read.
    """
    for name, flag in args.published.items():
        value = getattr(args, name, None)
        if not flag.void or value is None or value in flag.harmless:
            continue
        if name == "local_rank" and os.environ.get("LOCAL_RANK") == value:
            continue
        note(f"--{name} has no effect: {flag.void}")
    idle = [f"--{name}" for name in JUDGING if hasattr(args, name)]
    if idle and not getattr(args, "enable_eval", True):
        note(f"{', '.join(idle)}: only for evaluations, which --enable_eval turns on")


def _default_of(key: str) -> str:
    """The value that a key has where the YAML does not set it, for people."""
    if not key:
        return ""
    section, name = key.split(".")
    value = getattr(getattr(Config(), section), name)
    return repr(value) if value == "" else str(value).replace("%", "%%")
