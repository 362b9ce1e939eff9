"""The faces of the demo and their captions."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from demo.captions import make_caption
from demo.make_faces import (
    ATTRIBUTES,
    encode_attributes,
    hide,
    make_face,
    make_split,
    random_attributes,
    render,
)
from utils.base.errors import UserError


def faces(count: int) -> list[dict[str, str]]:
    return [random_attributes(random.Random(i)) for i in range(count)]


def test_a_face_depends_on_its_split_and_index_only():
    assert make_face("train", 7, 3) == make_face("train", 7, 3)
    assert make_face("train", 7, 3) != make_face("test", 7, 3)
    face, _ = make_face("train", 7, 3)
    assert np.array_equal(np.asarray(render(face)), np.asarray(render(face)))


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_value_of_an_attribute_can_be_seen(name):
    """All else equal, each value gives another image."""
    face = faces(1)[0] | {"headwear": "none", "glasses": "none", "facial_hair": "none"}
    if name == "headwear_color":
        face["headwear"] = "hat"
    images = {render(face | {name: value}).tobytes() for value in ATTRIBUTES[name]}
    assert len(images) == len(ATTRIBUTES[name])


def test_what_a_face_cannot_show_is_hidden():
    face = faces(1)[0] | {"headwear": "turban", "facial_hair": "none", "glasses": "sunglasses"}
    shown = hide(face)
    assert [shown[n] for n in ("hair_style", "hair_color", "eyes")] == ["hidden"] * 3
    assert encode_attributes(shown)[list(ATTRIBUTES).index("eyes")] == -1


def test_a_caption_states_only_shown_attributes_and_names_the_required_one():
    rng = random.Random(0)
    for face in faces(300):
        shown = hide(face)
        caption = make_caption(shown, rng, must_name="expression")
        assert "expression" in caption["states"]
        assert all(shown[name] != "hidden" for name in caption["states"])


def test_stated_colours_and_kinds_are_in_the_text():
    rng = random.Random(1)
    for face in faces(300):
        shown = hide(face)
        caption = make_caption(shown, rng)
        for value in ("purple", "yellow"):  # fabric colours with few wordings
            words = {"purple": ("purple", "violet"), "yellow": ("yellow",)}[value]
            if "clothes_color" in caption["states"] and shown["clothes_color"] == value:
                assert any(word in caption["text"] for word in words), caption


def test_captions_vary_in_wording_and_in_the_attributes_that_they_name():
    rng = random.Random(2)
    captions = [make_caption(hide(faces(1)[0]), rng) for _ in range(50)]
    assert len({c["text"] for c in captions}) > 45
    assert len({tuple(c["states"]) for c in captions}) > 30


def run_make_faces(tmp_path, *options):
    command = [sys.executable, "demo/make_faces.py", "--out", str(tmp_path), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_make_faces_writes_images_captions_and_attributes_and_resumes(tmp_path):
    small = ("--num_train", "6", "--num_test", "2", "--num_captions", "3", "--workers", "1")
    assert run_make_faces(tmp_path, *small).returncode == 0
    records = [json.loads(x) for x in (tmp_path / "train" / "faces.jsonl").read_text().splitlines()]
    captions = (tmp_path / "train" / "captions" / "000004.txt").read_text().splitlines()
    assert captions == [c["text"] for c in records[4]["captions"]]
    image = (tmp_path / "train" / "images" / "000004.png").read_bytes()
    (tmp_path / "train" / "faces.jsonl").unlink()  # like a run that was interrupted
    (tmp_path / "train" / "captions" / "000004.txt").unlink()
    assert run_make_faces(tmp_path, *small).returncode == 0
    assert (tmp_path / "train" / "images" / "000004.png").read_bytes() == image
    assert (tmp_path / "train" / "faces.jsonl").exists()


@pytest.mark.parametrize(
    ("count", "captions", "said"),
    [
        (1, 2, "holds 2 faces, and 1 are asked for; name another folder with --out"),
        (2, 1, "its faces have 2 captions, and 1 are asked for; name another folder with --out"),
    ],
)
def test_faces_of_another_run_are_not_mixed_in(tmp_path, count, captions, said):
    make_split(tmp_path, "train", 2, 2, workers=1)
    make_split(tmp_path, "train", 2, 2, workers=1)  # the same again
    with pytest.raises(UserError, match=said):
        make_split(tmp_path, "train", count, captions, workers=1)
    make_split(tmp_path, "train", 3, 2, workers=1)
    assert len(list((tmp_path / "train" / "images").iterdir())) == 3


def test_make_faces_refuses_a_count_of_zero_in_one_line(tmp_path):
    result = run_make_faces(tmp_path, "--num_train", "0")
    assert result.returncode == 2
    assert result.stderr.strip() == "error: --num_train must be at least 1, not 0"
