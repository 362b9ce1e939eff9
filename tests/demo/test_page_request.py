"""Requests to the page are read, limited and answered; no browser or server is needed."""

import base64
import io
import sys
from urllib.parse import parse_qs, urlencode

import numpy as np
import pytest
from conftest import crude_face
from PIL import Image
from tiny import CONTEXT_LENGTH, DIM, RESOLUTION, make_tiny_checkpoint, make_tiny_config

import t2f
from demo.page.edits import read_request
from demo.page.request import ImageRequest, Limits, base64_text, read_upload
from utils.base.errors import UserError
from utils.pretrained.denoisers import export_safetensors
from utils.sampling.text_to_face import TextToFace

pytestmark = pytest.mark.bits  # of `make test-machines`

LIMITS = Limits()


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    make_tiny_checkpoint(folder / "0000010.pt", make_tiny_config(folder))
    export_safetensors(folder / "0000010.pt", folder / "dit.safetensors")
    return folder / "dit.safetensors"


@pytest.fixture(scope="module")
def faces(released) -> TextToFace:
    return TextToFace.load(released, device="cpu")


def png_file(size=(48, 48)) -> bytes:
    file = io.BytesIO()
    crude_face(3, 48).resize(size).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def face(faces) -> str:
    """The value of a link's `image` for an uploaded face."""
    return read_upload(faces, "face.png", png_file(), LIMITS)["image"]


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.urlsafe_b64decode(text)))


def generate(faces, query: str, batch_size: int = 4) -> list[dict]:
    """Answer a request; return its images, each with the decoded `image`."""
    messages = ImageRequest.read(query, LIMITS).messages(faces, batch_size)
    generated = [message["image"] for message in messages if "image" in message]
    return [{**shown, "image": decoded(shown["png"])} for shown in generated]


def refusal(query: str, limits: Limits = LIMITS) -> str:
    with pytest.raises(UserError) as fault:
        ImageRequest.read(query, limits)
    (line,) = str(fault.value).splitlines()
    return line


def test_the_page_generates_the_images_of_the_command_line(faces, released, tmp_path, monkeypatch):
    (tmp_path / "face.png").write_bytes(png_file())
    flags = ["--prompt", "red hair", "--image", tmp_path / "face.png", "--mix", "0.3,0.7"]
    flags += ["--num", 3, "--seed", 5, "--cfg_scale", 3, "--num_steps", 4, "--preset", "paper"]
    where = ["--ckpt", released, "--out", tmp_path / "out", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["t2f.py", *map(str, [*where, *flags])])
    t2f.main()
    image = read_upload(faces, "face.png", png_file(), LIMITS)["image"]
    query = f"prompt=red+hair&image={image}&mix=0.3,0.7&num=3&seed=5"
    generated = generate(faces, query + "&cfg_scale=3&num_steps=4&preset=paper")
    assert [shown["name"] for shown in generated] == ["00_005.png", "00_006.png", "00_007.png"]
    for shown in generated:
        theirs = Image.open(tmp_path / "out" / shown["name"])
        np.testing.assert_array_equal(np.asarray(shown["image"]), np.asarray(theirs))
        for key in ("prompt", "seed", "cfg_scale", "num_steps", "solver", "checkpoint"):
            assert shown["image"].text[key] == theirs.text[key]


@pytest.mark.parametrize(
    "query",
    [
        "prompt=red+hair&prompt=a+hat&num=2&seed=7",
        "prompt=red+hair&image={face}&mix=1,2&num=2",
        "prompt=red+hair&prompt=a+hat&interpolate=5&num=1&cfg_scale=None",
        "image={face}&num=3&preset=fast&num_steps=3",
    ],
)
def test_the_link_of_an_image_repeats_it(query, faces, face):
    alone = generate(faces, query.format(face=face), batch_size=1)
    together = generate(faces, query.format(face=face))
    for shown, other in zip(alone, together, strict=True):
        (again,) = generate(faces, shown["link"])
        assert again["seed"] == shown["seed"]
        pixels = np.asarray(again["image"]).astype(int)
        np.testing.assert_array_equal(pixels, np.asarray(shown["image"]))
        # A batch of another size rounds differently.
        np.testing.assert_allclose(pixels, np.asarray(other["image"]), atol=1)
        assert other["image"].text["link"] == "?" + other["link"] == "?" + shown["link"]


def test_a_link_names_one_image_and_the_settings_that_were_given(faces):
    request = ImageRequest.read("prompt=red+hair&prompt=a+hat&num=8&seed=3&cfg_scale=2", LIMITS)
    wanted = {"prompt": ["a hat"], "num": ["1"], "seed": ["4"], "cfg_scale": ["2.0"]}
    assert parse_qs(request.link(1, 4)) == wanted


def test_messages_are_rows_then_images_then_the_grid(faces):
    request = ImageRequest.read("prompt=red+hair&prompt=a+hat&num=2", LIMITS)
    first, *others = request.messages(faces, batch_size=3)
    assert first == {"rows": ["red hair", "a hat"], "seeds": [0, 1], "notes": []}
    assert [next(iter(message)) for message in others] == ["image"] * 4 + ["grid"]
    grid = decoded(others[-1]["grid"]["png"])
    assert grid.text["prompt"] == "red hair\na hat"
    assert grid.text["seed"] == "0 1"


def test_an_image_is_shown_as_clip_sees_it_and_named_in_the_png(faces, face):
    kept = read_upload(faces, "../secret/face.png", png_file((96, 48)), LIMITS)
    assert decoded(kept["thumbnail"]).size == (RESOLUTION, RESOLUTION)
    assert kept["name"] == "face.png"
    (shown,) = generate(faces, f"image={face}")
    assert shown["image"].text["embedding"].startswith("face.png ")


def test_two_images_of_one_name_are_two_sources(faces, face):
    other = io.BytesIO()
    crude_face(8, 48).save(other, format="PNG")
    second = read_upload(faces, "face.png", other.getvalue(), LIMITS)["image"]
    request = ImageRequest.read(f"image={face}&image={second}", LIMITS)
    a, b = request.start(faces).embeddings
    assert (a - b).abs().max() > 0.01


def test_a_sentence_that_clip_cuts_is_named_in_a_note(faces):
    request = ImageRequest.read("prompt=" + "red+" * CONTEXT_LENGTH, LIMITS)
    (note,) = request.notes(faces)
    assert f"first {CONTEXT_LENGTH} tokens" in note


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("", "nothing to generate yet"),
        ("prompt=+&num=2", "the prompt is empty"),
        ("prompt=" + "word+" * 10_000, "has 50000 characters; the page takes up to 600"),
        ("&".join(["prompt=a"] * 17), "17 sentences and images; the page takes up to 16"),
        ("&".join(["prompt=a"] * 101), "more than 100 parts"),
        ("prompt=a&num=65", "num '65': should be a whole number, 1 to 64"),
        ("prompt=a&num=0", "num '0'"),
        ("prompt=a&num=" + "9" * 5000, "num '9999"),
        ("prompt=a&num=4.5", "num '4.5'"),
        ("prompt=a&seed=-1", "seed '-1'"),
        (
            "prompt=a&seed=4294967296",
            "seed '4294967296': should be a whole number, 0 to 4294967295",
        ),
        ("prompt=a&prompt=b&num=33", "2 times 33 images are 66"),
        ("prompt=a&prompt=b&interpolate=1000000000", "interpolate '1000000000'"),
        ("prompt=a&prompt=b&prompt=c&interpolate=3", "between two prompts or images, not 3"),
        ("prompt=a&prompt=b&mix=1", "number of weights is 1, but there are 2"),
        ("prompt=a&prompt=b&mix=nan,1", "mix nan,1: should be numbers"),
        ("prompt=a&num_steps=1000000000", "num_steps '1000000000': should be a whole number, 1 to"),
        ("prompt=a&num_steps=many", "num_steps 'many'"),
        ("prompt=a&cfg_scale=much", "guidance scale 'much'"),
        ("prompt=a&ckpt=/etc/passwd", "'ckpt': unknown key"),
        ("prompt=a&seed=1&seed=2", "seed is given twice"),
        ("image=face.png:%20%20", "image 'face.png': the link is damaged"),
        ("image=face.png:abcde", "image 'face.png': the link is damaged"),
    ],
)
def test_a_mistake_in_an_order_is_one_clear_line(query, line):
    assert line in refusal(query)


@pytest.mark.parametrize(
    ("query", "line"),
    [
        (
            "num=64&num_steps=40&preset=paper",
            "64 images of 40 steps (heun) run the network 10112",
        ),
        ("num=8&num_steps=1000", "the page allows 6000"),
        ("preset=best", "preset"),
        ("freedom=-1", "freedom"),
        ("freedom=0.8", "needs a prior"),
        ("solver=magic", "solver"),
    ],
)
def test_a_wrong_or_costly_setting_is_one_clear_line_before_the_first_image(query, line, faces):
    request = ImageRequest.read(f"prompt=a&{query}", LIMITS)
    with pytest.raises(UserError) as fault:
        request.start(faces)
    assert line in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("numbers", [[0.5] * (DIM - 1), [float("nan")] * DIM, []])
def test_an_embedding_that_does_not_fit_the_network_is_refused(numbers, faces):
    code = base64.urlsafe_b64encode(np.array(numbers, "<f4").tobytes()).decode()
    with pytest.raises(UserError, match=f"should be {DIM} finite numbers"):
        ImageRequest.read(f"image=face.png:{code}", LIMITS).start(faces)


def edited(faces, **form: str) -> list[dict]:
    messages = read_request(urlencode(form), LIMITS).messages(faces, 4)
    return [message["image"] for message in messages if "image" in message]


def test_an_edit_gives_the_pixels_of_python_and_no_link_that_holds_a_face(faces):
    kept = read_upload(faces, "face.png", png_file((96, 48)), LIMITS)
    mask = Image.new("L", (RESOLUTION, RESOLUTION))
    mask.paste(255, (0, 0, RESOLUTION, RESOLUTION // 2))
    file = io.BytesIO()
    mask.save(file, format="PNG")
    form = {"face": f"face.png:{kept['thumbnail']}", "mask": base64.b64encode(file.getvalue())}
    (shown,) = edited(faces, **form, prompt="a hat", strength="0.7", seed="3")
    face = Image.open(io.BytesIO(png_file((96, 48))))
    (wanted,) = faces.edit(face, prompts=["a hat"], strength=0.7, mask=mask, seeds=[3]).images
    image = decoded(shown["png"])
    np.testing.assert_array_equal(np.asarray(image), np.asarray(wanted))
    assert shown["link"] is None and "link" not in image.text
    assert image.text["strength"] == "0.7"


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ({"face": "me.png:" + base64_text(b"MZ")}, "nothing to change yet"),
        ({"face": "me.png:" + base64_text(b"MZ"), "add": "a hat"}, "me.png: unreadable image"),
        ({"face": "me.png:!", "add": "a hat"}, "me.png: is no base64"),
        ({"add": "a hat"}, "an edit takes one image"),
        ({"prompt": "a man", "strength": "much"}, "strength 'much': should be a number"),
        ({"prompt": "a man", "add": "a hat", "num": "2"}, "has one seed, not 2"),
        ({"prompt": "a man", "vary": "age", "interpolate": "64"}, "192 times 1 images"),
        ({"prompt": "a man", "from": "a hat"}, "say with to how it shall be"),
        ({"prompt": "a man", "add": "word " * 200}, "has 1000 characters"),
        ({"prompt": "a man", "add": "a hat", "image": "x"}, "'image': unknown key"),
        ({"prompt": "a man", "add": "a hat", "mask": "x"}, "the mask: is no base64"),
    ],
)
def test_a_mistake_in_an_edit_is_one_clear_line(form, line, faces):
    with pytest.raises(UserError) as fault:
        edited(faces, **form)
    assert line in str(fault.value) and "\n" not in str(fault.value)


def test_a_face_or_mask_of_50_megapixels_is_one_clear_line(faces):
    large, small = base64_text(bomb()), base64_text(png_file())
    for form in ({"face": f"me.png:{large}"}, {"face": small, "mask": large}):
        with pytest.raises(UserError, match="has 10000 × 5000 pixels"):
            edited(faces, **form, add="a hat")


def bomb() -> bytes:
    """A PNG of 50 megapixels in few bytes."""
    file = io.BytesIO()
    Image.new("1", (10_000, 5_000)).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (bomb(), "upload.png: has 10000 × 5000 pixels; the page takes images of up to 25"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "upload.png: unreadable image (of no known format)"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unreadable image"),
        (png_file()[:200], "upload.png: unreadable image"),
        (b"", "unreadable image"),
    ],
    ids=["50 megapixels", "a program", "markup", "cut off", "empty"],
)
def test_a_hostile_upload_is_one_clear_line(content, line, faces):
    with pytest.raises(UserError) as fault:
        read_upload(faces, "upload.png", content, LIMITS)
    assert line in str(fault.value)
    assert "\n" not in str(fault.value)
