"""Time the first picture of a new sentence, one picture at a time, with networks side by side.

    python benchmarks/first_image.py --student X.safetensors

Everything from the sentence to the pixels counts: CLIP, the prior, the network and the decoder. The
networks are loaded before. `first` is the very first picture after that, which reads the prior and
warms up; `then` is the median of the others, a new sentence each. The shipped network draws with
the preset `fast`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
from benchmarks import timing
from benchmarks.sampling_settings import student_settings
from utils.config.command_line import HelpFormatter
from utils.sampling.text_to_face import DEMO, TextToFace


def setup(network: str) -> timing.Work:
    """Load a network; return work that draws a new sentence and gives processor seconds."""
    faces, number = TextToFace.load(network), count()

    def draw() -> float:
        started = time.process_time()
        faces.generate(f"a person number {next(number)} with long red hair and glasses")
        return time.process_time() - started

    return draw


@one_line_errors
def main() -> None:
    """Time all networks and report the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    timing.add_arguments(parser)
    parser.add_argument(
        "--student",
        type=Path,
        action="append",
        default=[],
        help="a distilled network too; may be repeated",
    )
    args = parser.parse_args()
    student_settings(args.student)  # refuses what is no student before anything is timed
    timing.start(args)
    setups = {network: partial(setup, network) for network in (DEMO, *map(str, args.student))}
    timings = timing.compare(setups, args.repeats, warmup=0)
    rows = [
        {
            "network": network,
            "first, s": found.seconds[0],
            "then, s": statistics.median(found.seconds[1:]),
            "processor s": found.result,
        }
        for network, found in timings.items()
    ]
    notes = ["Processor seconds are those of the last picture."]
    timing.report(args.out, "First picture of a sentence, one at a time", rows, notes)


if __name__ == "__main__":
    main()
