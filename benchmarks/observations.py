"""Measure what the observations of a training cost, in processor seconds.

python benchmarks/observations.py --config configs/demo/demo.yaml

Steps and observations alternate in one process, so that a busy machine slows both. The checks of
the data before the first step count for the whole training, whose length the config states.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from utils.config.command_line import DEFAULT_CONFIG, ArgumentParser
from utils.config.load import load_config
from utils.data.latent_dataset import open_data
from utils.training.batches import training_batches
from utils.training.data_faults import data_faults
from utils.training.distributed import Processes
from utils.training.observation import Observer
from utils.training.sample_grid import SampleGrid
from utils.training.state import TrainingState
from utils.training.train_step import train_step


def seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of all threads that `work` takes."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> None:
    """Print seconds of a step, an observation and the checks, and their part of a training."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", type=Path, default=Path(DEFAULT_CONFIG), help="config of a training"
    )
    parser.add_argument("--rounds", type=int, default=5, help="observations to measure")
    parser.add_argument("--steps", type=int, default=6, help="steps before each observation")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="other settings")
    args = parser.parse_args()
    config = load_config(args.config, args.overrides)
    processes, data = Processes(config), open_data(config)
    state = TrainingState(config, processes, data.length, data.identity)
    state.make_ready()
    observer = Observer(config, data, state)
    grid = SampleGrid.from_config(config, processes.device)
    checks = seconds(lambda: data_faults(config, data, None if grid is None else grid.autoencoder))
    batches = training_batches(data, state.order, 0, processes.rank_slice)
    steps, observations = [], []
    for _ in range(args.rounds):
        steps += [seconds(lambda: train_step(state, batches)) for _ in range(args.steps)]
        observations.append(seconds(observer.metrics))
    step, observation = float(np.median(steps[1:])), float(np.median(observations))
    whole = step * (state.max_steps - state.first_step)
    part = observation / (observer.every * step)
    print(f"{step:.3f} s a step, {observation:.3f} s an observation every {observer.every} steps")
    print(f"observations {part:.2%}, checks of the data {checks:.2f} s = {checks / whole:.2%} of")
    print(f"{state.max_steps} steps; together {part + checks / whole:.2%}")


if __name__ == "__main__":
    main()
