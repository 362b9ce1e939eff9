"""Check that docs/architecture.md and CONTRIBUTING.md name only what exists."""

import ast
import re
from functools import cache

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
BOTH = PAGE + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py): ([\w.]+)`", BOTH)))


@cache
def names_in(file: str) -> set[str]:
    """Return functions, classes and typed constants of a file; methods as `Class.method`."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")

    collect(ast.parse((ROOT / file).read_text(encoding="utf-8")).body, "")
    return found


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_function_that_the_pages_name_exists(file, name):
    assert (ROOT / file).is_file(), f"{file} does not exist"
    assert name in names_in(file), f"{file} has no {name}"


def test_every_file_that_the_pages_name_exists():
    files = set(re.findall(r"`([\w/]+\.(?:py|md|toml|txt))`", BOTH))
    assert {name for name in files if not (ROOT / name).is_file()} == set()


def test_every_room_is_on_the_page():
    rooms = [f"utils/{path.parent.name}" for path in (ROOT / "utils").glob("*/__init__.py")]
    assert [room for room in [*rooms, "models"] if f"| `{room}/` |" not in PAGE] == []
