"""Blocking work beside the event loop, in threads that nobody waits for when the process ends.

A download or the reading of a large input can't be interrupted; in the loop's own thread pool it would keep the process
from ending. What such a thread leaves half done when the process ends must be harmless: here it is as after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def begin(work: Callable[[], T]) -> asyncio.Future[T]:
    """Start it. The future is of the running loop; cancelling it stops nothing but the waiting."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except StopIteration as error:  # no future takes one
            post(future.set_exception, RuntimeError(f"background work ended early: {error}"))
        except BaseException as error:
            post(future.set_exception, error)
        else:
            post(future.set_result, result)

    def post(tell: Callable[..., None], what: object) -> None:
        def told() -> None:
            if not future.done():
                tell(what)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(told)

    threading.Thread(target=run, name="pilotlight-background", daemon=True).start()
    return future
