"""The line of visitors: one thread works for them in the order in which they came."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

from utils.base.errors import UserError

Message = dict[str, Any]
Work = Callable[[], Generator[Message, None, None]]
LOOK = 0.5  # seconds between two looks whether a visitor is still there


class Line:
    """Jobs in order; each yields messages, and stops when its visitor leaves."""

    def __init__(self, most: int) -> None:
        """`most`: visitors that may wait; the next one is sent away."""
        self.most = most
        self._jobs: list[Job] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draw")

    def join(self, work: Work) -> Job:
        """Put work at the end of the line. Raises UserError if the line is full."""
        if len(self) > self.most:
            raise UserError(f"{self.most} others are waiting; try again in a minute")
        job = Job(self, work)
        self._jobs.append(job)
        self._thread.submit(job.run).add_done_callback(job.end)
        return job

    def __len__(self) -> int:
        """Return the number of visitors, the one who is served included."""
        return len(self._jobs)

    def before(self, job: Job) -> int:
        """Return how many jobs come before this one."""
        return next((i for i, other in enumerate(list(self._jobs)) if other is job), 0)

    def leave(self, job: Job) -> None:
        """Take a finished job out of the line."""
        self._jobs.remove(job)

    def close(self) -> None:
        """Stop all jobs; wait for the batch that is being drawn."""
        for job in list(self._jobs):
            job.stop()
        self._thread.shutdown()


class Job:
    """The work for one visitor: the line's thread does it, the visitor's task reads messages."""

    def __init__(self, line: Line, work: Work) -> None:
        """Call it in the event loop, whose tasks read the messages."""
        self._line, self._work = line, work
        self._stopped = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()

    def stop(self) -> None:
        """Give up at the next message; may be called again."""
        self._stopped.set()

    def run(self) -> None:
        """Do the work, in the line's thread."""
        if self._stopped.is_set():
            return
        with closing(self._work()) as messages:
            for message in messages:
                if self._stopped.is_set():
                    return
                self._send(message)

    def end(self, done: Future[None]) -> None:
        """Leave the line, and send the fault that ended the work if there was one."""
        fault = done.exception()
        self._line.leave(self)
        if isinstance(fault, UserError):
            self._send({"error": str(fault)})
        elif fault is not None:
            traceback.print_exception(fault)
            self._send({"error": "a fault of the program stopped this drawing; its log has more"})
        self._send(None)

    def _send(self, message: Message | None) -> None:
        """Hand a message to the visitor's task, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._messages.put_nowait, message)

    async def messages(self, is_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[Message]:
        """Yield the messages, and `{"before": N}` while others come before this visitor.

        is_gone: returns True if the visitor has left; the job then stops.
        """
        shown = 0
        try:
            while not await is_gone():
                before = self._line.before(self)
                if before not in (0, shown):
                    yield {"before": before}
                shown = before
                try:
                    message = await asyncio.wait_for(self._messages.get(), LOOK)
                except TimeoutError:
                    continue
                if message is None:
                    return
                yield message
        finally:
            self.stop()
