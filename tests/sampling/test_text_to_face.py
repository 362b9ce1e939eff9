"""The Python interface: it generates what the command line does, and refuses the same mistakes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from alike import assert_alike
from conftest import crude_face
from PIL import Image
from tiny import DIM, RESOLUTION, make_tiny_checkpoint, make_tiny_config

import t2f
from utils.base.errors import UserError
from utils.config.sampling_sections import Sampling
from utils.pretrained.denoisers import export_safetensors
from utils.pretrained.hub import answers
from utils.sampling.text_to_face import DEMO, DEMO_STUDENT, TextToFace

pytestmark = pytest.mark.bits  # of `make test-machines`


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return make_tiny_checkpoint(folder / "0000010.pt", make_tiny_config(folder))


@pytest.fixture(scope="module")
def faces(checkpoint) -> TextToFace:
    return TextToFace.load(checkpoint, device="cpu")


@pytest.fixture
def face(tmp_path) -> Path:
    crude_face(3, 48).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--num", 3], {"num": 3}),
        (["--seeds", "4,7"], {"seeds": [4, 7]}),
        (["--num", 2, "--seed", 5], {"num": 2, "seed": 5}),
        (["--num", 1, "--mix", "3,7", "--mix", "1,1"], {"mix": [(3, 7), "1,1"]}),
        (["--num", 1, "--interpolate", 3], {"interpolate": 3}),
        (["--num", 1, "--cfg_scale", "None"], {"cfg_scale": None}),
        (["--num", 1, "--preset", "fast", "--num_steps", 4], {"preset": "fast", "num_steps": 4}),
        (["--num", 2, "--solver", "euler", "--batch_size", 1], {"num": 2, "solver": "euler"}),
        (["--num", 1, "sampling.S_churn=20"], {"S_churn": 20}),
    ],
)
def test_it_generates_the_images_of_the_command_line(
    flags, options, checkpoint, faces, face, tmp_path, monkeypatch
):
    where = ["--ckpt", checkpoint, "--out", tmp_path / "out", "--device", "cpu"]
    what = ["--image", face, "--prompt", "a hat"]
    monkeypatch.setattr(sys, "argv", ["t2f.py", *map(str, [*where, *what, *flags])])
    t2f.main()
    batch_size = 1 if "--batch_size" in flags else 16
    generation = faces.generate([face, "a hat"], batch_size=batch_size, **options)
    generation.save(tmp_path / "mine")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "mine").iterdir())
    for name in names:
        theirs, mine = (Image.open(tmp_path / folder / name) for folder in ("out", "mine"))
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
        assert mine.text == theirs.text


def test_a_image_is_equal_from_every_form_of_the_network(checkpoint, tmp_path, monkeypatch):
    export_safetensors(checkpoint, tmp_path / "dit.safetensors")
    wanted = TextToFace.load(tmp_path / "dit.safetensors").generate("red hair").images
    assert (
        np.abs(
            pixels(wanted).astype(int)
            - pixels(TextToFace.load(checkpoint).generate("red hair").images)
        ).max()
        <= 1
    )


def test_pillow_images_are_generated_like_their_files(faces, face):
    by_path, by_image = (faces.generate(source, cfg_scale=4) for source in (face, Image.open(face)))
    np.testing.assert_array_equal(pixels(by_path.images), pixels(by_image.images))
    assert by_image.rows[0].label == "face.png"


def test_an_embedding_is_the_condition_itself(faces):
    y = faces.embed(["red hair", "a hat"])
    assert y.shape == (2, DIM)
    by_prompt, by_embedding = faces.generate("a hat", seeds=[3]), faces.generate(y[1], seeds=[3])
    np.testing.assert_array_equal(pixels(by_prompt.images), pixels(by_embedding.images))


def test_a_dict_names_its_rows(faces, face):
    generation = faces.generate({"one": "red hair", "two": face})
    assert [row.label for row in generation.rows] == ["one", "two"]
    np.testing.assert_array_equal(generation.embeddings, faces.embed(["red hair", face]))


def test_the_generation_knows_rows_seeds_embeddings_and_settings(faces):
    generation = faces.generate(["red hair", "a hat"], seeds="1-2", num_steps=2, S_churn=1)
    assert [(p.row, p.label, p.seed) for p in generation.results] == [
        (0, "red hair", 1), (0, "red hair", 2), (1, "a hat", 1), (1, "a hat", 2),
    ]  # fmt: skip
    assert all(image.size == (RESOLUTION, RESOLUTION) for image in generation.images)
    np.testing.assert_array_equal(generation.embeddings, faces.embed(["red hair", "a hat"]))
    assert (generation.settings["num_steps"], generation.settings["S_churn"]) == ("2", "1.0")
    assert generation.sampling.cfg_scale == 2.0


def test_every_key_of_the_sampling_section_can_be_given(faces):
    section = faces.config.sampling.model_dump()
    assert section.keys() == Sampling.model_fields.keys()
    generation = faces.start("x", **section)
    assert generation.sampling == faces.config.sampling


def test_a_caller_stops_after_a_batch_and_goes_on_later(faces):
    whole = faces.generate("red hair", num=5)
    generation = faces.start("red hair", num=5)
    for batch in generation.batches(batch_size=2):
        assert len(batch) == 2
        break
    assert len(generation.results) == 2 and len(generation) == 5
    rest = list(generation.batches(batch_size=2))
    assert [len(batch) for batch in rest] == [2, 1]
    assert_alike(generation.images, whole.images)


def test_a_bar_is_shown_on_request(faces, capsys):
    faces.generate("red hair", num=2)
    assert capsys.readouterr().err == ""
    faces.generate("red hair", num=2, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_settings_of_a_call_do_not_stay(faces):
    faces.generate("red hair", num_steps=2)
    assert faces.start("red hair").sampling.num_steps == 3


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (" ", {}, "the prompt is empty"),
        ([], {}, "say what to generate"),
        (3, {}, "3: should be a sentence, a pathlib.Path of an image"),
        (Path("none.png"), {}, "there is no image of this name"),
        (Path("README.md"), {}, "unreadable image"),
        (Path("tests"), {}, "is a folder"),
        (torch.ones(3), {}, f"should be {DIM} finite numbers"),
        (torch.full((DIM,), torch.nan), {}, f"should be {DIM} finite numbers"),
        ("x", {"num": 0}, "num is 0"),
        ("x", {"num": 10**9}, "num is 1000000000"),
        ("x", {"seeds": []}, "seeds []"),
        ("x", {"seeds": [1.5]}, "seeds [1.5]"),
        ("x", {"seeds": [-1]}, "seeds [-1]"),
        ("x", {"seeds": "5-1"}, "should look like 0-63,100"),
        ("x", {"num_step": 3}, "unknown key; did you mean sampling.num_steps?"),
        ("x", {"solver": "rk45"}, "solver sampling.solver: should be"),
        ("x", {"solver": "dpmpp_2m", "S_churn": 3}, "sampling: "),
        (["x", "y"], {"mix": 3}, "mix 3: should be numbers"),
        (["x", "y"], {"mix": [1]}, "number of weights is 1"),
        (["x", "y"], {"mix": [["a", 1]]}, "should be numbers"),
    ],
)  # fmt: skip
def test_mistakes_raise_one_clear_line(faces, sources, options, message):
    with pytest.raises(UserError) as fault:
        faces.generate(sources, **options)
    assert message in str(fault.value) and "\n" not in str(fault.value)


def test_a_damaged_pillow_image_is_refused(faces, face):
    face.write_bytes(face.read_bytes()[:200])
    with pytest.raises(UserError, match="the image cannot be decoded"):
        faces.generate(Image.open(face))


def test_a_prompt_of_ten_thousand_words_is_cut_with_one_note(faces, capsys):
    faces.generate("hat " * 10_000)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: CLIP reads only the first") and len(line) < 200


def test_a_batch_size_below_one_is_refused(faces):
    with pytest.raises(UserError, match="batch_size is 0"):
        faces.generate("x", batch_size=0)


def test_a_mixture_with_an_embedding_is_described(faces, tmp_path):
    y = F.normalize(torch.ones(DIM), dim=0)
    (image,) = faces.generate(["red hair", y], mix=(1, 3)).results
    image.save(tmp_path / "p.png")
    parts = json.loads(Image.open(tmp_path / "p.png").text["mix"])
    assert [part["weight"] for part in parts] == [0.25, 0.75]
    assert [next(iter(part)) for part in parts] == ["prompt", "embedding"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.pt", "none.pt does not exist"),
        ("none/none.safetensors", "does not exist"),
        ("tests", "tests: is no release folder, as it holds no model_index.json"),
        ("nobody/nothing", "nobody/nothing: is neither a file or folder here nor"),
    ],
)  # fmt: skip
def test_a_wrong_place_gives_one_clear_line(source, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answers.cache_clear()
    with pytest.raises(UserError) as fault:
        TextToFace.load(source)
    answers.cache_clear()
    assert message in str(fault.value) and "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("flags", "network"),
    [
        ((), DEMO),
        (("--preset", "fast"), DEMO),
        (("--preset", "instant"), DEMO_STUDENT),
        (("--preset", "instant", "--ckpt", "mine.pt"), "mine.pt"),
    ],
)
def test_the_preset_of_students_generates_with_the_shipped_student(monkeypatch, flags, network):
    monkeypatch.setattr(sys, "argv", ["t2f.py", "--prompt", "red hair", *flags])
    assert t2f.parse_args().ckpt == Path(network)
