"""The command line of train_latent_t2f.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.base.errors import UserError, note
from utils.base.launch import add_launch_arguments, relaunch
from utils.config.command_line import DEFAULT_CONFIG, ArgumentParser, add_config_arguments
from utils.config.parsing import path_or_none, true_or_false
from utils.config.published import (
    SAMPLING,
    TRAINING,
    add_published_flags,
    flag_settings,
    note_void_flags,
)
from utils.config.schema import Config
from utils.data.derived_sizes import with_derived_sizes
from utils.pretrained.checkpoint_files import stored_config
from utils.pretrained.effective_config import experiment_config, find_network, read_config
from utils.training.run_log import require_wandb


def parse_args(description: str | None = None) -> argparse.Namespace:
    """Read the command line; the script's docstring is the description."""
    parser = ArgumentParser(description=description)
    add_config_arguments(
        parser,
        instead="that of the run which --exp_name continues, or else of --ckpt_path, or else "
        f"{DEFAULT_CONFIG}",
    )
    parser.add_argument("--exp_name", help="name of the experiment folder; None = from the config")
    parser.add_argument(
        "--results_dir", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--ckpt_path",
        type=path_or_none,
        help="checkpoint that a new run starts from: weights, optimizer and step; or a released "
        "file, a release folder, a published network; None = from none",
    )
    parser.add_argument(
        "--teacher",
        type=path_or_none,
        help="trained network from which a student is distilled, at the noise levels of "
        "distill.sigmas; None = distill.teacher of the config",
    )
    parser.add_argument(
        "--use_strict_load",
        type=true_or_false,
        default=True,
        metavar="BOOL",
        help="False: list weights that --ckpt_path lacks or has in addition, instead of stopping; "
        "the optimizer starts anew",
    )
    parser.add_argument(
        "--enable_eval", action="store_true", help="evaluate each checkpoint after saving it"
    )
    parser.add_argument(
        "--use_wandb",
        action="store_true",
        help="log to Weights & Biases too; reads WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="PATH",
        help="write the EMA weights of --ckpt_path to this file (.safetensors), or to a folder "
        "with encoders, code and model card; with its config and any key=value; and end",
    )
    parser.add_argument(
        "--export_adapter",
        type=Path,
        metavar="PATH",
        help="write the weights that the run of --ckpt_path trained by train.adapt to this file "
        "(.safetensors), or to a folder as the library peft reads it; and end",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="PATH[:W]",
        help="adapter, and how much of it counts, 1 if not given, of the network of --export or of "
        "the --teacher; may be repeated",
    )
    add_published_flags(parser, TRAINING + SAMPLING)
    add_launch_arguments(parser)
    return parser.parse_intermixed_args()


def effective_config_file(args: argparse.Namespace) -> Path:
    """Return the file of the settings: of `--config`, else of the run that `--exp_name` continues.

    Else it is `--ckpt_path` if that holds a configuration, else the demo's file.
    """
    if args.config is not None:
        return Path(args.config)
    continued = experiment_config(args.results_dir / args.exp_name) if args.exp_name else None
    if continued is None and args.ckpt_path:
        network = find_network(args.ckpt_path)
        if network.config != network.weights or stored_config(network.weights) is not None:
            return network.config
    return continued or Path(DEFAULT_CONFIG)


def load_training_config(args: argparse.Namespace) -> Config:
    """Load the configuration, then become several processes if the command line asks for them.

    Raises UserError for mistakes in the settings.
    """
    source = effective_config_file(args)
    flags = flag_settings(args)
    if args.teacher:
        flags["--teacher"] = {"distill.teacher": str(args.teacher)}
    if args.adapter:
        if not args.teacher:
            raise UserError(
                "--adapter: goes with --teacher or --export; to train on from a network "
                "with adapters, write it with --export first"
            )
        flags["--adapter"] = {"distill.adapters": args.adapter}
    config = read_config(source, args.overrides, ("data.root",), flags)
    config = with_derived_sizes(config)
    if args.use_wandb:
        require_wandb()
    relaunch(args)
    if args.config is None and source != Path(DEFAULT_CONFIG):
        note(f"the settings are those of {source}, as --config is not given")
    note_void_flags(args)
    return config
