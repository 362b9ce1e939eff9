"""Runs to compare: what the folder of a training holds, and the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.base.errors import UserError, note
from utils.base.files import read_json_lines
from utils.config.schema import Config
from utils.evaluation.metric_names import distance_of
from utils.evaluation.results import Record, Results, best_of
from utils.pretrained.effective_config import experiment_config, read_config
from utils.training.comparison import flat_settings

# Keys that say where things lie and not how a run was made.
PLACES = ("log.tag", "train.num_workers", "train.step_timeout", "train.max_bad_steps")


@dataclass(frozen=True)
class Run:
    """A training with what its folder holds.

    losses: step -> training loss.
    records: the evaluations that can be compared with those of the other runs.
    grids: step -> sample grid.
    """

    name: str
    folder: Path
    config: Config
    losses: dict[int, float]
    records: list[Record]
    grids: dict[int, Path]

    @property
    def best(self) -> Record | None:
        """The evaluation with the lowest Fréchet distance."""
        return best_of(self.records) if self.records else None


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the folders of trainings. A note names evaluations that cannot be compared.

    Raises UserError if there are fewer than two, or if one holds no run or nothing to compare.
    """
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    if len(folders) < 2:
        raise UserError("name two runs or more, e.g. results/first results/second")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = [_load_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    evaluated = next((run.records[-1] for run in runs if run.records), None)
    if evaluated is None:
        return runs
    return [_comparable(run, evaluated, runs) for run in runs]


def _load_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no folder of a run")
    config_file = experiment_config(folder)
    if config_file is None:
        raise UserError(f"{folder}: holds no run: neither config.yaml nor a checkpoint with one")
    losses = _read_losses(folder / "metrics.jsonl")
    records = Results(folder / "evaluation").records
    if not losses and not records:
        raise UserError(
            f"{folder}: holds no metrics: neither metrics.jsonl nor evaluation/results.jsonl"
        )
    paths = [path for path in (folder / "samples").glob("*.png") if path.stem.isdigit()]
    grids = {int(path.stem): path for path in sorted(paths)}
    return Run(name, folder, read_config(config_file), losses, records, grids)


def _read_losses(path: Path) -> dict[int, float]:
    """Return step -> loss of a metrics.jsonl; of a step that was done twice, the last one."""
    losses = {
        int(line["step"]): float(line["loss"])
        for line in read_json_lines(path, note)
        if None not in (line.get("step"), line.get("loss"))
    }
    return dict(sorted(losses.items()))


def _comparable(run: Run, evaluated: Record, runs: Sequence[Run]) -> Run:
    """Leave out evaluations by another network, or against another reference, than `evaluated`."""
    keys = ("network", "reference")
    kept = [r for r in run.records if all(r[key] == evaluated[key] for key in keys)]
    if left_out := len(run.records) - len(kept):
        first = next(other.name for other in runs if other.records)
        note(
            f"{run.name}: {left_out} evaluations left out, as their reference or feature network "
            f"is not that of {first}'s last one"
        )
    return Run(run.name, run.folder, run.config, run.losses, kept, run.grids)


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the keys in which the configs of the runs differ, with the value of each run."""
    settings: list[Mapping[str, Any]] = [flat_settings(run.config) for run in runs]
    keys = [key for key in settings[0] if key not in PLACES]
    rows = {key: [str(values[key]) for values in settings] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def best_of_each_step(records: Sequence[Record]) -> dict[int, Record]:
    """Return step -> its record with the lowest Fréchet distance, over all ways to sample."""
    found: dict[int, Record] = {}
    for record in sorted(records, key=lambda record: (record["step"], distance_of(record))):
        found.setdefault(record["step"], record)
    return found
