"""Pack the modules that drawing needs into one file, `pipeline.py`.

A release folder carries this file, so that diffusers can draw without this project. It holds the
sources of the project as they are, only under another package name. The name holds a hash of them:
two releases of different versions can be used in one program.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Mapping

from utils.pretrained.encoder_paths import PROJECT

ROOM_NAMES = ("models", "utils")
ROOT = "utils.sampling.pipeline"  # the module that the packed file offers
TEMPLATE = "utils/sampling/packed_pipeline.txt"
CODE: str | None = None  # in a packed copy: the text of the packed file
NAME_IN_PIP = {"PIL": "pillow", "yaml": "pyyaml", "open_clip": "open_clip_torch"}
QUOTES = "'" * 3  # round a source in the packed file


def pipeline_code() -> tuple[str, str]:
    """Return the name of the packed package, and the text of `pipeline.py`."""
    if CODE is not None:  # this very module is a packed copy
        return __name__.partition(".")[0], CODE
    sources = needed_modules(ROOT)
    package = f"text_to_face_{hashlib.sha256(repr(sources).encode()).hexdigest()[:12]}"
    rooms = "|".join(ROOM_NAMES)
    entries = []
    for name, text in sources.items():
        renamed = re.sub(rf"^(\s*)from ({rooms})\.", rf"\1from {package}.\2.", text, flags=re.M)
        # Without the bar, diffusers would take the imports for those of the file itself.
        lines = "".join(f"|{line}" for line in renamed.splitlines(keepends=True))
        assert QUOTES not in lines, f"{name} cannot be packed, as it holds {QUOTES}"
        entries.append(f"    {package + '.' + name!r}: r{QUOTES}{lines}{QUOTES},\n")
    packages = "\n".join(f"import {name}" for name in _packages(sources))
    text = (PROJECT / TEMPLATE).read_text(encoding="utf-8")
    values = {"package": package, "packages": packages, "sources": "".join(entries)}
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return package, text


def needed_modules(root: str) -> dict[str, str]:
    """Return the sources of a module and of all modules of the project that it imports, by name."""
    found: dict[str, str] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = (PROJECT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
            waiting += [m for m in _imports(found[name]) if m.partition(".")[0] in ROOM_NAMES]
    return dict(sorted(found.items()))


def needed_packages() -> list[str]:
    """Return the lines of requirements.txt that the packed modules need."""
    names = {NAME_IN_PIP.get(name, name) for name in _packages(needed_modules(ROOT))}
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if re.split("[=<>]", line)[0] in names]


def _packages(sources: Mapping[str, str]) -> list[str]:
    """Return the packages from elsewhere that modules import, but for Python's own."""
    tops = {module.partition(".")[0] for text in sources.values() for module in _imports(text)}
    return sorted(tops - set(sys.stdlib_module_names) - set(ROOM_NAMES))


def _imports(text: str) -> list[str]:
    """Return the modules that a source imports, at any place in it."""
    modules = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return modules
