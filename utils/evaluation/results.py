"""The `evaluation/` folder of an experiment: results.jsonl and results.csv."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.base.errors import note
from utils.base.files import json_text, read_json_lines, write_csv
from utils.base.locks import FileLock
from utils.base.text import aligned
from utils.config.sampling_sections import Sampling
from utils.evaluation.metric_names import METRICS, distance_of, network_name, with_network_names

Record = dict[str, Any]
CONTENT = "_content"  # ends the key of the hash of a file that another key names


class Results:
    """All evaluations of an experiment in the order they were made, one record each.

    A record holds the checkpoint, the settings and the metrics.
    """

    def __init__(self, folder: Path) -> None:
        """Read the records in `folder`; a torn line is skipped with a note."""
        self.folder = folder
        self.path = folder / "results.jsonl"
        self._noted: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read the records again, with those that another process has added."""
        read = read_json_lines(self.path, self._note_once)
        self.records: list[Record] = [with_network_names(record) for record in read]

    def _note_once(self, message: str) -> None:
        if message not in self._noted:
            note(message)
        self._noted.add(message)

    def find(self, settings: Mapping[str, Any]) -> Record | None:
        """Return the latest record made with exactly these settings, None if there is none.

        Older records lack the hashes of named files (`…_content`), and count for any content.
        Settings that are off have no entry.
        """
        self.refresh()
        wanted = json.loads(json_text(settings))  # with the types that the file would give
        off = {key: value for key, value in _off().items() if key not in wanted}
        for record in reversed(self.records):
            same = (
                record[key] == value if key in record else key.endswith(CONTENT)
                for key, value in wanted.items()
            )
            if all(same) and all(record.get(key, value) == value for key, value in off.items()):
                return record
        return None

    def add(self, record: Record) -> None:
        """Append a record to results.jsonl, and write results.csv anew, one process at a time."""
        record = with_network_names(record)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "results.lock", None):
            content = self.path.read_bytes() if self.path.exists() else b""
            torn = bool(content) and not content.endswith(b"\n")
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(("\n" if torn else "") + json_text(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.refresh()
            flat = [{k: v for k, v in r.items() if k != "config"} for r in self.records]
            write_csv(self.folder / "results.csv", flat)


def _off() -> Record:
    """Return the values of settings that an evaluation's record names only if they differ."""
    sampling = Sampling().model_dump(mode="json", exclude={"preset", "compile", "preview"})
    defaults: Record = json.loads(json_text(sampling))
    return {**defaults, "seeds": None, "class_idx": None, "image_mean": None}


def setting_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name sampler settings: guidance, and steps, solver, number of images if they differ.

    `records` need the keys `cfg_scale`, `num_steps` and `solver`, and may have `n`.
    """
    steps_differ = len({(record["num_steps"], record["solver"]) for record in records}) > 1
    counts_differ = len({record.get("n") for record in records}) > 1
    names = []
    for record in records:
        scale = record["cfg_scale"]
        name = "no guidance" if scale is None else f"guidance {scale:g}"
        name += f", {record['num_steps']} {record['solver']} steps" if steps_differ else ""
        names.append(name + (f", {record['n']} images" if counts_differ else ""))
    return names


def comparable(records: Sequence[Record], latest: Record | None = None) -> list[Record]:
    """Return the records with the reference and the feature network of `latest`, the last one."""
    latest = latest or records[-1]
    return [r for r in records if all(r[key] == latest[key] for key in ("network", "reference"))]


def best_of(records: Sequence[Record]) -> Record:
    """Return the record with the lowest Fréchet distance."""
    return min(records, key=distance_of)


def table(records: Sequence[Record]) -> str:
    """Format the main metrics as aligned text; a star marks the best record."""
    networks = " or ".join(dict.fromkeys(network_name(record["network"]) for record in records))
    distance = f"Fréchet ({networks})"
    header = ("step", "guidance", "steps", "solver", distance, "CLIP score", "images", "time", "")
    rows = [
        (
            str(record["step"]),
            "none" if record["cfg_scale"] is None else f"{record['cfg_scale']:g}",
            str(record["num_steps"]),
            record["solver"],
            METRICS["frechet_distance"].show(distance_of(record)),
            METRICS["clip_score"].show(record["clip_score"]),
            str(record["n"]),
            f"{record['seconds']:.0f} s",
            "*" if record is best_of(records) else "",
        )
        for record in records
    ]
    return aligned([header, *rows])


def curves(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """Return name of the sampler settings -> step -> its latest record, in order of the steps."""
    lines: dict[str, dict[int, Record]] = {}
    for name, record in zip(setting_names(records), records, strict=True):
        lines.setdefault(name, {})[record["step"]] = record
    return {name: dict(sorted(line.items())) for name, line in lines.items()}


def is_of_experiment(checkpoint: Path) -> bool:
    """Return True if a file is `<experiment>/checkpoints/<step>.pt`."""
    return checkpoint.absolute().parent.name == "checkpoints" and checkpoint.stem.isdigit()


def evaluation_of(checkpoint: Path, results_dir: Path) -> Path:
    """Return the folder for the evaluation of one file, the experiment's own if it is of one."""
    if is_of_experiment(checkpoint):
        return checkpoint.absolute().parents[1] / "evaluation"
    return results_dir / checkpoint.stem / "evaluation"
