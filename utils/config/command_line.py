"""The command-line arguments that all scripts share."""

import argparse

DEFAULT_CONFIG = "configs/demo/demo.yaml"


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
