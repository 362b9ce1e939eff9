"""Plot the metrics of a training over those of reference runs, without an evaluation.

Writes curves.png into its folder:  python tools/curves.py results/own
While it runs:                      the same; the config of the folder says where it will end

docs/normal.md says what the numbers mean, and what is normal.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
from utils.config.command_line import ArgumentParser
from utils.config.parsing import file_to_write
from utils.evaluation.training_curves import save_training_curves
from utils.pretrained.effective_config import experiment_config, read_config


@one_line_errors
def main() -> None:
    """Write the plot."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a training, results/<name>")
    parser.add_argument(
        "--out", type=file_to_write, help="PNG to write; None = curves.png in the folder"
    )
    args = parser.parse_args()
    file = experiment_config(args.run) if args.run.is_dir() else None
    steps = read_config(file).train.max_num_steps if file is not None else None
    path = args.out or args.run / "curves.png"
    if not save_training_curves(args.run, path, steps):
        raise UserError(f"{args.run}: holds no metrics.jsonl of a training")
    print(path)


if __name__ == "__main__":
    main()
