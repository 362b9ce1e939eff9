"""The page in a real browser: headless Chromium, the shipped network, one server for all tests."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from conftest import ROOT, crude_face
from PIL import Image

from utils.sampling.text_to_face import DEMO, TextToFace

pytestmark = pytest.mark.e2e
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("needs a browser: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402

LONGEST = 90_000  # milliseconds, for a machine that does other work too
expect.set_options(timeout=LONGEST)
MANY = "prompt=a+person+with+red+hair&num=24&preset=paper&cfg_scale=None"  # a minute of sampling


@pytest.fixture(scope="module")
def address():
    """Serve the page as a user does; return its address."""
    command = [sys.executable, "demo/app.py", "--port", "0", "--batch_size", "2"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield server.stdout.readline().split()[0]
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Return visit(query, width): a new visitor's page. It must show no fault of a script."""
    contexts, faults, foreign = [], [], []

    def call(query: str = "", width: int = 1240) -> Page:
        size = {"width": width, "height": 844}
        contexts.append(browser.new_context(viewport=size, reduced_motion="reduce"))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda fault: faults.append(fault))
        known = (address, "blob:", "data:")
        page.on("request", lambda r: r.url.startswith(known) or foreign.append(r.url))
        page.goto(f"{address}/?{query}")
        expect(page.locator("#source")).to_contain_text("dit.safetensors")
        return page

    yield call
    for context in contexts:
        context.close()
    assert (faults, foreign) == ([], [])


def generate(page: Page, sentences: str, images: int | None = None) -> None:
    page.get_by_label("Sentences").fill(sentences)
    if images:
        page.get_by_role("spinbutton", name="Images").fill(str(images))
    page.get_by_role("button", name="Generate").click()


def finished(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_have_text(text)
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def downloaded(page: Page, name: str) -> Image.Image:
    with page.expect_download() as download:
        page.get_by_role("link", name=name, exact=True).click()
    return Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))


@pytest.fixture
def face(tmp_path) -> Path:
    crude_face(3, 200).save(tmp_path / "my face.png")
    return tmp_path / "my face.png"


@pytest.fixture(scope="module")
def faces() -> TextToFace:
    return TextToFace.load(ROOT / DEMO, device="cpu")


def test_a_sentence_becomes_images_and_a_download_holds_its_settings(visit):
    page = visit()
    generate(page, "a person with long red hair", 3)
    page.get_by_role("img", name="a person with long red hair, seed 0").wait_for(timeout=LONGEST)
    finished(page, "3 of 3 images")
    image = downloaded(page, "Download seed 2")
    assert image.size == (128, 128)
    assert image.text["prompt"] == "a person with long red hair"
    assert (image.text["seed"], image.text["freedom"]) == ("2", "0.7")
    sheet = downloaded(page, "All on one sheet")
    assert sheet.text["seed"] == "0 1 2"


def test_a_link_repeats_an_image(visit, address):
    page = visit()
    page.get_by_role("slider", name="Freedom").fill("1.2")
    page.get_by_role("spinbutton", name="Seed").fill("41")
    generate(page, "a person with a blue hoodie", 2)
    finished(page, "2 of 2 images")
    first = downloaded(page, "Download seed 42")
    link = page.get_by_role("link", name="Copy the link of seed 42").get_attribute("href")
    query = parse_qs(urlparse(link).query)
    assert (query["seed"], query["num"], query["freedom"]) == (["42"], ["1"], ["1.2"])
    again = visit(link.removeprefix("?"))
    finished(again, "1 of 1 image")
    pixels = [
        np.asarray(image).astype(int) for image in (first, downloaded(again, "Download seed 42"))
    ]
    np.testing.assert_allclose(*pixels, atol=8)  # bfloat16, in batches of two and of one
    assert np.abs(pixels[0] - pixels[1]).mean() < 0.5


def test_several_sentences_have_a_row_each(visit):
    page = visit()
    generate(page, "a woman with a green hat\n\n  a bald man  \n", 2)
    finished(page, "4 of 4 images")
    assert page.locator("article h2").all_inner_texts() == [
        "a woman with a green hat",
        "a bald man",
    ]
    expect(page.locator("article .row").nth(1).get_by_role("img")).to_have_count(2)


def test_an_image_and_a_sentence_are_mixed_by_sliders(visit, face):
    page = visit()
    page.get_by_label("Add a face image").set_input_files(face)
    expect(page.get_by_role("list", name="Your images").get_by_role("listitem")).to_have_count(1)
    page.get_by_label("Sentences").fill("a smiling person")
    page.get_by_label("Together").select_option(label="mix them into one face")
    page.get_by_role("slider", name="my face.png").fill("0.25")
    page.get_by_role("slider", name="a smiling person").fill("0.75")
    expect(page.get_by_role("slider", name="my face.png")).to_have_attribute(
        "aria-valuetext", "25 %"
    )
    page.get_by_role("spinbutton", name="Images").fill("1")
    page.get_by_role("button", name="Generate").click()
    finished(page, "1 of 1 image")
    image = downloaded(page, "Download seed 0")
    assert '"weight": 0.25' in image.text["mix"]
    again = visit(image.text["link"].removeprefix("?"))  # the link holds the image's embedding
    finished(again, "1 of 1 image")
    np.testing.assert_array_equal(
        np.asarray(downloaded(again, "Download seed 0")), np.asarray(image)
    )


def test_a_generated_image_serves_as_the_next_source(visit):
    page = visit("prompt=a+person+with+a+pink+afro&num=1")
    finished(page, "1 of 1 image")
    page.get_by_role("button", name="More like seed 0").click()
    images = page.get_by_role("list", name="Your images").get_by_role("listitem")
    expect(images).to_have_text("seed 0")


def edit(page: Page, steps: int) -> None:
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_role("list", name="Steps").get_by_role("listitem")).to_have_count(steps)
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def edited(page: Page) -> Image.Image:
    return downloaded(page, "Download the edited face")


def test_a_face_is_uploaded_edited_by_words_and_by_brush_and_taken_back(visit, face, faces):
    page = visit()
    page.get_by_role("button", name="Edit a face").click()
    page.get_by_label("Choose a face").set_input_files(face)
    expect(page.get_by_role("img", name="my face.png")).to_be_visible()
    page.get_by_label("Add", exact=True).fill("round glasses")
    edit(page, 2)
    expect(page.get_by_role("img", name="Before")).to_be_visible()
    first = edited(page)
    wanted = faces.edit(face, add=["round glasses"], seeds=[0]).images[0]
    np.testing.assert_array_equal(np.asarray(first), np.asarray(wanted))
    assert first.text["edit"] == "+ round glasses"

    page.get_by_label("Add", exact=True).fill("")
    page.get_by_label("Or a whole sentence").fill("a person in a green hat")
    box = page.locator("#paint").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.15 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.15 * box["height"], steps=4)
    page.mouse.up()
    edit(page, 3)
    second = np.asarray(edited(page)).astype(int)
    change = np.abs(second - np.asarray(first))
    assert change[64:].max() == 0  # outside of the paint, every pixel is kept
    assert change[:40].mean() > 5

    page.get_by_role("button", name="Undo").click()
    np.testing.assert_array_equal(np.asarray(edited(page)), np.asarray(first))
    edit(page, 3)  # what was painted is there again, and the same seed gives the same face
    np.testing.assert_array_equal(np.asarray(edited(page)), second)
    page.get_by_role("button", name="Back to the first face").click()
    expect(page.get_by_role("button", name="Undo")).to_be_hidden()


def test_a_generated_image_is_edited_and_mistakes_are_one_line(visit, tmp_path):
    page = visit("prompt=a+bald+man&num=1&freedom=0")
    finished(page, "1 of 1 image")
    page.get_by_role("button", name="Edit seed 0").click()
    page.get_by_role("button", name="Edit", exact=True).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("nothing to change yet")
    page.get_by_label("Remove").fill("a beard")
    page.get_by_label("Or a whole sentence").fill("a hat")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(alert).to_contain_text("give one or the other")
    (tmp_path / "notes.png").write_text("no image")
    page.get_by_label("Choose a face").set_input_files(tmp_path / "notes.png")
    expect(alert).to_contain_text("notes.png: unreadable image")
    page.get_by_label("Or a whole sentence").fill("")
    edit(page, 2)
    expect(alert).to_be_empty()
    page.get_by_role("button", name="New faces").click()
    expect(page.get_by_label("Sentences")).to_have_value("a bald man")


def test_a_request_is_cancelled_once_and_twice_and_the_page_goes_on(visit):
    page = visit(MANY)
    page.get_by_role("img", name="red hair, seed 0").wait_for(timeout=LONGEST)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_have_text(re.compile(r"cancelled: \d+ of 24 images"))
    shown = page.locator("figure:visible").count()
    assert 0 < shown < 24
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_be_empty()
    generate(page, "a bald man", 1)
    finished(page, "1 of 1 image")


def test_bad_files_and_requests_are_one_line_each_and_the_page_goes_on(visit, tmp_path):
    page, alert = visit(), None
    alert = page.get_by_role("alert")
    (tmp_path / "notes.png").write_text("no image")
    Image.new("1", (10_000, 5_000)).save(tmp_path / "large.png")
    page.get_by_label("Add a face image").set_input_files(tmp_path / "notes.png")
    expect(alert).to_have_text(
        "notes.png: unreadable image (of no known format); repair or remove it"
    )
    page.get_by_label("Add a face image").set_input_files(tmp_path / "large.png")
    expect(alert).to_contain_text("large.png: has 10000 × 5000 pixels")
    generate(page, "word " * 10_000)
    expect(alert).to_contain_text("has 49999 characters; the page takes up to 600")
    generate(page, "")
    expect(alert).to_contain_text("nothing to generate yet")
    generate(page, "a bald man", 1)
    finished(page, "1 of 1 image")
    expect(alert).to_be_empty()


def test_two_visitors_are_served_in_turn(visit):
    first, second = visit(MANY), visit()
    first.get_by_role("img", name="red hair, seed 0").wait_for(timeout=LONGEST)
    generate(second, "a bald man", 1)
    expect(second.get_by_role("status")).to_have_text("queued, 1 before you")
    first.keyboard.press("Escape")
    finished(second, "1 of 1 image")
    expect(first.get_by_role("status")).to_contain_text("cancelled")


def test_the_page_fits_a_phone(visit):
    page = visit("prompt=a+woman+with+a+green+hat&prompt=a+bald+man&num=2", width=390)
    finished(page, "4 of 4 images")
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = [figure.bounding_box() for figure in page.locator("figure:visible").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert boxes[0]["width"] > 128  # two in a row
    controls = page.locator("button:visible, select:visible, figcaption a:visible").all()
    assert min(c.bounding_box()["height"] for c in controls) >= 24  # for a finger: WCAG 2.5.8


def test_the_page_works_by_keyboard_alone(visit):
    page = visit()
    press, focused = page.keyboard.press, page.locator(":focus")
    page.keyboard.type("a person with round glasses")  # the field has the focus
    for _ in range(20):  # through the examples and the image to the dial
        press("Tab")
        if focused.get_attribute("id") == "freedom":
            break
    press("Home")
    expect(focused).to_have_attribute("aria-valuetext", "literal, 0")
    press("ArrowRight")
    expect(focused).to_have_attribute("aria-valuetext", "mostly literal, 0.1")
    press("Tab")
    page.keyboard.type("2")  # replaces the number, which the tab selected
    press("Tab"), press("Tab"), press("Enter")  # the dice
    assert page.get_by_role("spinbutton", name="Seed").input_value() != "0"
    press("Tab"), press("Tab"), press("Enter")  # past the closed settings, to Generate
    finished(page, "2 of 2 images")
    press("Control+Enter")
    expect(page.locator("article")).to_have_count(2)
    finished(page, "2 of 2 images")
    for _ in range(20):
        press("Tab")
        if (focused.get_attribute("aria-label") or "").startswith("Download"):
            break
    with page.expect_download():
        press("Enter")
