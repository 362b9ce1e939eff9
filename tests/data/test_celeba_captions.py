"""Captions from CelebA's attributes, and the annotation file that they come from."""

import importlib
import random
import re
import sys
from pathlib import Path

import pytest

from utils.base.errors import UserError
from utils.data.captions import load_captions
from utils.data.celeba_captions import ATTRIBUTES, make_caption, make_captions, read_attributes
from utils.data.images import Sample


def annotation(*faces: tuple[str, set[str]], count: int | None = None) -> str:
    lines = [str(len(faces) if count is None else count), " ".join(ATTRIBUTES)]
    for name, has in faces:
        lines.append(f"{name}  " + " ".join("1" if a in has else "-1" for a in ATTRIBUTES))
    return "\n".join(lines) + "\n"


def random_faces(count: int) -> list[set[str]]:
    rng = random.Random(0)
    return [{a for a in ATTRIBUTES if rng.random() < 0.4} for _ in range(count)]


def captions_of(*has: str, count: int = 300) -> list[str]:
    rng = random.Random(0)
    return [make_caption(set(has), rng) for _ in range(count)]


def test_attributes_are_read_with_their_names(tmp_path):
    file = tmp_path / "anno.txt"
    file.write_text(annotation(("0.jpg", {"Male", "Bald"}), ("1.jpg", set())))
    assert list(read_attributes(file)) == [("0.jpg", {"Male", "Bald"}), ("1.jpg", set())]


FACES = [("0.jpg", {"Young"}), ("1.jpg", {"Male"})]
GOOD = annotation(*FACES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"anno\.txt:1: should be the number of images"),
        ("2\n", r"anno\.txt:2: should name CelebA's 40 attributes; 40 are missing"),
        (GOOD.replace("Smiling", "Grinning"), r"anno\.txt:2: .* 1 are missing \(Smiling"),
        (annotation(*FACES, count=3), r"anno\.txt: line 1 says 3 images, but 2 lines follow"),
        (GOOD[:-4] + "\n", r"anno\.txt:4: should be an image name and 40 times 1 or -1"),
        (GOOD.replace("1.jpg  -1", "1.jpg  0"), r"anno\.txt:4: should be an image name and 40"),
        (GOOD.replace("1.jpg", "0.jpg"), r"anno\.txt:4: line 3 describes 0\.jpg already"),
        (GOOD.replace("1.jpg", "../1.jpg"), r"anno\.txt:4: '\.\./1\.jpg' is not a plain file name"),
    ],
)
def test_a_malformed_annotation_is_one_line_with_its_number(tmp_path, content, said):
    file = tmp_path / "anno.txt"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        list(read_attributes(file))


def test_captions_depend_on_the_name_and_the_attributes_alone():
    face = random_faces(1)[0]
    again = make_captions("7.jpg", sorted(face, reverse=True), 10)
    assert make_captions("7.jpg", face, 10) == again
    assert make_captions("8.jpg", face, 10) != again


def test_ten_captions_of_a_face_differ():
    for i, face in enumerate([*random_faces(100), set(), {"Male"}]):
        assert len(set(make_captions(f"{i}.jpg", face, 10))) == 10


def test_captions_are_sentences():
    for face in random_faces(300):
        text = make_caption(face, random.Random(1))
        assert re.fullmatch(r"[A-Z][a-z' ,-]+\.", text)
        assert not re.search(r"  | ,|\ba [aeio]|\ban [^aeio]|\b(\w+) \1\b", text)


# How it shows in a sentence that an attribute is annotated; the first four are those of men.
WORDS = {
    "Goatee": "goatee",
    "Mustache": "mustache|moustache",
    "Sideburns": "sideburns",
    "5_o_Clock_Shadow": "shadow|stubble|stubbly",
    "Arched_Eyebrows": "arched",
    "Attractive": "attractive|good-looking",
    "Bags_Under_Eyes": "bags",
    "Bald": "bald|no hair",
    "Bangs": "bangs|fringe",
    "Big_Lips": "big lips|full lips",
    "Big_Nose": "big nose|big pointy nose",
    "Black_Hair": "black",
    "Blond_Hair": "blond|blonde|fair hair",
    "Brown_Hair": "brown",
    "Bushy_Eyebrows": "bushy",
    "Chubby": "chubby|plump",
    "Double_Chin": "chin",
    "Eyeglasses": "glasses|eyeglasses",
    "Gray_Hair": "gray|grey|silver",
    "Heavy_Makeup": "makeup",
    "High_Cheekbones": "cheekbones",
    "Male": "man|gentleman|guy|he|He",
    "Mouth_Slightly_Open": "slightly",
    "Narrow_Eyes": "narrow",
    "Oval_Face": "oval",
    "Pale_Skin": "skin|complexion",
    "Pointy_Nose": "pointy",
    "Receding_Hairline": "hairline",
    "Rosy_Cheeks": "rosy|pink",
    "Smiling": "(?<!not )smiling|smile",
    "Straight_Hair": "straight",
    "Wavy_Hair": "wavy",
    "Wearing_Earrings": "earrings",
    "Wearing_Hat": "hat|headwear",
    "Wearing_Lipstick": "lipstick",
    "Wearing_Necklace": "necklace",
    "Wearing_Necktie": "necktie|tie",
    "Young": "young",
}


def says(text: str, attribute: str) -> bool:
    return bool(re.search(rf"\b({WORDS[attribute]})\b", text))


def test_every_attribute_but_one_of_the_photograph_can_be_said():
    assert set(ATTRIBUTES) - set(WORDS) == {"Blurry", "No_Beard"}
    for name in WORDS:
        assert any(says(text, name) for text in captions_of("Male", name)), name
    assert any("a beard" in text for text in captions_of("Male"))
    assert any("clean-shaven" in text for text in captions_of("Male", "No_Beard"))


def test_nothing_is_said_that_is_not_annotated():
    for face in random_faces(500):
        text = make_caption(face, random.Random(2))
        assert not [name for name in WORDS.keys() - face if says(text, name)], text
        assert not ("Young" in face and re.search("older|mature", text))
        assert not ("Male" in face and re.search("[Ss]he|woman|lady", text))


@pytest.mark.parametrize(
    ("has", "never"),
    [
        (
            ["Male", "Bald", "Wavy_Hair", "Black_Hair", "Bangs", "Receding_Hairline"],
            "wavy|black|bangs",
        ),
        (["Straight_Hair", "Wavy_Hair"], "straight|wavy"),
        (["Black_Hair", "Blond_Hair"], "black|blond|blonde|fair hair"),
        (["Male", "No_Beard", "Goatee"], "goatee|beard|clean-shaven"),
        (["Male", "No_Beard", "Mustache"], "beard|clean-shaven"),
        (["Bangs", "Receding_Hairline"], "bangs|fringe|hairline"),
        (["Goatee", "Mustache"], "goatee|mustache|moustache|beard"),  # of a woman
        (["Chubby", "Oval_Face"], "oval"),
        (["Smiling"], "not smiling"),
    ],
)
def test_contradictions_are_not_said(has, never):
    assert not [text for text in captions_of(*has) if re.search(rf"\b({never})\b", text)]


def test_facts_are_named_in_random_subsets_of_varied_size():
    face = {"Male", "Young", "Smiling", "Brown_Hair", "Eyeglasses", "Big_Nose", "Goatee"}
    texts = captions_of(*face)
    said = ["young", "smil", "brown hair", "glasses", "nose", "goatee"]
    sizes = {sum(word in text for word in said) for text in texts}
    assert sizes >= {2, 3, 4, 5}
    for word in said:
        assert 0.2 < sum(word in text for text in texts) / len(texts) < 0.95


class Script:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self._patch = folder, monkeypatch
        self.file = folder / "anno.txt"
        self.file.write_text(annotation(*((f"{i}.jpg", f) for i, f in enumerate(random_faces(3)))))

    def run(self, *options: str) -> None:
        argv = ["celeba_captions.py", "--attributes", str(self.file)]
        self._patch.setattr(sys, "argv", [*argv, "--out", str(self.folder / "text"), *options])
        importlib.import_module("preprocess_scripts.celeba_captions").main()


@pytest.fixture
def script(tmp_path, monkeypatch) -> Script:
    return Script(tmp_path, monkeypatch)


def test_the_script_writes_ten_lines_a_face_that_the_loader_reads(script):
    script.run()
    samples = [Sample(str(i), script.folder / "image" / f"{i}.jpg") for i in range(3)]
    captions = load_captions(samples, script.folder / "text")
    assert captions == [make_captions(f"{i}.jpg", f, 10) for i, f in enumerate(random_faces(3))]


def test_the_script_goes_on_but_replaces_no_other_captions(script, capsys):
    script.run()
    (script.folder / "text" / "2.txt").unlink()
    script.run()
    assert (script.folder / "text" / "2.txt").is_file()
    (script.folder / "text" / "1.txt").write_text("someone else's words\n")
    with pytest.raises(SystemExit) as ended:
        script.run()
    assert ended.value.code == 2
    assert "1.txt: holds other captions already; choose another --out" in capsys.readouterr().err
