"""The server of the page, over real connections: turns, leaving, refusals."""

import asyncio
import io
import json
import threading
import time
from urllib.parse import urlencode

import pytest
import requests
import uvicorn
from conftest import crude_face
from image_files import encoded
from PIL import Image
from tiny import make_tiny_checkpoint, make_tiny_config

from demo.app import LOCAL, listen
from demo.page import server as server_module
from demo.page.line import Line
from demo.page.order import Limits
from demo.page.server import Page
from utils.base.errors import UserError
from utils.sampling.text_to_face import TextToFace

LIMITS = Limits(evaluations=1_000_000, upload_bytes=200_000, waiting=1)
LONG = "prompt=red+hair&num=64&num_steps=60&preset=paper"  # many seconds, some tenths a picture


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> TextToFace:
    folder = tmp_path_factory.mktemp("page")
    return TextToFace.load(make_tiny_checkpoint(folder / "0000010.pt", make_tiny_config(folder)))


@pytest.fixture(scope="module")
def served(faces):
    """Serve the page from a thread; return it and its address."""
    listener = listen("127.0.0.1", 0)
    page = Page(faces, LIMITS, batch_size=1, hosts=list(LOCAL))
    settings = uvicorn.Config(page.app, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield page, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def page(served):
    """The page's address; nobody waits there, for a drawing ends soon after its visitor left."""
    yield served[1]
    end = time.monotonic() + 20
    while len(served[0].line):
        assert time.monotonic() < end
        time.sleep(0.05)


def order(page: str, query: str, **headers: str) -> requests.Response:
    return requests.post(f"{page}/draw", query, headers=headers, stream=True, timeout=30)


def messages(answer: requests.Response):
    return (json.loads(line) for line in answer.iter_lines())


def test_pictures_arrive_while_others_are_being_drawn(page):
    with order(page, LONG) as answer:
        arriving = messages(answer)
        assert len(next(arriving)["seeds"]) == 64
        assert next(arriving)["picture"]["seed"] == 0


def test_a_visitor_who_leaves_lets_the_next_one_in(page):
    first = order(page, LONG)
    assert "rows" in next(messages(first))
    with order(page, "prompt=a+hat") as second:
        arriving = messages(second)
        assert next(arriving) == {"before": 1}
        first.close()
        kinds = [next(iter(message)) for message in arriving]
    assert kinds == ["rows", "picture"]


def test_a_visitor_beyond_the_end_of_the_line_is_sent_away(page):
    with order(page, LONG) as first, order(page, "prompt=a+hat") as second:
        next(messages(first)), next(messages(second))
        answer = order(page, "prompt=a+beard")
        assert answer.status_code == 400
        assert answer.json() == {"error": "1 others are waiting; try again in a minute"}


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("", "nothing to draw yet"),
        ("prompt=" + "word+" * 15_000, "75000 characters"),
        ("prompt=" + "word+" * 100_000, "the order: is larger than 0.1 MB"),
        (b"\xff\xfe=\x00", "knows no part"),
    ],
)
def test_a_refused_order_is_one_line_and_the_page_goes_on(query, line, page):
    answer = order(page, query)
    assert answer.status_code == 400
    assert line in answer.json()["error"]
    assert "picture" in list(messages(order(page, "prompt=a+hat")))[-1]


def test_a_fault_that_shows_while_drawing_comes_as_the_last_message(page):
    assert list(messages(order(page, "prompt=a&solver=magic")))[-1].keys() == {"error"}


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
    kept = [requests.post(f"{page}/image?name=a.png", c, timeout=30).json() for c in contents]
    assert kept[0] == kept[1] == kept[2]


def test_an_upload_is_embedded_and_a_hostile_one_is_one_line(page):
    file = io.BytesIO()
    crude_face(1, 32).save(file, format="JPEG")
    kept = requests.post(f"{page}/image?name=me.jpg", file.getvalue(), timeout=30).json()
    assert kept["name"] == "me.jpg"
    _, picture = messages(order(page, urlencode({"image": kept["image"]})))
    assert picture["picture"]["seed"] == 0
    bomb = io.BytesIO()
    Image.new("1", (10_000, 5_000)).save(bomb, format="PNG")
    for content, line in (
        (bomb.getvalue(), "10000 × 5000 pixels"),
        (b"MZ\x90\x00", "unreadable image"),
        (b"\x00" * 300_000, "is larger than 0.2 MB"),
    ):
        answer = requests.post(f"{page}/image?name=bad.png", content, timeout=30)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("bad.png: ")
        assert line in answer.json()["error"]


def test_other_sites_may_not_use_the_page(page):
    assert "another site" in order(page, LONG, **{"Sec-Fetch-Site": "cross-site"}).json()["error"]
    assert order(page, LONG, **{"Sec-Fetch-Site": "same-site"}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1"]
)
def test_without_sec_fetch_site_the_origin_has_to_be_the_pages_own(page, origin):
    for path in ("draw", "image"):
        answer = requests.post(f"{page}/{path}", "a", headers={"Origin": origin}, timeout=5)
        assert answer.status_code == 403
        assert answer.json() == {"error": "another site sent this request; use the page itself"}


def test_the_page_itself_and_programs_without_a_browser_are_served(page):
    assert "picture" in list(messages(order(page, "prompt=a+hat", Origin=page)))[-1]
    assert "picture" in list(messages(order(page, "prompt=a+hat")))[-1]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "[::1"]
)
def test_a_name_that_is_not_the_pages_own_is_refused(page, host):
    answer = requests.get(f"{page}/settings", headers={"Host": host}, timeout=5)
    assert answer.status_code == 403
    assert "not a name of this page; give it to demo/app.py with --name" in answer.json()["error"]


@pytest.mark.parametrize(
    "host", ["localhost:7860", "LOCALHOST", "localhost.", "[::1]:80", "10.1.2.3"]
)
def test_the_pages_names_and_every_address_are_let_in(page, host):
    assert requests.get(f"{page}/settings", headers={"Host": host}, timeout=5).ok


def test_uploads_beyond_the_waiting_ones_are_sent_away(served):
    page, address = served

    def endless():
        yield b"start"
        arrives.wait(20)

    arrives = threading.Event()
    first = threading.Thread(
        target=lambda: requests.post(f"{address}/image", endless(), timeout=30)
    )
    first.start()
    try:
        end = time.monotonic() + 20
        while not page.uploading:
            assert time.monotonic() < end
            time.sleep(0.05)
        answer = requests.post(f"{address}/image", b"x", timeout=5)
        assert answer.json() == {"error": "1 images are waiting; try again in a minute"}
    finally:
        arrives.set()
        first.join()
    assert "unreadable image" in requests.post(f"{address}/image", b"x", timeout=5).json()["error"]


def test_a_request_that_does_not_arrive_is_given_up(served, monkeypatch):
    monkeypatch.setattr(server_module, "ARRIVAL", 0.2)

    def slow():
        yield b"start"
        time.sleep(1)

    answer = requests.post(f"{served[1]}/image?name=me.png", slow(), timeout=30)
    assert answer.json() == {"error": "me.png: has not arrived within 0.2 s; try again"}
    assert served[0].uploading == 0


def test_the_page_may_load_nothing_from_elsewhere(page):
    answer = requests.get(page, timeout=5)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert "//" not in answer.text.replace("http://www.w3.org", "")


def test_a_bug_ends_one_drawing_with_a_line_and_its_traceback_goes_to_the_log(capfd):
    def broken():
        yield {"rows": []}
        raise RuntimeError("a bug")

    async def never() -> bool:
        return False

    async def visit() -> list[dict]:
        line = Line(1)
        arrived = [message async for message in line.join(broken).messages(never)]
        arrived += [m async for m in line.join(lambda: iter_once({"next": 1})).messages(never)]
        line.close()
        return arrived

    first, fault, after = asyncio.run(visit())
    assert "a fault of the program" in fault["error"]
    assert after == {"next": 1}
    assert "RuntimeError: a bug" in capfd.readouterr().err


def iter_once(message: dict):
    yield message


def test_closing_the_line_stops_every_job(faces):
    def endless():
        while True:
            time.sleep(0.01)
            yield {}

    async def visit() -> None:
        line = Line(3)
        for _ in range(3):
            line.join(endless)
        line.close()

    asyncio.run(asyncio.wait_for(visit(), 10))


def test_a_taken_port_is_one_line():
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="choose another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
