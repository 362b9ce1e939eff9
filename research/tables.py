"""Write the measured tables of the docs from the JSON files in docs/benchmarks.

    python research/tables.py      # after a measurement was run with --out

A page marks the place of a table. `recipe=pairs,prior` selects rows by the values of a column:

    <!-- table study.json recipe=pairs,images_plain_prior --> … <!-- end -->
    <!-- report train_step.json --> … <!-- end -->      with command, machine and notes
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import table
from utils.config.command_line import ArgumentParser

DOCS = ROOT / "docs"
MARK = re.compile(
    r"(<!-- (table|report) (\S+)(?: (\S+)=(\S+))? -->\n).*?(<!-- end -->)", flags=re.DOTALL
)


def written(match: re.Match[str]) -> str:
    """Return a marked place with its table."""
    begin, kind, file, column, values, end = match.groups()
    content = json.loads((DOCS / "benchmarks" / file).read_text(encoding="utf-8"))
    rows = content["rows"]
    if column:
        rows = [row for row in rows if str(row[column]) in values.split(",")]
    text = table(rows)
    if kind == "report":
        notes = "\n".join(f"- {note}" for note in content["notes"])
        text = f"    {content['command']}\n\n{content['machine']}.\n\n{text}\n\n{notes}".rstrip()
    return f"{begin}\n{text}\n\n{end}"


def main() -> None:
    """Write all tables of all pages."""
    ArgumentParser(description=__doc__).parse_args()
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if MARK.search(text):
            page.write_text(MARK.sub(written, text), encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
