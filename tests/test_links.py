"""Check that the links and images of the pages lead to files that exist."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT

FOLDERS = ("docs", "demo", "configs", "research")
PAGES = sorted(ROOT.glob("*.md")) + sorted(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def links_of(page: Path) -> list[str]:
    """Return the targets of a page's links and images, code aside, that are no web addresses."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    targets = [markdown or html for markdown, html in LINK.findall(text)]
    return [t for t in targets if not re.match(r"[a-z]+:", t)]


def headings_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as web sites make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = [title.lower() for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in PAGES])
def test_every_link_of_a_page_leads_to_a_file_of_the_repository(page):
    page = ROOT / page
    for target in links_of(page):
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.relative_to(ROOT)}: {target} does not exist"
        assert file.is_relative_to(ROOT), f"{page.relative_to(ROOT)}: {target} leads out"
        if anchor:
            assert anchor in headings_of(file), f"{page.relative_to(ROOT)}: no heading {target}"


def test_every_figure_in_docs_is_shown_on_a_page():
    shown = {
        (page.parent / unquote(target)).resolve() for page in PAGES for target in links_of(page)
    }
    figures = [p for p in (ROOT / "docs").iterdir() if p.suffix in (".png", ".svg")]
    assert [p.name for p in figures if p not in shown] == []
