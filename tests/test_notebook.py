"""docs/notebook.ipynb: all its code runs, and its images are those of the demo's network."""

import ast
import json
from typing import Any

import pytest
from conftest import ROOT
from PIL import Image

NOTEBOOK = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def shown(source: str, scope: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; return the value of its last line, if that is one."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), scope)
    return last and eval(compile(ast.Expression(last.value), "cell", "eval"), scope)


@pytest.fixture(scope="module")
def outputs() -> list[Any]:
    """Run all cells in order; return what each shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT / "docs")
        scope: dict[str, Any] = {}
        return [shown("".join(cell["source"]), scope) for cell in CODE]


def test_a_cell_shows_an_image_where_the_stored_notebook_shows_one(outputs):
    stored = ["image/png" in str(cell["outputs"]) for cell in CODE]
    assert [isinstance(output, Image.Image) for output in outputs] == stored
    assert sum(stored) == 8
    for output in outputs:
        if output is not None:
            assert len(output.getcolors(2**24)) > 1000  # faces, no empty page


def test_every_cell_was_run_in_order_before_it_was_stored():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert not [out for cell in CODE for out in cell["outputs"] if out["output_type"] == "error"]
