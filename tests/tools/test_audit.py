"""tools/audit.py on rendered faces: what is broken on purpose is found, and nothing else."""

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from html_page import Page
from PIL import Image, ImageFilter
from scipy.stats import mannwhitneyu

from demo.make_faces import make_split
from tools import audit
from utils.config.load import load_config
from utils.evaluation.audit.faults import bar_widths, find_faults
from utils.evaluation.audit.terms import common_terms, phrases_of, said_of
from utils.evaluation.audit.verdict import prior_sentence
from utils.evaluation.audit.words import area_under_curve, mean_difference
from utils.evaluation.audit.written import find_audit

DEMO = ROOT / "configs" / "demo" / "demo.yaml"
FACES, NONSENSE = 60, "zorblax"


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Rendered faces with captions, one in three with a meaningless word; four are broken."""
    folder = tmp_path_factory.mktemp("faces")
    make_split(folder, "train", FACES, 3, 1)
    images, captions = folder / "train" / "images", folder / "train" / "captions"
    rng = random.Random(0)
    for file in sorted(captions.glob("*.txt")):
        if rng.random() < 1 / 3:
            file.write_text(f"{file.read_text()}a {NONSENSE} person\n")

    def add(name: str, image: Image.Image) -> None:
        image.save(images / f"{name}.png")
        (captions / f"{name}.txt").write_text("a person\n")

    face = Image.open(images / "000003.png")
    face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(images / "double.jpg", quality=80)
    (captions / "double.txt").write_text("a person\n")
    add("constant", Image.new("RGB", (128, 128), "#7f8081"))
    boxed = Image.new("RGB", (128, 128))
    boxed.paste(Image.open(images / "000004.png").resize((128, 100)), (0, 14))
    add("boxed", boxed)
    add("blurred", Image.open(images / "000005.png").filter(ImageFilter.GaussianBlur(5)))
    add("tiny", Image.open(images / "000006.png").resize((40, 40)))
    (images / "broken.png").write_bytes(b"no image")
    (captions / "broken.txt").write_text("a person\n")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Call the tool on images, without databases; returns its folder of files."""

    def call(images: Path | None, captions: Path | None, *flags: object) -> Path:
        keys = {"data.image_dir": images, "data.caption_dir": captions}
        unset = ("data.root", "data.feat_path", "eval.image_dir", "eval.caption_dir")
        keys |= dict.fromkeys(unset)
        words = [f"{key}={value or 'null'}" for key, value in keys.items()]
        argv = [
            "audit.py",
            "--config",
            str(DEMO),
            *words,
            "--out",
            str(tmp_path),
            "--device",
            "cpu",
        ]
        monkeypatch.setattr(sys, "argv", [*argv, *map(str, flags)])
        audit.main()
        return tmp_path

    return call


@pytest.fixture(scope="module")
def whole(faces, tmp_path_factory) -> tuple[dict, Page, str]:
    """The audit of all faces with captions: JSON, page, and the console."""
    out, patch = tmp_path_factory.mktemp("whole"), pytest.MonkeyPatch()
    train = faces / "train"
    flags = [f"data.image_dir={train / 'images'}", f"data.caption_dir={train / 'captions'}"]
    flags += ["data.root=null", "data.feat_path=null", "--out", str(out), "--device", "cpu"]
    lines: list[str] = []
    patch.setattr(sys, "argv", ["audit.py", "--config", str(DEMO), *flags])
    patch.setattr("builtins.print", lambda *text, **_: lines.append(" ".join(map(str, text))))
    audit.main()
    patch.undo()
    values = json.loads((out / "audit.json").read_text())
    return values, Page((out / "audit.html").read_text()), "\n".join(lines)


def test_each_broken_image_is_named_under_its_fault_and_no_other_is(whole):
    images = whole[0]["images"]
    assert images["faults"] == {
        "constant": ["constant"],
        "bars": ["boxed"],
        "tiny": ["tiny"],
        "blurred": ["blurred"],
    }
    assert len(images["unreadable"]) == 1 and "broken.png" in images["unreadable"][0]
    assert images["looked_at"] == FACES + 5


def test_a_mirrored_and_compressed_copy_is_a_near_duplicate(whole):
    pairs = [pair for pair in whole[0]["images"]["near_duplicates"] if pair["mirrored"]]
    assert [{pair["first"], pair["second"]} for pair in pairs] == [{"000003", "double"}]


def test_a_meaningless_word_is_not_known_and_colours_are(whole):
    states = {word["text"]: word for word in whole[0]["texts"]["words"]}
    assert states[NONSENSE]["state"] == "not known"
    assert states[NONSENSE]["low"] < 0.5 < states[NONSENSE]["high"]
    assert all(states[word]["state"] == "known" for word in ("sunglasses", "beard"))
    assert states["beard"]["expected"] == pytest.approx(states["beard"]["images"], abs=1)


def test_the_vae_and_the_gap_are_those_of_the_demo(whole):
    values = whole[0]
    assert 28 < values["vae"]["psnr"]["median"] < 34
    assert 0 < values["vae"]["distance"]["median"] < 0.1
    assert 30 < values["gap"]["angle"] < 45
    assert values["texts"]["retrieval"]["retrieval_5"] > 50


def test_the_page_says_the_verdict_first_and_loads_no_file(whole):
    values, page, console = whole
    sentences = [sentence["text"] for sentence in values["verdict"].values()]
    assert len(sentences) == 3 and not values["go"]
    assert all(sentence in page.text and sentence in console for sentence in sentences)
    assert sentences[0].startswith("Change the images: of 66 images")
    assert sentences[2].startswith("Change the number of images: a prior learns 66 by heart")
    assert all(address.startswith("data:") for address in page.loads)
    assert page.text.index(sentences[2]) < page.text.index("What the VAE loses")


def test_without_captions_words_are_shown_unverified(run, faces, capsys):
    out = run(faces / "train" / "images", None, "--images", 24, "--words", "glasses", "a beard")
    values, page = (
        json.loads((out / "audit.json").read_text()),
        Page((out / "audit.html").read_text()),
    )
    assert [word["state"] for word in values["texts"]["given"]] == ["unverified"] * 2
    assert values["gap"] is None and values["texts"]["words"] is None
    assert "Unverified" in page.text and "unverified" in values["verdict"]["words"]["text"]
    assert "no captions are there" in capsys.readouterr().err


def test_mistakes_are_one_line(run, faces, capsys, tmp_path):
    # Files come first: a CLIP that is missing is not named before them.
    images, no_clip = faces / "train" / "images", "encoders.clip=nowhere/clip"
    (tmp_path / "few").mkdir()
    shutil.copy(images / "000003.png", tmp_path / "few")
    cases = [
        ((None, None), "data.image_dir: not set"),
        ((tmp_path / "none", None, no_clip), "none: there is no image folder"),
        ((tmp_path / "few", None, no_clip), "few: holds 1 images; an audit needs 8"),
        ((images, tmp_path / "none", no_clip), "none: there is no caption folder"),
        ((images, None, no_clip, "--out", images / "000003.png"), "000003.png: is a file; name"),
        ((images, None, no_clip), "encoders.clip: no CLIP at nowhere"),
        ((images, None, "--images", 2), "--images must be at least 8"),
        ((images, None, "--words", tmp_path / "none.txt"), "none.txt: cannot be read"),
    ]
    for args, message in cases:
        with pytest.raises(SystemExit) as stop:
            run(*args)
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 2 and message in last


def test_what_is_negated_is_not_said():
    captions = [["a man with red hair, no hat"], ["a hat on brown hair"], ["hair, red hat"], []]
    assert said_of("a red hat", captions).tolist() == [False, False, True, False]
    assert said_of("red hair", captions).tolist() == [True, False, False, False]
    assert said_of("hat", captions).tolist() == [False, True, True, False]
    assert said_of("a person", captions).tolist() == [False] * 4
    assert phrases_of("She wears no big hat") == (("no big hat",),)


def test_common_words_leave_out_what_says_nothing_more():
    captions = [["a person with a top hat"]] * 6 + [["red hair"]] * 5 + [["brown hair"]] * 9
    found = {term: int(said.sum()) for term, said in common_terms(captions).items()}
    assert found == {"brown": 9, "hat": 6, "top": 6, "red": 5}  # hair is on most images


def test_the_area_is_that_of_mann_and_whitney_and_is_one_half_for_noise():
    rng = np.random.default_rng(0)
    scores, shown = rng.normal(size=200).round(1), rng.random(200) < 0.3
    area, low, high = area_under_curve(torch.from_numpy(scores), torch.from_numpy(shown))
    u = mannwhitneyu(scores[shown], scores[~shown]).statistic
    assert area == pytest.approx(u / (shown.sum() * (~shown).sum()))
    assert low < 0.5 < high and high - low < 0.25
    assert area_under_curve(torch.tensor(shown * 1.0), torch.from_numpy(shown))[0] == 1


def test_chance_differences_of_few_images_do_not_count_as_visible():
    generator = torch.Generator().manual_seed(0)
    x, shown = torch.randn(100, 400, generator=generator), torch.arange(100) < 12
    assert mean_difference(x, shown) < 0.1
    assert mean_difference(x + shown[:, None], shown) == pytest.approx(0.95, abs=0.05)
    assert mean_difference(x, shown & ~shown) is None


def test_a_plain_background_is_no_bar():
    plain = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    plain[:, :, 20:, 22:42] = 30  # shoulders before a background
    assert bar_widths(plain).sum() == 0
    pillar = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    pillar[..., :6] = 255
    assert bar_widths(pillar).tolist() == [[0, 0, 6, 0]]
    assert find_faults(pillar, torch.tensor([[64, 64]]))["bars"] == [0]


def test_the_prior_sentence_follows_the_number_of_images_and_the_gap():
    assert not prior_sentence(600, 36).go
    assert "sampling.freedom=0.7" in prior_sentence(10_000, 36).text
    assert "sampling.freedom=1 (the gap is wide, 65°)" in prior_sentence(1_701, 65).text


def test_the_report_takes_the_audit_of_its_experiment_if_the_clip_is_the_same(tmp_path, capsys):
    config = load_config(DEMO, [f"data.root={tmp_path / 'lmdb' / 'z'}"])
    assert find_audit(tmp_path / "run", config, "clip-1") is None
    sentence = {"go": True, "text": "Go."}
    values = {"verdict": {"images": sentence}, "encoders": {"clip": "clip-1"}}
    folder = tmp_path / "lmdb" / "audit"
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps(values))
    found = find_audit(tmp_path / "run", config, "clip-1")
    assert found.page == folder / "audit.html" and found.sentences[0].text == "Go."
    assert find_audit(tmp_path / "run", config, "clip-2") is None
    (folder / "audit.json").write_text("[]")
    assert find_audit(tmp_path / "run", config, "clip-1") is None
    assert "is no audit" in capsys.readouterr().err
