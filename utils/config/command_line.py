"""The command-line arguments that all scripts share, and the style of their help."""

import argparse
from collections.abc import Sequence

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


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and the `key=value` overrides; parse with `parser.parse_intermixed_args()`."""
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. train.lr=5e-5"
    )


def either(names: Sequence[str]) -> str:
    """Return names as an English list of choices: `a`, `a or b`, `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
