"""The server of the page, over real connections: queue, leaving, refusals, and its HTTP API."""

import http.client
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import numpy as np
import pytest
import requests
from conftest import crude_face
from image_files import encoded
from PIL import Image
from tiny import make_tiny_checkpoint, make_tiny_config

from demo.app import LOCAL, listen
from demo.page import server as server_module
from demo.page.request import Limits
from demo.page.server import Page, Server
from utils.base.errors import UserError
from utils.sampling.text_to_face import TextToFace

LIMITS = Limits(evaluations=1_000_000, query_bytes=100_000, upload_bytes=200_000, waiting=1)
LONG = "prompt=red+hair&num=64"
PATIENCE = 60  # seconds, for a machine that does other work too


class Gate:
    """A sampler that waits for `release` before each batch, and returns its noise as latents."""

    def __init__(self) -> None:
        self._batches = threading.Semaphore(0)
        self.release = self._batches.release

    def __call__(self, denoise, noise, settings):
        assert self._batches.acquire(timeout=PATIENCE)
        return noise


@contextmanager
def serve(faces: TextToFace) -> Iterator[tuple[Page, str, Server]]:
    """Serve the page of a network from a thread; yield it, its address and its server."""
    listener = listen("127.0.0.1", 0)
    page = Page(faces, LIMITS, batch_size=1, hosts=list(LOCAL))
    server = Server(page)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield page, f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Serve the page; return it and its address."""
    folder = tmp_path_factory.mktemp("page")
    checkpoint = make_tiny_checkpoint(folder / "0000010.pt", make_tiny_config(folder))
    with serve(TextToFace.load(checkpoint)) as (page, address, _):
        yield page, address


@pytest.fixture
def page(served):
    """The page's address. A test that leaves early waits here until the page has noticed."""
    yield served[1]
    until(lambda: not len(served[0].queue))


@pytest.fixture
def gate(served, page):
    """Batches wait for `gate.release(n)`."""
    gate = served[0].faces.solve = Gate()
    yield gate
    gate.release(100)
    served[0].faces.solve = None


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def post(page: str, query: str, path: str = "generate", **headers: str) -> requests.Response:
    return requests.post(f"{page}/{path}", query, headers=headers, stream=True, timeout=PATIENCE)


def messages(answer: requests.Response):
    return (json.loads(line) for line in answer.iter_lines())


def begin_upload(page: str) -> http.client.HTTPConnection:
    """Send a part of an image, and keep the connection open."""
    connection = http.client.HTTPConnection(page.removeprefix("http://"), timeout=PATIENCE)
    connection.putrequest("POST", "/upload?name=me.png")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"start")
    return connection


def test_images_arrive_while_others_are_being_generated(page, gate):
    gate.release(1)
    with post(page, LONG) as answer:
        arriving = messages(answer)
        assert len(next(arriving)["seeds"]) == 64
        assert next(arriving)["image"]["seed"] == 0


def test_a_visitor_who_leaves_lets_the_next_one_in(served, page, gate):
    first = post(page, LONG)
    being_read = messages(first)
    assert "rows" in next(being_read)
    with post(page, "prompt=a+hat") as second:
        arriving = messages(second)
        assert next(arriving) == {"before": 1}
        first.close()
        until(lambda: len(served[0].queue) == 1)
        gate.release(10)  # batches that the first visitor's thread has begun, and the second's
        kinds = [next(iter(message)) for message in arriving]
    assert kinds == ["rows", "image"]


def test_a_visitor_beyond_the_end_of_the_queue_is_sent_away(page, gate):
    with post(page, LONG) as first, post(page, "prompt=a+hat") as second:
        being_read = [messages(answer) for answer in (first, second)]
        assert [next(iter(next(lines))) for lines in being_read] == ["rows", "before"]
        answer = post(page, "prompt=a+beard")
        assert answer.status_code == 400
        assert answer.json() == {"error": "1 others are waiting; try again in a minute"}


def test_a_program_gets_the_png_of_one_image_and_the_grid_of_several(served, page):
    settings = {"num": 1, "seed": 7, "preset": "paper", "num_steps": 3}
    for num, seeds in ((1, "7"), (2, "7 8")):
        settings["num"] = num
        answer = post(page, urlencode({"prompt": "red hair"} | settings), Accept="image/png")
        assert answer.headers["content-type"] == "image/png"
        got = Image.open(io.BytesIO(answer.content))
        expected = served[0].faces.generate("red hair", batch_size=1, **settings)
        image = expected.images[0] if num == 1 else expected.grid()
        np.testing.assert_array_equal(np.asarray(got), np.asarray(image))
        assert got.text["seed"] == seeds


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("", "nothing to generate yet"),
        ("prompt=" + "word+" * 15_000, "75000 characters"),
        ("prompt=" + "word+" * 100_000, "the request: is larger than 0.1 MB"),
        (b"\xff\xfe=\x00", "unknown key"),
        ("prompt=a&solver=magic", "solver"),
    ],
)
def test_a_refused_request_is_one_line_and_the_page_goes_on(query, line, page):
    for accept in ("*/*", "image/png"):
        answer = post(page, query, Accept=accept)
        assert answer.status_code == 400
        assert line in answer.json()["error"]
    assert "image" in list(messages(post(page, "prompt=a+hat")))[-1]


def test_an_upload_with_odd_exif_is_turned_and_embedded(page):
    """Phones write such tags; Pillow raises exceptions of many types on them."""
    tags = b"\x01\x12\0\3\0\0\0\1\0\6\0\0" + b"\x01\x1a\0\2\0\0\0\x0372\0\0"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\2" + tags + bytes(4)
    face = crude_face(1, 32)
    contents = [
        encoded(face.transpose(Image.Transpose.ROTATE_270), "PNG"),
        encoded(face, "PNG", exif=exif),
        encoded(face, "PNG", exif=exif[:-4]),
    ]
    kept = [post(page, content, "upload?name=a.png").json() for content in contents]
    assert kept[0] == kept[1] == kept[2]


def test_an_upload_is_embedded_and_a_hostile_one_is_one_line(page):
    kept = post(page, encoded(crude_face(1, 32), "JPEG"), "upload?name=me.jpg").json()
    assert kept["name"] == "me.jpg"
    _, last = messages(post(page, urlencode({"image": kept["image"]})))
    assert last["image"]["seed"] == 0
    for content, line in (
        (encoded(Image.new("1", (10_000, 5_000)), "PNG"), "10000 × 5000 pixels"),
        (b"MZ\x90\x00", "unreadable image"),
        (b"\x00" * 300_000, "is larger than 0.2 MB"),
    ):
        answer = post(page, content, "upload?name=bad.png")
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("bad.png: ")
        assert line in answer.json()["error"]


def test_other_sites_may_not_use_the_page(page):
    answer = post(page, LONG, **{"Sec-Fetch-Site": "cross-site"})
    assert "another site" in answer.json()["error"]
    assert post(page, LONG, **{"Sec-Fetch-Site": "same-site"}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1"]
)
def test_without_sec_fetch_site_the_origin_has_to_be_the_pages_own(page, origin):
    for path in ("generate", "upload"):
        answer = post(page, "a", path, Origin=origin)
        assert answer.status_code == 403
        assert answer.json() == {"error": "another site sent this request; use the page itself"}


def test_the_page_itself_and_programs_without_a_browser_are_served(page):
    assert "image" in list(messages(post(page, "prompt=a+hat", Origin=page)))[-1]
    assert "image" in list(messages(post(page, "prompt=a+hat")))[-1]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "[::1"]
)
def test_a_name_that_is_not_the_pages_own_is_refused(page, host):
    answer = requests.get(f"{page}/settings", headers={"Host": host}, timeout=PATIENCE)
    assert answer.status_code == 403
    assert "not a name of this page; give it to demo/app.py with --name" in answer.json()["error"]


@pytest.mark.parametrize(
    "host", ["localhost:7860", "LOCALHOST", "localhost.", "[::1]:80", "10.1.2.3"]
)
def test_the_pages_names_and_every_address_are_let_in(page, host):
    assert requests.get(f"{page}/settings", headers={"Host": host}, timeout=PATIENCE).ok


def test_uploads_beyond_the_waiting_ones_are_sent_away(served):
    page, address = served
    first = begin_upload(address)
    until(lambda: page.uploading == 1)
    answer = post(address, b"x", "upload")
    assert answer.json() == {"error": "1 images are waiting; try again in a minute"}
    first.close()
    until(lambda: page.uploading == 0)
    assert "unreadable image" in post(address, b"x", "upload").json()["error"]


def test_a_request_that_does_not_arrive_is_given_up(served, monkeypatch):
    monkeypatch.setattr(server_module, "ARRIVAL", 0.1)
    answer = begin_upload(served[1]).getresponse()
    assert json.load(answer) == {"error": "me.png: has not arrived within 0.1 s; try again"}
    assert served[0].uploading == 0


def test_the_page_may_load_nothing_from_elsewhere(page):
    answer = requests.get(page, timeout=PATIENCE)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert "//" not in answer.text.replace("http://www.w3.org", "")


def test_a_bug_ends_one_request_with_a_line_and_its_traceback_goes_to_the_log(
    served, page, monkeypatch, caplog
):
    def broken(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(served[0].faces, "solve", broken)
    with caplog.at_level(logging.ERROR):
        rows, fault = messages(post(page, "prompt=a+hat"))
        answer = post(page, "prompt=a+hat", Accept="image/png")
    assert rows.keys() == {"rows", "seeds", "notes"}
    assert fault == answer.json() == {"error": server_module.FAULT}
    assert answer.status_code == 500
    assert "RuntimeError: a bug" in caplog.text
    monkeypatch.undo()
    assert "image" in list(messages(post(page, "prompt=a+hat")))[-1]


def test_a_server_that_stops_ends_every_request_with_a_line(served):
    faces = served[0].faces
    gate = faces.solve = Gate()
    with serve(faces) as (_, address, server):
        answers = [post(address, LONG), post(address, LONG)]
        arriving = [messages(answer) for answer in answers]
        assert [next(iter(next(lines))) for lines in arriving] == ["rows", "before"]
        server.should_exit = True
        assert [list(lines) for lines in arriving] == [[{"error": server_module.STOPPED}]] * 2
        gate.release(100)
    faces.solve = None


def test_a_taken_port_is_one_line():
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="choose another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
