"""The command-line arguments that scripts have in common, and the style of their help."""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from utils.base.errors import fail
from utils.config.parsing import path_or_none

DEFAULT_CONFIG = "configs/demo/demo.yaml"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows the default of every flag, and the description's launch lines unwrapped."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.default is not None and action.default is not False:
            return super()._get_help_string(action)
        is_needless = action.required or not action.option_strings
        if is_needless or "None = " in text or "(default: " in text:
            return text
        return f"{text} (default: {'none' if action.default is None else 'off'})"


class ArgumentParser(argparse.ArgumentParser):
    """Parser of a script, whose docstring is the description; a mistake is one line."""

    def __init__(self, **options: Any) -> None:
        """Take the options of argparse; the help is that of HelpFormatter."""
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """End the script with one line and exit code 2; argparse calls this."""
        fail(f"{self.prog}: {' '.join(message.split())}; --help lists the options")


class Once(argparse.Action):
    """Stores one value; a second one, of which argparse alone would take the last, is refused."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Store the value of a flag; argparse calls this."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"argument {option}: is given twice, and takes one value")
        setattr(namespace, self.dest, values)


def add_config_option(
    parser: argparse.ArgumentParser, about: str = "YAML file", instead: str | None = None
) -> None:
    """Add `--config`; utils.pretrained.effective_config reads what it and the rest choose.

    `instead`: text that says which config counts without it. None = that of `--experiment_dir`,
    which is added too.
    """
    if instead is None:
        instead = f"that of --experiment_dir, or else {DEFAULT_CONFIG}"
        parser.add_argument(
            "--experiment_dir",
            type=path_or_none,
            help="folder of a training, whose config is used; None = no training",
        )
    # argparse alone takes `-1,2` and `-1e6` for options, and asks for a value before them.
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    about = f"{about}, or a checkpoint that holds its config; None = {instead}"
    parser.add_argument("--config", help=about)


def add_config_arguments(parser: argparse.ArgumentParser, instead: str | None = None) -> None:
    """Add `--config` and the `key=value` overrides; parse with `parser.parse_intermixed_args()`.

    `instead`: see `add_config_option`.
    """
    add_config_option(parser, instead=instead)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. train.lr=5e-5"
    )


def either(names: Sequence[str]) -> str:
    """Return names as an English list of choices: `a`, `a or b`, `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
