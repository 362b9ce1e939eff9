"""Write docs/performance.md, and tables of docs/study.md and docs/sampling.md.

python research/tables.py      # after a benchmark was run with --out

The figures are those in docs/benchmarks/*.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import replace_tables, table
from research.recipes.results import Results
from research.recipes.table import study_rows
from research.study.run import RUNS, RUNS_WIDE, read_study
from utils.config.command_line import HelpFormatter

PAGE = ROOT / "docs" / "performance.md"
STUDY = ROOT / "docs" / "study.md"
SAMPLING = ROOT / "docs" / "sampling.md"
RECIPES = ROOT / "docs" / "recipes.md"
STUDENTS = ("sampling_students", "sampling_students_first")
BEGIN = "<!-- written by research/tables.py -->"
MEASURED = ROOT / "docs" / "benchmarks"
TOLD = MEASURED / "study_told.json"  # recipes that lost, and whose code is gone
# Stems of files that other pages show.
OWN_PAGES = ("study", "variety", "sampling_students", "recipes")
ORDER = ("train_step", "dataloader", "sampling", "preprocess", "metrics", "time_to_quality")

HEAD = """# How fast each stage is

The command above each table wrote it. A table compares with a plain, honest baseline that was
measured in the same run: repetitions take turns, and medians are shown. Run a command on your
machine and then `python research/tables.py`, and this page holds your measurements. Ratios carry
over to other machines better than rates.
`benchmarks/metrics.py` needs `requirements-dev.txt` (pytorch-fid). Tables name the processor.
On a GPU, `make gpu-check` checks results, speed and memory in ten minutes; with
`--out docs/benchmarks/gpu_check.json` its table joins this page.
"""


def section(path: Path) -> str:
    """Return the Markdown of one benchmark's JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"## {content['title']}",
        "",
        f"    {content['command']}",
        "",
        content["machine"] + ".",
        "",
    ]
    lines += [table(content["rows"]), ""]
    lines += [f"- {note}" for note in content["notes"]]
    if (PAGE.parent / f"{path.stem}.png").exists():
        lines += ["", f"![{content['title']}]({path.stem}.png)"]
    return "\n".join(lines).rstrip() + "\n"


def rank(path: Path) -> tuple[int, str]:
    """Return a sort key: stages in the order of the work, each followed by its further tables.

    A further table's name begins with the stage's, e.g. train_step_size.
    """
    stage = next((i for i, name in enumerate(ORDER) if path.stem.startswith(name)), len(ORDER))
    return stage, path.stem


def study_tables() -> list[str]:
    """Return the Markdown tables of the study: of its lists of runs, then of dropped recipes."""
    made = []
    for file in (RUNS, RUNS_WIDE):
        results = read_results(MEASURED / f"{file.stem}.json")
        made += [table(study_rows(results, t.recipes)) for t in read_study(file).tables.values()]
    return [*made, table(study_rows(read_results(TOLD)))]


def read_results(path: Path) -> Results:
    """Read the runs of a JSON file of the study."""
    return Results(path, json.loads(path.read_text(encoding="utf-8"))["setup"])


def main() -> None:
    """Write the pages."""
    argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args()
    replace_tables(STUDY, BEGIN, study_tables())
    students = [
        json.loads((MEASURED / f"{stem}.json").read_text(encoding="utf-8"))["rows"]
        for stem in STUDENTS
    ]
    replace_tables(SAMPLING, BEGIN, [table(rows) for rows in students])
    recipes = json.loads((MEASURED / "recipes_120s.json").read_text(encoding="utf-8"))["rows"]
    replace_tables(RECIPES, BEGIN, [table(recipes)])
    tables = (file for file in MEASURED.glob("*.json") if not file.stem.startswith(OWN_PAGES))
    files = sorted(tables, key=rank)
    PAGE.write_text("\n".join([HEAD, *(section(path) for path in files)]))
    print(*(page.relative_to(ROOT) for page in (PAGE, STUDY, SAMPLING, RECIPES)))


if __name__ == "__main__":
    main()
