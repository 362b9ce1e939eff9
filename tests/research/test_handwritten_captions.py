"""Sentences that the demo's grammar cannot make."""

import pytest
import torch

from demo.make_faces import ATTRIBUTES
from research.attributes.check_handwritten import CAPTIONS, fraction_shown, read_captions
from utils.base.errors import UserError


def test_fifty_sentences_state_attributes_that_a_face_can_show():
    texts, stated = read_captions(CAPTIONS)
    assert len(texts) == len(set(texts)) == 50
    assert {name for states in stated for name in states} == set(ATTRIBUTES)
    for states in stated:
        if states.get("headwear", "none") != "none":
            assert "hair_style" not in states and "hair_color" not in states
        if states.get("glasses") == "sunglasses":
            assert "eyes" not in states


def test_each_stated_attribute_of_each_image_counts():
    hair, glasses = list(ATTRIBUTES).index("hair_style"), list(ATTRIBUTES).index("glasses")
    shown = torch.zeros(2, 4, len(ATTRIBUTES), dtype=torch.int64)
    shown[0, :3, hair] = ATTRIBUTES["hair_style"].index("bun")
    shown[1, :, glasses] = ATTRIBUTES["glasses"].index("round")
    stated = [{"hair_style": "bun"}, {"glasses": "round", "hair_style": "bun"}]
    table = fraction_shown(shown, stated)
    assert table["captions"] == [75.0, 50.0]
    assert table["hair_style"] == 37.5 and table["glasses"] == 100.0
    assert table["all"] == pytest.approx((75 + 100 + 0) / 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 1: expected"),
        (
            '{"text": "a bald man", "states": {"hair_style": "bald"}}',
            "no attribute hair_style = bald",
        ),
        ("", "no sentences"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, line, message):
    path = tmp_path / "captions.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=message):
        read_captions(path)
