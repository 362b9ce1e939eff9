"""Downloads from a real server that fails in realistic ways."""

import hashlib
import io
import os
import random
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, announce, corrupt, drop_after, status, web_page

from utils.base.errors import UserError
from utils.pretrained.downloads import PartialFile, Patience, download

BODY = random.Random(0).randbytes(700_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(attempts=2, backoff=0.01, timeout=5)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        server.files["/file.bin"] = BODY
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file.bin"


def fetch(server: FileServer, target: Path, sha256: str = "") -> None:
    download([f"{server.url}/file.bin"], target, sha256=sha256, patience=QUICK)


def assert_only(target: Path) -> None:
    assert target.read_bytes() == BODY
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_a_file_arrives_whole_and_alone(server, target):
    fetch(server, target, SHA256)
    assert_only(target)


def test_dropped_connections_go_on_where_they_broke_off(server, target):
    server.misdeeds = [drop_after(200_000), drop_after(100_000), drop_after(300_000)]
    fetch(server, target, SHA256)
    assert_only(target)
    assert [start for _, start in server.seen] == [0, 200_000, 300_000, 600_000]


def test_the_next_run_goes_on_where_the_last_one_gave_up(server, target):
    server.misdeeds, server.always = [drop_after(400_000)], status(404)
    with pytest.raises(UserError, match="404"):
        fetch(server, target)
    assert not target.exists()
    server.always = None
    fetch(server, target)
    assert_only(target)
    assert server.seen[-1][1] == 400_000


@pytest.mark.parametrize("validators", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(server, target, validators):
    server.validators = validators
    server.files["/file.bin"] = b"older and shorter " * 20_000
    server.misdeeds, server.always = [drop_after(200_000)], status(404)
    with pytest.raises(UserError):
        fetch(server, target)
    server.always, server.files["/file.bin"] = None, BODY
    fetch(server, target)
    assert_only(target)


def test_a_server_that_cannot_resume_sends_all_again(server, target):
    server.ranges = False
    server.misdeeds = [drop_after(400_000)]
    fetch(server, target)
    assert_only(target)


def test_passing_errors_are_tried_again(server, target):
    server.misdeeds = [status(500), status(503)]
    fetch(server, target)
    assert_only(target)


def test_lasting_errors_are_named_with_their_address(server, target):
    server.always = status(500)
    with pytest.raises(UserError, match=r"127.0.0.1:\d+/file.bin: 500 Internal Server Error$"):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []


def test_the_next_address_is_tried_where_one_does_not_have_the_file(server, target):
    urls = [f"{server.url}/gone.bin", f"{server.url}/file.bin"]
    download(urls, target, patience=QUICK)
    assert_only(target)


def test_a_mirror_with_another_file_is_passed_over(server, target):
    server.files["/other/file.bin"] = b"something else" * 1000
    urls = [f"{server.url}/other/file.bin", f"{server.url}/file.bin"]
    download(urls, target, sha256=SHA256[:8], patience=QUICK)
    assert_only(target)


def test_bytes_that_were_corrupted_on_the_way_are_fetched_again(server, target):
    server.misdeeds = [corrupt]
    fetch(server, target, SHA256)
    assert_only(target)


def test_a_corrupt_file_never_gets_the_name(server, target):
    server.always = corrupt
    with pytest.raises(UserError, match=f"its SHA-256 is [0-9a-f]{{64}}, not {SHA256}"):
        fetch(server, target, SHA256)
    assert list(target.parent.iterdir()) == []


def test_a_resumed_file_that_is_wrong_is_fetched_from_its_start(server, target):
    server.misdeeds = [lambda h, b: h.serve(b"x" * len(b), sent=300_000)]
    server.validators = False
    fetch(server, target, SHA256)
    assert_only(target)
    assert server.seen[-1][1] == 0


def test_too_large_a_size_is_put_right_by_the_server_itself(server, target):
    server.misdeeds = [announce(len(BODY) + 5000)]
    fetch(server, target)
    assert_only(target)


def test_too_large_a_size_is_put_right_by_the_checksum(server, target):
    server.always, server.ranges = announce(len(BODY) + 5000), False
    fetch(server, target, SHA256)
    assert_only(target)


def test_too_large_a_size_without_checksum_is_an_error(server, target):
    server.always, server.ranges = announce(len(BODY) + 5000), False
    with pytest.raises(UserError, match="breaks off after 700000 of 705000 bytes"):
        fetch(server, target)
    assert not target.exists()


def test_too_small_a_size_is_found_by_the_checksum(server, target):
    server.always = announce(len(BODY) - 5000)
    with pytest.raises(UserError, match="is not the published file"):
        fetch(server, target, SHA256)
    assert not target.exists()


def test_too_small_a_size_of_a_zip_based_file_is_found_without_checksum(server, target):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data.pkl", BODY)
    server.files["/file.bin"] = packed.getvalue()
    server.always = announce(600_000)
    with pytest.raises(UserError, match="is truncated"):
        fetch(server, target)
    assert not target.exists()


def test_more_than_the_disk_holds_is_refused_before_it_is_written(server, target):
    server.always = announce(10**16)
    with pytest.raises(UserError, match="takes 10000000.00 GB more, but there is room for"):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []


def test_a_login_page_is_not_taken_for_the_file(server, target):
    server.always = web_page
    with pytest.raises(UserError, match="sends a web page, not the file"):
        fetch(server, target)
    assert not target.exists()


def test_a_server_that_is_not_there_is_one_line(target):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}/file.bin?token=secret"
        with pytest.raises(UserError, match="cannot be reached") as error:
            download([url], target, patience=QUICK)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_address_is_refused(target):
    with pytest.raises(UserError, match="/mnt/file.bin: not an address"):
        download(["/mnt/file.bin"], target)


def test_the_proxy_of_the_environment_is_used(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    server.files["http://weights.example/file.bin"] = BODY
    download(["http://weights.example/file.bin"], target, patience=QUICK)
    assert_only(target)


def test_two_processes_do_not_write_one_file(server, target):
    held = rf"file\.bin: is being fetched by process {os.getpid()} on host"
    with PartialFile(target), pytest.raises(UserError, match=held):
        fetch(server, target)


def test_a_process_that_was_killed_holds_nobody_back(server, target, capsys):
    target.parent.mkdir()
    (target.parent / f".{target.name}.part").write_bytes(BODY[:1000])
    lock = target.parent / f".{target.name}.part.lock"
    lock.write_text(f"{2**22 + 1}\n{socket.gethostname()}\n")
    fetch(server, target, SHA256)
    assert_only(target)
    assert f"{lock}: left behind by process {2**22 + 1}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(server, tmp_path / "file" / "file.bin")
