"""The server of the page: its files, orders, and uploads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from demo.page.line import Job, Line
from demo.page.order import Limits, Order, draw, read_upload
from utils.base.errors import UserError
from utils.config.fields import SamplingPreset
from utils.config.sections import SAMPLING_PRESETS
from utils.sampling.text_to_face import TextToFace

FILES = Path(__file__).parent / "files"
# The browser loads nothing from elsewhere, and shows the page in no other page.
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"


class _Files(StaticFiles):
    """The page's files, with the policy that binds the browser to them."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Content-Security-Policy"] = POLICY
        return response


class Page:
    """The page of one network; `app` is its ASGI application."""

    def __init__(
        self, faces: TextToFace, limits: Limits, batch_size: int, hosts: list[str]
    ) -> None:
        """`hosts`: names by which a browser may call the page; others are refused."""
        self.faces, self.limits, self.batch_size = faces, limits, batch_size
        self.line = Line(limits.waiting)
        self.uploads = ThreadPoolExecutor(1, thread_name_prefix="upload")
        routes = [
            Route("/settings", self.settings),
            Route("/draw", self.draw, methods=["POST"]),
            Route("/image", self.image, methods=["POST"]),
            Mount("/", _Files(directory=FILES, html=True)),
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
            exception_handlers={UserError: _refuse},
            lifespan=self.lifespan,
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Stop all work when the server stops."""
        yield
        self.line.close()

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

    async def draw(self, request: Request) -> Response:
        """Draw an order; answer with a line of JSON for each message."""
        _require_own_page(request)
        body = await _read(request, self.limits.query_bytes, "the order")
        order = Order.read(body.decode(errors="replace"), self.limits)
        job = self.line.join(partial(draw, self.faces, order, self.batch_size))
        return StreamingResponse(_lines(job, request), media_type="application/x-ndjson")

    async def image(self, request: Request) -> Response:
        """Embed an uploaded image; answer with what the page keeps of it."""
        _require_own_page(request)
        name = request.query_params.get("name", "image")
        content = await _read(request, self.limits.upload_bytes, name[:80])
        read = partial(read_upload, self.faces, name, content, self.limits)
        return JSONResponse(await asyncio.get_running_loop().run_in_executor(self.uploads, read))


async def _lines(job: Job, request: Request) -> AsyncIterator[str]:
    """Yield a job's messages as lines of JSON."""
    async for message in job.messages(request.is_disconnected):
        yield json.dumps(message) + "\n"


async def _read(request: Request, most: int, what: str) -> bytes:
    """Return the body of a request; raise UserError if it has more than `most` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise UserError(f"{what}: is larger than {most / 1e6:g} MB; make it smaller")
    return bytes(body)


def _require_own_page(request: Request) -> None:
    """Raise UserError if a page of another site sent the request."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise UserError("another site sent this request; use the page itself")


async def _refuse(request: Request, fault: Exception) -> Response:
    """Answer a user's mistake with its line."""
    return JSONResponse({"error": str(fault)}, status_code=400)
