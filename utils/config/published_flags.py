"""The command-line flags of the published text-to-face scripts, and the key that each one sets.

A flag on the command line has the effect of `key=value` there, and so wins over the YAML file.
Flags that no longer change anything are accepted too; `note_void_flags` prints why.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

from models.choices import Discretization, NoiseSchedule, SignalScaling, Solver
from utils.base.errors import note
from utils.config.command_line import either
from utils.config.parsing import parse_scale, parse_seeds, text_or_none
from utils.config.raw_values import get_value
from utils.config.schema import Config


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
        "number of embeddings of an image, from its first on, among which one is drawn; None = all",
        "data.num_features_per_sample",
    ),
    "train_global_batch": Flag(
        "images per training step, which the experiment folder's name states", "train.batchsize"
    ),
    "seeds": Flag(
        "seeds of the images, e.g. 0-63,100; None = sampling.seed and those after it", "eval.seeds"
    ),
    "class_idx": Flag(
        "class to draw, for models of class labels; None = a random one for each seed",
        "eval.class_idx",
    ),
    "max_batch_size": Flag("images that a process draws at once", "eval.batchsize"),
    "fid_batch_size": Flag("images that a process judges at once", "eval.batchsize"),
    "cfg_scale": Flag(
        "guidance scales, e.g. 2.0,None; None is the condition alone; [] = sampling.cfg_scale",
        "eval.cfg_scales",
        convert=lambda text: [parse_scale(part) for part in text.split(",")],
    ),
    "num_steps": Flag("noise levels of the sampler, e.g. 10,40", "sampling.num_steps"),
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
        f"noise level sigma(t): {either([*get_args(NoiseSchedule), 'None'])}", "sampling.schedule"
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
JUDGING = ("seeds", "class_idx", "max_batch_size", "ref_path", "num_expected", "fid_batch_size")
TRAINING = (
    "global_seed", "num_workers", "no_amp", "use_ckpt_path", "tag", "num_features_per_sample",
    "local_rank",
)  # fmt: skip

# Flags of the training that mean nothing to the evaluation.
EVALUATION_VOID = {
    "global_seed": Flag("seed", void="each image has a seed of its own, see --seeds"),
    "num_workers": Flag("image loaders", void="images are judged from memory, none is loaded"),
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
        # Images are drawn and judged in one pass, in which neither limit may be exceeded.
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
    idle = [f"--{name}" for name in JUDGING if hasattr(args, name)]
    if idle and not getattr(args, "enable_eval", True):
        note(f"{', '.join(idle)}: only for evaluations, which --enable_eval turns on")


def _default_of(key: str) -> str:
    """Return the default of a config key as text for argparse, which reads % as a format."""
    if not key:
        return ""
    value = get_value(Config().to_dict(), key)
    return repr(value) if value == "" else str(value).replace("%", "%%")
