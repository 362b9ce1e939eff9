"""The check of variety, from the command line to the file of figures."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from demo.make_faces import make_face, render
from models.clip import load_clip
from research.attributes.classifier import build_classifier
from research.attributes.model import Model
from research.variety import check as check_variety
from utils.data.lmdb_writer import LMDBWriter

FACES = 12


@pytest.fixture
def check(tmp_path, monkeypatch):
    """`check(*words)` runs the script with the shipped network and an untrained classifier."""
    made = [make_face("test", index, 2) for index in range(FACES)]
    (tmp_path / "test").mkdir()
    lines = [json.dumps(record) for _, record in made]
    (tmp_path / "test" / "faces.jsonl").write_text("\n".join(lines))
    pixels = np.stack([np.asarray(render(face)) for face, _ in made])
    clip = load_clip("assets/demo/clip")
    embeddings = clip.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with LMDBWriter(tmp_path / "y", "y", {"encoder": clip.identity}, FACES) as writer:
        writer.append(embeddings[:, None].numpy())
    torch.manual_seed(0)
    save_file(build_classifier().state_dict(), tmp_path / "classifier.safetensors")
    sentences = [{"text": "a person", "states": {}}, {"text": "a beard", "states": STATES}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, sentences)))

    def run(*words: str) -> dict:
        given = {
            "--prompts": tmp_path / "prompts.jsonl",
            "--data": tmp_path,
            "--classifier": tmp_path / "classifier.safetensors",
            "--out": tmp_path / "points.json",
            "--seeds": 2,
        }
        flags = [str(word) for pair in given.items() for word in pair]
        overrides = [f"eval.image_feat_path={tmp_path / 'y'}", "sampling.num_steps=2"]
        monkeypatch.setattr(sys, "argv", ["check_variety.py", *flags, *overrides, *words])
        check_variety.main()
        return json.loads((tmp_path / "points.json").read_text())[-1]

    return run


STATES = {"facial_hair": "beard"}


def test_sentences_and_captions_are_generated_and_classified(check, capsys):
    point = check("--captions", "10")
    assert point["seeds"] == 2
    assert [row["stated"] is None for row in point["prompts"]] == [True, False]
    assert 0 <= point["ratio"] <= 2 and 0 < point["data_variety"] < 1
    captions = point["captions"]
    assert captions["n"] == 10 and captions["frechet_distance"] > 0
    assert 0 <= captions["recall"] <= 1 and 0 <= captions["attributes"] <= 100
    said = capsys.readouterr().out
    assert "a beard" in said and "10 captions of held-out faces" in said


def test_settings_on_the_command_line_change_the_images(check):
    plain = check("--captions", "0")
    assert plain["captions"] is None
    checkpoint = check_variety.parse_args().ckpt
    one, other = (
        Model.load(checkpoint, [*plain["settings"], *more])
        for more in ((), ("sampling.cfg_scale=4",))
    )
    first = one.generate(one.conditions(["a beard"]), [3])
    assert first.shape == (1, 3, 128, 128)
    assert torch.equal(first, one.generate(one.conditions(["a beard"]), [3]))
    assert not torch.equal(first, other.generate(other.conditions(["a beard"]), [3]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1"], "--seeds must be at least 2"),
        (["--captions", "5"], "--captions must be 0 or at least 10"),
        (["--prompts", "nowhere"], "--prompts: nowhere is not a file"),
        (["eval.image_feat_path=null"], "eval.image_feat_path: not set"),
    ],
)
def test_mistakes_give_one_clear_line(check, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        check(*words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_sentence_that_no_face_can_show_is_refused_before_the_sampling(check, capsys, tmp_path):
    states = {"hair_style": "bun", "headwear": "hat"}
    path = tmp_path / "contradiction.jsonl"
    path.write_text(json.dumps({"text": "a bun under a hat", "states": states}))
    with pytest.raises(SystemExit) as stop:
        check("--prompts", str(path), "--ckpt", "nowhere.pt")
    assert stop.value.code == 2
    assert "hair_style = bun, headwear = hat: 0 of 200,000" in capsys.readouterr().err
