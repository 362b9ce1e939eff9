"""The server of the page: its files, its queue, uploads, and the HTTP API of demo/README.md.

Written by hand rather than with Gradio: every Gradio since 4 needs an older Pillow than
requirements.txt, and its import takes longer than the first image.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from demo.page.edits import read_request
from demo.page.request import Limits, read_upload
from utils.base.errors import UserError
from utils.config.fields import SAMPLING_PRESETS, SamplingPreset
from utils.sampling.text_to_face import TextToFace

Message = dict[str, Any]
ARRIVAL = 60.0  # seconds in which a request has to arrive whole
FILES = Path(__file__).parent / "files"
# The browser loads nothing from elsewhere, and shows the page in no other page.
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
STOPPED = "the page's server was stopped"
FAULT = "a fault of the program stopped this request; its log has more"


class RequestQueue:
    """One thread generates for all visitors, in the order in which they came."""

    def __init__(self, waiting: int) -> None:
        """`waiting`: requests that may wait; the next one is refused."""
        self._waiting = waiting
        self._requests: list[asyncio.Event] = []  # set when the request moves up
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._message: asyncio.Future[Message | None] | None = None  # that the thread works on
        self._stopped = False

    def __len__(self) -> int:
        """Return the number of requests, the one that is served included."""
        return len(self._requests)

    async def messages(self, work: Generator[Message]) -> AsyncGenerator[Message]:
        """Yield `{"before": N}` while N others come first, then the messages of `work`.

        Closing it gives the request up: the next one starts after the present batch.
        Raises UserError if the queue is full or stops, and what `work` raises.
        """
        if len(self) > self._waiting:
            raise UserError(f"{self._waiting} others are waiting; try again in a minute")
        moved_up = asyncio.Event()
        self._requests.append(moved_up)
        try:
            while not self._stopped and (before := self._requests.index(moved_up)):
                yield {"before": before}
                await moved_up.wait()
                moved_up.clear()
            loop = asyncio.get_running_loop()
            while not self._stopped:
                self._message = loop.run_in_executor(self._thread, next, work, None)
                if (message := await self._message) is None:
                    return
                yield message
            raise UserError(STOPPED)
        except asyncio.CancelledError:
            if self._stopped:
                raise UserError(STOPPED) from None
            raise
        finally:
            self._thread.submit(work.close)
            place = self._requests.index(moved_up)
            del self._requests[place]
            for other in self._requests[place:]:
                other.set()

    def stop(self) -> None:
        """Give all requests up, in the event loop; the thread ends after the present batch."""
        self._stopped = True
        for moved_up in self._requests:
            moved_up.set()
        if self._message:
            self._message.cancel()


class JsonLines(StreamingResponse):
    """A line of JSON for each message; the last one is `{"error": …}` if something failed."""

    def __init__(self, first: Message, others: AsyncGenerator[Message]) -> None:
        """`others`: the messages after the first one; closed when the visitor leaves."""
        super().__init__(self._lines(first, others), media_type="application/x-ndjson")
        self._others = others

    async def _lines(self, first: Message, others: AsyncGenerator[Message]) -> AsyncIterator[str]:
        yield json.dumps(first) + "\n"
        try:
            async for message in others:
                yield json.dumps(message) + "\n"
        except UserError as fault:
            yield json.dumps({"error": str(fault)}) + "\n"
        except Exception:
            logging.getLogger("uvicorn.error").exception("a request failed")
            yield json.dumps({"error": FAULT}) + "\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all lines, or those until the visitor leaves."""
        async with aclosing(self._others):
            await super().__call__(scope, receive, send)


class Forbidden(UserError):
    """A request that the page does not answer, since another site may stand behind it."""


class OwnNames:
    """ASGI middleware that refuses requests to names which are not the page's own.

    A site can give its own name the address of this machine (DNS rebinding), and a visitor's
    browser then takes the page for a part of that site. An address needs no name: it is let in.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        """`names`: those by which browsers may call the page."""
        self._app = app
        self._names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        app = self._app
        if scope["type"] == "http":
            name = _name(Headers(scope=scope).get("host", ""))
            if name not in self._names and not _is_address(name):
                line = f"{name}: not a name of this page; give it to demo/app.py with --name"
                app = JSONResponse({"error": line}, status_code=403)
        await app(scope, receive, send)


def _name(host: str) -> str:
    """Return the name or address in a Host header, without port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # half an IPv6 address
        return ""


def _is_address(name: str) -> bool:
    """Return True for an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class _Files(StaticFiles):
    """The page's files, with the policy that binds the browser to them."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Content-Security-Policy"] = POLICY
        return response


class Server(uvicorn.Server):
    """uvicorn's server, which gives up all requests before it waits for their connections."""

    def __init__(self, page: Page) -> None:
        """`page`: what it serves."""
        settings = uvicorn.Config(page.app, log_level="warning", timeout_graceful_shutdown=3)
        super().__init__(settings)
        self._queue = page.queue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, after Ctrl-C for example."""
        self._queue.stop()
        await super().shutdown(sockets)


class Page:
    """The page of one network; `app` is its ASGI application."""

    def __init__(
        self, faces: TextToFace, limits: Limits, batch_size: int, hosts: list[str]
    ) -> None:
        """`hosts`: names by which a browser may call the page; others are refused."""
        self.faces, self.limits, self.batch_size = faces, limits, batch_size
        self.queue = RequestQueue(limits.waiting)
        self.uploads = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self.uploading = 0  # images that arrive, wait, or are being read
        routes = [
            Route("/settings", self.settings),
            Route("/generate", self.generate, methods=["POST"]),
            Route("/upload", self.upload, methods=["POST"]),
            Mount("/", _Files(directory=FILES, html=True)),
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(OwnNames, names=hosts)],
            exception_handlers={UserError: _refuse, Forbidden: _forbid, Exception: _fail},
        )

    async def settings(self, request: Request) -> Response:
        """Answer with the network's own settings, the choices and the limits."""
        config = self.faces.config
        own = config.sampling
        return JSONResponse(
            {
                "source": self.faces.source,
                "presets": {name: SAMPLING_PRESETS[name] for name in get_args(SamplingPreset)},
                "preset": own.preset,
                "num_steps": own.num_steps,
                "cfg_scale": own.cfg_scale,
                "freedom": own.freedom,
                "has_prior": config.encoders.prior is not None,
                "limits": asdict(self.limits),
            }
        )

    async def generate(self, request: Request) -> Response:
        """Answer with lines of JSON, or with a PNG if the request accepts `image/png`."""
        _require_own_page(request)
        body = await _read(request, self.limits.query_bytes, "the request")
        wanted = read_request(body.decode(errors="replace"), self.limits)
        messages = self.queue.messages(wanted.messages(self.faces, self.batch_size))
        # Mistakes that show before the first image get a status of their own.
        first = await anext(messages)
        if "image/png" not in request.headers.get("accept", ""):
            return JsonLines(first, messages)
        content: Message = {}
        async with aclosing(messages):
            async for message in messages:
                if await request.is_disconnected():
                    return Response()
                content = message.get("grid") or message.get("image") or content
        return Response(base64.urlsafe_b64decode(content["png"]), media_type="image/png")

    async def upload(self, request: Request) -> Response:
        """Embed an uploaded image; answer with what the page keeps of it."""
        _require_own_page(request)
        if self.uploading >= self.limits.waiting:
            raise UserError(f"{self.uploading} images are waiting; try again in a minute")
        self.uploading += 1
        try:
            name = request.query_params.get("name", "image")
            content = await _read(request, self.limits.upload_bytes, name[:80])
            read = partial(read_upload, self.faces, name, content, self.limits)
            loop = asyncio.get_running_loop()
            return JSONResponse(await loop.run_in_executor(self.uploads, read))
        finally:
            self.uploading -= 1


async def _read(request: Request, most: int, what: str) -> bytes:
    """Return the body of a request; raise UserError if it is too large or does not arrive."""
    body = bytearray()
    try:
        async with asyncio.timeout(ARRIVAL):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise UserError(f"{what}: is larger than {most / 1e6:g} MB; make it smaller")
    except TimeoutError as fault:
        raise UserError(f"{what}: has not arrived within {ARRIVAL:g} s; try again") from fault
    return bytes(body)


def _require_own_page(request: Request) -> None:
    """Raise Forbidden if a page of another site sent the request.

    Browsers say so in Sec-Fetch-Site; where they leave it out, as over plain HTTP from another
    machine, their Origin has to be the page's own. Programs such as curl send neither.
    """
    site, origin = (request.headers.get(name) for name in ("sec-fetch-site", "origin"))
    is_own = origin is None or urlsplit(origin).netloc == request.headers.get("host", "")
    if not is_own or site not in (None, "same-origin", "none"):
        raise Forbidden("another site sent this request; use the page itself")


async def _refuse(request: Request, fault: Exception) -> Response:
    """Answer a user's mistake with its line."""
    return JSONResponse({"error": str(fault)}, status_code=400)


async def _forbid(request: Request, fault: Exception) -> Response:
    """Answer a request that another site may have sent."""
    return JSONResponse({"error": str(fault)}, status_code=403)


async def _fail(request: Request, fault: Exception) -> Response:
    """Answer a fault of the program; uvicorn logs its traceback."""
    return JSONResponse({"error": FAULT}, status_code=500)
