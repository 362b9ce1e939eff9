"""Check that the version, the licence and the dependencies have one source each."""

import re
import tomllib
from collections import Counter

import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_changelog_has_the_version_of_the_project_and_the_citation_its_licence():
    version = PROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert re.findall(r"^## \[(\d.*?)\]", changelog, re.MULTILINE)[0] == version
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"


def test_dependencies_are_read_from_the_file_that_the_readme_installs():
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    assert dynamic == {"dependencies": {"file": ["requirements.txt"]}}
    assert "dependencies" not in PROJECT["project"]
    assert (ROOT / "requirements-dev.txt").read_text().startswith("-r requirements.txt\n")


def versions(name: str) -> dict[str, SpecifierSet]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    listed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {each.name: each.specifier for each in listed}


def test_make_installs_the_highest_version_of_each_tested_range():
    ranges, pins = versions("requirements.txt"), versions("constraints.txt")
    for name, tested in ranges.items():
        operators = {each.operator: each.version for each in tested}
        if operators.keys() == {"=="}:  # the only version that was tested
            assert name not in pins
        else:
            assert operators.keys() == {">=", "<="}
            assert pins.pop(name) == SpecifierSet(f"=={operators['<=']}")
    assert pins == {}
    installs = re.findall(r"pip install.*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert installs and all("-c constraints.txt" in command for command in installs)


def test_hooks_run_without_network_and_are_the_checks_of_make_lint():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for tool in ("ruff check", "ruff format", "lint-imports", "mypy"):
        assert f"$(BIN)/{tool}" in makefile
        assert any(f".venv/bin/{tool}" in hook["entry"] for hook in hooks)


def test_each_test_file_has_its_own_name():
    """pytest imports test files by their name alone, and stops at two of one name."""
    names = [path.name for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    assert [name for name, count in Counter(names).items() if count > 1] == []
