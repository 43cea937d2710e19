"""A job's handle: results as they come, for threads and for asyncio.

The link's thread calls the `on_*` methods, any thread and any event loop may take results, and `feed.py` hands in
rows. A handle outlives its pool: what has arrived can still be taken.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from pilotlight.client.feed import Window
from pilotlight.client.launch import named_error
from pilotlight.client.results import Reader, Result, RowError
from pilotlight.core.errors import JobCancelled, JobFailed, OutputError, PilotlightError
from pilotlight.messages import Accepted, Cancel, ClientMessage, JobEnded, Refused, RowsOut
from pilotlight.views import JobView

R = TypeVar("R", bound=Result)


class Job(Generic[R]):
    """A job that was handed in; made by a `Pool`.

    Iterate over it (`for`, or `async for`) for its results: in input order, or as they finish with `ordered=False`.
    Each result comes once, whoever takes it. `await job` collects the results that are left. A row's error is its
    result's `.error`; iterating raises only when the job itself ends early: `ConfigError` (refused), `JobFailed`,
    `JobCancelled`, `OutputError` (suspended), `LinkClosed` (the pool is gone), or what the iterable of rows raised.

    A job between files has no results to take: use `wait`.
    """

    def __init__(
        self, *, send: Callable[[ClientMessage], None], reader: Reader | None, ordered: bool, window: Window
    ) -> None:
        self._send = send
        self._reader = reader
        self._ordered = ordered
        self._window = window
        self._changed = threading.Condition()
        self._wakers: set[Callable[[], None]] = set()
        self._lines: dict[int, bytes] = {}
        self._arrived: deque[int] = deque()
        self._next = 0
        self._cancel: Cancel | None = None
        self._error: BaseException | None = None
        self._view = JobView(job="", name="", state="submitted", rows_read=0, rows_done=0, rows_error=0, rows_leased=0)
        self.id = ""
        self.log_dir = ""
        self.accepted: Accepted | None = None
        """What the manager made of the request (its sampling filled in), once it has taken the job."""
        self.ended: JobEnded | None = None
        """How it ended, once it has."""
        window.attach(self._changed)

    # --- for users

    def __iter__(self) -> Iterator[R]:
        """Results, blocking until the next one is there."""
        while True:
            with self._changed:
                self._changed.wait_for(self._has_news)
                taken = self._take()
            if taken is None:
                return
            yield self._read(*taken)

    async def __aiter__(self) -> AsyncIterator[R]:
        """Results, without blocking the event loop."""
        with _Waker(self._changed, self._wakers) as waker:
            while True:
                with self._changed:
                    news = self._has_news()
                    taken = self._take() if news else None
                if not news:
                    await waker.wait()
                elif taken is None:
                    return
                else:
                    yield self._read(*taken)

    def __await__(self) -> Generator[Any, None, list[R]]:
        """The results that are left, as a list; empty for a job between files."""
        return self._collect().__await__()

    async def _collect(self) -> list[R]:
        return [result async for result in self]

    def wait(self, timeout_s: float | None = None) -> JobEnded:
        """Block until the job is over, leaving its results to be taken later (so they all stay in memory).

        Raises what iterating would, and `TimeoutError`.
        """
        self._window.lift()
        with self._changed:
            if not self._changed.wait_for(lambda: self.over, timeout_s):
                raise TimeoutError(f"the job is not over after {timeout_s} s")
            self._raise_end()
        assert self.ended is not None
        return self.ended

    def cancel(self, *, drain: bool = False) -> None:
        """End the job early; `drain`: let rows that workers have begun finish first. Does not wait."""
        with self._changed:
            self._window.close()
            self._cancel = Cancel(job=self.id, drain=drain)
            if self.id:
                self._send(self._cancel)

    def progress(self) -> JobView:
        """Counts as of the manager's last word, at most about half a second old."""
        return self._view

    @property
    def over(self) -> bool:
        """Whether nothing more will arrive; results may still be there to take."""
        return self.ended is not None or self._error is not None

    # --- for the pool, in the link's thread

    def on_accepted(self, message: Accepted) -> None:
        """The job exists; a cancel that came too early goes out now."""
        with self._changed:
            self.id, self.accepted = message.job, message
            if self._cancel is not None:
                self._send(Cancel(job=self.id, drain=self._cancel.drain))

    def on_refused(self, message: Refused) -> None:
        """The job will not exist."""
        self.on_failed(named_error(message.kind, message.message, message.exit_code))

    def on_view(self, view: JobView) -> None:
        """A newer picture."""
        self._view = view

    def on_rows(self, message: RowsOut) -> None:
        """Results, each index once."""
        chunk = message.chunk
        indices = (index for start, stop in chunk.spans for index in range(start, stop))
        with self._changed:
            for index, line in zip(indices, chunk.blob.split(b"\n"), strict=True):
                self._lines[index] = line
                if not self._ordered:
                    self._arrived.append(index)
            self._notify()

    def on_ended(self, message: JobEnded) -> None:
        """The last word about this job."""
        with self._changed:
            self.ended, self._view = message, message.view
            self._window.close()
            self._notify()

    def on_failed(self, error: BaseException) -> None:
        """It can't go on: refused, the pool is gone, or the user's rows raised."""
        with self._changed:
            if not self.over:
                self._error = error
            self._window.close()
            self._notify()

    # --- inside, with the condition held

    def _has_news(self) -> bool:
        return self.over or bool(self._arrived if not self._ordered else self._next in self._lines)

    def _take(self) -> tuple[int, bytes, Any, RowError | None] | None:
        """The next result's index, line, prompt and local error; None at the end. Raises if that was early."""
        if self._ordered and self._next in self._lines:
            index = self._next
            self._next += 1
        elif self._arrived:
            index = self._arrived.popleft()
        else:
            self._raise_end()
            return None
        prompt, error = self._window.delivered(index)
        return index, self._lines.pop(index), prompt, error

    def _read(self, index: int, line: bytes, prompt: Any, error: RowError | None) -> R:
        assert self._reader is not None
        if error is not None:
            return self._reader(index, _error_line(index, error), prompt)  # type: ignore[return-value]
        return self._reader(index, line, prompt)  # type: ignore[return-value]

    def _raise_end(self) -> None:
        if self._error is not None:
            raise self._error
        ended = self.ended
        if ended is None or ended.outcome == "completed":
            return
        message = ended.message or f"the job ended {ended.outcome}"
        kinds: dict[str, type[PilotlightError]] = {"cancelled": JobCancelled, "suspended": OutputError}
        if ended.outcome != "cancelled" and self.log_dir:
            message = f"{message} (logs: {self.log_dir})"
        raise kinds.get(ended.outcome, JobFailed)(message)

    def _notify(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()


class _Waker:
    """Lets one event loop wait for news of a job: while entered, it is among the job's `wakers`."""

    def __init__(self, changed: threading.Condition, wakers: set[Callable[[], None]]) -> None:
        self._changed = changed
        self._wakers = wakers
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def __enter__(self) -> _Waker:
        with self._changed:
            self._wakers.add(self._wake)
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._wakers.discard(self._wake)

    def _wake(self) -> None:
        # A loop that was closed meanwhile has nobody to wake.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


def _error_line(index: int, error: RowError) -> bytes:
    import msgspec

    return msgspec.json.encode({"index": index, "error": {"kind": error.kind, "message": error.message}})
