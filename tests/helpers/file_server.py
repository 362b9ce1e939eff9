"""An HTTP server for tests that fails as real ones do."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Misdeed = Callable[["Handler", bytes], None]


class FileServer(ThreadingHTTPServer):
    """Server of `files` by path.

    Each of the first requests gets one of `misdeeds`, the others `always`; None: a correct answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.misdeeds: list[Misdeed | None] = []
        self.always: Misdeed | None = None
        self.ranges = True  # the server can send a part of a file
        self.validators = True  # the server sends an ETag
        self.seen: list[tuple[str, int]] = []  # path and first byte of each request
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> FileServer:
        """Start to serve in a thread."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving and close the socket."""
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Print nothing: clients that hang up early are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """Answer to one request; notes its path and first byte in `server.seen`."""

    server: FileServer

    def do_GET(self) -> None:
        """Do the next misdeed, or serve the file, or answer 404."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.start = int(match[1]) if match and self.server.ranges else 0
        self.server.seen.append((self.path, int(match[1]) if match else 0))
        body = self.server.files.get(self.path)
        misdeed = self.server.misdeeds.pop(0) if self.server.misdeeds else self.server.always
        if misdeed:
            misdeed(self, body)
        elif body is None:
            self.send_error(404)
        else:
            self.serve(body)

    def serve(
        self, body: bytes, announced: int | None = None, sent: int | None = None, kind: str = ""
    ) -> None:
        """Send a file from byte `start` on.

        `announced`: size in the headers, `sent`: number of bytes really sent, `kind`: content type.
        By default they are those of the file.
        """
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        if self.start and self.headers.get("If-Range") not in (None, etag):
            self.start = 0
        total = len(body) if announced is None else announced
        if self.start and self.start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if self.start else 200)
        if self.start:
            self.send_header("Content-Range", f"bytes {self.start}-{total - 1}/{total}")
        if self.server.validators:
            self.send_header("ETag", etag)
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(total - self.start))
        self.end_headers()
        self.wfile.write(body[self.start :][:sent])

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def drop_after(count: int) -> Misdeed:
    """Return a misdeed that closes the connection after `count` bytes of the answer."""
    return lambda handler, body: handler.serve(body, sent=count)


def announce(size: int) -> Misdeed:
    """Return a misdeed that announces a wrong size of the file."""
    return lambda handler, body: handler.serve(body, announced=size)


def status(code: int) -> Misdeed:
    """Return a misdeed that answers with an HTTP error."""
    return lambda handler, body: handler.send_error(code)


def corrupt(handler: Handler, body: bytes) -> None:
    """Send the file with its first byte changed."""
    handler.serve(bytes([body[0] ^ 1]) + body[1:])


def web_page(handler: Handler, body: bytes) -> None:
    """Send a login page, like a captive portal."""
    handler.start = 0
    handler.serve(b"<!DOCTYPE html><html>please log in</html>", kind="text/html; charset=utf-8")
