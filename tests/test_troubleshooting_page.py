"""Check that the messages on docs/troubleshooting.md are those of the code."""

import ast
import re

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADER = "| message | cause | remedy |"
FOLDERS = ("models", "utils", "preprocess_scripts", "tools")


def rows() -> list[list[str]]:
    """Return the cells of each row: message, cause, remedy."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and line != HEADER]
    return [[cell.strip() for cell in re.split(r" \| ", line.strip("| "))] for line in lines]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def literals(source: str) -> set[str]:
    """Return the strings of a source; a string with values in it gives the parts between them."""
    nodes = ast.walk(ast.parse(source))
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def parts(message: str) -> list[str]:
    """Return what is printed literally in a message of the page, without names and numbers.

    Punctuation ends a part, because a message may consist of strings from several places.
    """
    for begin in ("error: ", "note: ", "WARNING: "):
        message = message.removeprefix(begin)
    return [part.strip() for part in re.split("[…:;,()]", message) if re.search(r"\w", part)]


@pytest.fixture(scope="module")
def code() -> set[str]:
    """All strings of the program."""
    files = [*ROOT.glob("*.py"), *(f for name in FOLDERS for f in (ROOT / name).rglob("*.py"))]
    return set().union(*(literals(file.read_text(encoding="utf-8")) for file in files))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_a_row_quotes_what_is_printed(row, code):
    message, cause, remedy = row
    assert cause and remedy and quoted(message)
    for part in (part for text in quoted(message) for part in parts(text)):
        assert any(part in text for text in code), f"nothing prints {part!r}"
