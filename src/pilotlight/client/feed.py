"""The rows of a streamed job on their way in: reading the user's iterable ahead, but not too far.

A thread of its own reads the iterable, because a generator may block. How far it may run ahead is counted from the
oldest row not delivered, in rows and in bytes, so that an endless generator never fills memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from pilotlight.client.results import RowError
from pilotlight.messages import ClientMessage, InputEnd, RowsIn
from pilotlight.wire import Chunk

CHUNK_ROWS_MAX = 1024
CHUNK_BYTES_MAX = 256 * 1024
FLUSH_S = 0.002
"""How long a row may wait for company."""

WINDOW_ROWS = 8192
WINDOW_BYTES = 64 << 20

Encoder = Callable[[Any], bytes]
"""One row as one line. Raises for a row that can't travel; that becomes the row's error."""


class Window:
    """Rows read and not delivered: how many, how large, what they were, and which could not be sent.

    It shares the job's condition, whose lock may be held when a method is called, and need not be.
    """

    def __init__(self, rows_max: int = WINDOW_ROWS, bytes_max: int = WINDOW_BYTES) -> None:
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._changed = threading.Condition()
        self._lifted = False
        self._closed = False
        self._oldest = 0
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._early: set[int] = set()
        self._prompts: dict[int, Any] = {}
        self._errors: dict[int, RowError] = {}

    def attach(self, changed: threading.Condition) -> None:
        """Share the job's condition. Called once, before anything else."""
        self._changed = changed

    def wait_for_room(self) -> bool:
        """Block until another row may be read; False when none is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._lifted or self._has_room())
            return not self._closed

    def _has_room(self) -> bool:
        return not self._sizes or (len(self._sizes) < self._rows_max and self._bytes < self._bytes_max)

    def entered(self, size: int, prompt: Any, error: RowError | None) -> None:
        """A row was read; its index is one more than the last one's."""
        with self._changed:
            index = self._oldest + len(self._sizes)
            self._sizes.append(size)
            self._bytes += size
            if prompt is not None:
                self._prompts[index] = prompt
            if error is not None:
                self._errors[index] = error

    def delivered(self, index: int) -> tuple[Any, RowError | None]:
        """A result was taken. Returns what `entered` was told about its row."""
        with self._changed:
            self._early.add(index)
            if index == self._oldest:
                while self._oldest in self._early and self._sizes:
                    self._early.remove(self._oldest)
                    self._bytes -= self._sizes.popleft()
                    self._oldest += 1
                self._changed.notify_all()
            return self._prompts.pop(index, None), self._errors.pop(index, None)

    def lift(self) -> None:
        """No bound from now on: somebody waits for the whole job without taking results."""
        with self._changed:
            self._lifted = True
            self._changed.notify_all()

    def unless_closed(self, action: Callable[[], None]) -> None:
        """Do something (short) with the lock held, so that nobody closes the window meanwhile."""
        with self._changed:
            if not self._closed:
                action()

    def close(self) -> None:
        """Read no further row, and send none of those that were read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Feeder(threading.Thread):
    """Reads rows and sends them in chunks; calls `on_error` with what the iterable raised.

    A full chunk leaves at once, a started one after 2 ms even while the iterable blocks. `post` runs an action in
    the link's thread after a delay.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        encode: Encoder,
        window: Window,
        *,
        job: str,
        send: Callable[[ClientMessage], None],
        post: Callable[[Callable[[], None], float], None],
        on_error: Callable[[BaseException], None],
        keep_prompts: bool,
    ) -> None:
        super().__init__(name=f"pilotlight-feed-{job}", daemon=True)
        self._rows = rows
        self._encode = encode
        self._window = window
        self._job = job
        self._send = send
        self._post = post
        self._on_error = on_error
        self._keep_prompts = keep_prompts
        self._pending_lock = threading.Lock()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._sent = 0

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            iterator = iter(self._rows)
            while self._window.wait_for_room():
                try:
                    row = next(iterator)
                except StopIteration:
                    self._flush()
                    self._window.unless_closed(lambda: self._send(InputEnd(job=self._job)))
                    return
                self._enter(row)
        except BaseException as error:
            with self._pending_lock:
                self._pending, self._pending_bytes = [], 0
            self._on_error(error)

    def _enter(self, row: Any) -> None:
        error: RowError | None = None
        try:
            line = self._encode(row)
        except Exception as failure:
            # The row still needs its place; a line that is no row gets an error back, and ours is the clearer one.
            line, error = b"!", RowError("bad_row", f"the row can't be sent: {type(failure).__name__}: {failure}")
        self._window.entered(len(line), _prompt(row) if self._keep_prompts else None, error)
        with self._pending_lock:
            self._pending.append(line)
            self._pending_bytes += len(line)
            first = len(self._pending) == 1
            full = len(self._pending) >= CHUNK_ROWS_MAX or self._pending_bytes >= CHUNK_BYTES_MAX
        if full:
            self._flush()
        elif first:
            self._post(self._flush, FLUSH_S)

    def _flush(self) -> None:
        with self._pending_lock:
            lines, self._pending, self._pending_bytes = self._pending, [], 0
            if lines:
                # Sent with the lock held, so that chunks leave in index order.
                chunk = Chunk(self._sent, len(lines), self._sent + 1, "rows", b"\n".join(lines))
                self._sent += len(lines)
                self._window.unless_closed(lambda: self._send(RowsIn(job=self._job, chunk=chunk)))


def _prompt(row: Any) -> Any:
    """What an answer calls its prompt."""
    return cast("dict[str, Any]", row).get("prompt", row) if isinstance(row, dict) else row
