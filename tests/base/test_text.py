"""Lines of users' text, text that shows nothing, and files that are no UTF-8."""

import json

import pytest
from PIL import Image

from utils.base.errors import UserError
from utils.base.files import write_csv, write_json, write_text
from utils.base.text import decoded, is_visible, lines_of, printable
from utils.data.captions import caption_files, read_captions
from utils.data.images import list_images
from utils.data.name_lists import read_names
from utils.sampling.prompts import image_prompt, read_prompts, text_prompt

# Characters at which str.splitlines cuts, but at which no line of a file ends.
SEPARATORS = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
NOTHING = ["\ufeff", "\u200b", "\u200e\u2060", " \t\u00a0", "\x01", "\u00ad", "\ufeff\u200b\ufeff"]


def captions_in(content: bytes, folder) -> list[str]:
    """Return the captions of a file with some content."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "images" / "a.png")
    (folder / "a.txt").write_bytes(content)
    return read_captions(caption_files(list_images(folder / "images"), folder))[0]


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_only_line_ends_end_a_line(separator, tmp_path):
    content = f"a man{separator}with a hat\r\na woman\rred hair\nbald".encode()
    expected = [f"a man{separator}with a hat", "a woman", "red hair", "bald"]
    (tmp_path / "p.txt").write_bytes(content)
    assert captions_in(content, tmp_path) == expected
    assert read_prompts(tmp_path / "p.txt") == read_names(tmp_path / "p.txt") == expected


@pytest.mark.parametrize("text", NOTHING, ids=ascii)
def test_a_line_that_shows_nothing_is_blank(text, tmp_path):
    assert not is_visible(text)
    content = f"\ufeffa man\n{text}\n\ufeffa woman\n".encode()  # cat of two files with a BOM
    (tmp_path / "p.txt").write_bytes(content)
    assert (
        captions_in(content, tmp_path) == read_prompts(tmp_path / "p.txt") == ["a man", "a woman"]
    )
    with pytest.raises(UserError, match="the prompt is empty; say what to generate"):
        text_prompt(text)


@pytest.mark.parametrize("text", ["😀", "👩🏽‍🦰", "日本", "é", "e\u0301", ".", "🇫🇷", "﷽"])
def test_what_shows_is_kept_as_it_is(text):
    assert lines_of(text) == [text] and text_prompt(text).value == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("une femme âgée".encode("latin-1"), "is not UTF-8 text; save it as UTF-8"),
        ("a man".encode("utf-16"), "is not UTF-8 text; save it as UTF-8"),
        ("a man".encode("utf-16-le"), "is not text, it holds NUL bytes; save it as UTF-8"),
        ("a man’s".encode("cp1252"), "is not UTF-8 text; save it as UTF-8"),
    ],
)
def test_prompts_and_captions_of_another_encoding_are_one_line(content, said, tmp_path):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"p\.txt: {said}$"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(UserError, match=rf"a\.txt: {said}$"):
        captions_in(content, tmp_path)
    with pytest.raises(UserError, match=said):
        decoded(content, tmp_path / "x")


@pytest.mark.parametrize("text", ["a caf\udce9", "\ud800", "a\0b"], ids=ascii)
def test_a_prompt_that_is_not_utf_8_is_one_line(text):
    with pytest.raises(UserError, match=r"^the prompt '.*' is not UTF-8 text; set the terminal"):
        text_prompt(text)


@pytest.mark.parametrize("text", ["une femme âgée", "日本", "😀", "a man"])
def test_a_prompt_in_utf_8_is_read_under_an_ascii_locale(text):
    assert text_prompt(text.encode().decode("ascii", "surrogateescape")).value == text


def test_names_that_are_not_utf_8_are_written_with_escapes(tmp_path):
    name = "caf\udce9.png"
    assert printable(name) == image_prompt(name).label == "caf\\udce9.png"
    write_text(tmp_path / "t.txt", name)
    write_csv(tmp_path / "t.csv", [{"file": name}])
    write_json(tmp_path / "t.json", {"file": name, "é": "日本"})
    assert (tmp_path / "t.txt").read_text(encoding="utf-8") == "caf\\udce9.png"
    assert "caf\\udce9.png" in (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "t.json").read_bytes()) == {"file": name, "é": "日本"}
