"""Requests that wait at the same moment are answered together: one product for all of them.

Nobody waits for a batch to fill up. Whoever comes while one is being answered is in the next one, so that a lonely
request is answered at once, and batches grow with the load.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

from serving_export.online.metrics import Metrics

MOST_AT_ONCE = 128
MOST_WAITING = 1024
Asked = TypeVar("Asked")
Told = TypeVar("Told")


class BusyError(Exception):
    """Too many requests wait already."""


class Batcher(Generic[Asked, Told]):
    """A thread that answers what waits, batch after batch."""

    def __init__(self, answer: Callable[[Sequence[Asked]], Sequence[Told | Exception]], metrics: Metrics) -> None:
        self.answer, self.metrics = answer, metrics
        self.thread = ThreadPoolExecutor(1, "batch")
        self.waiting: asyncio.Queue[tuple[Asked, asyncio.Future[Told]]] = asyncio.Queue(MOST_WAITING)
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; needs a running loop."""
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def stop(self) -> None:
        """End; nobody may be waiting any more."""
        if self.task is not None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
        self.thread.shutdown()

    async def ask(self, asked: Asked) -> Told:
        """The answer to one request; raises BusyError, or what answering it raised."""
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        try:
            self.waiting.put_nowait((asked, future))
        except asyncio.QueueFull as error:
            raise BusyError from error
        return await future

    async def run(self) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < MOST_AT_ONCE and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [(asked, future) for asked, future in batch if not future.done()]  # done: gave up waiting
            if not batch:
                continue
            self.metrics.batches.observe(len(batch))
            try:
                told = await loop.run_in_executor(self.thread, self.answer, [asked for asked, _ in batch])
            except Exception as error:
                told = [error] * len(batch)
            for (_, future), result in zip(batch, told, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
