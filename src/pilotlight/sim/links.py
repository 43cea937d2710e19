"""Disks, network cards and file systems: bytes per second that all who read at once share.

Processor sharing: each of n readers gets min(per_reader, total / n). Virtual work makes a start or an end cost
O(log n), however many read: all readers advance at one rate, so the order in which they end never changes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from pilotlight.sim.clock import Clock, Timer


class Transfer:
    """A read that is under way. One of `done` and `failed` is called once, unless it is cancelled."""

    __slots__ = ("bytes", "done", "due", "failed")

    def __init__(
        self, size: float, due: float, done: Callable[[], None], failed: Callable[[], None] | None = None
    ) -> None:
        self.bytes = size
        self.due = due
        self.done: Callable[[], None] | None = done
        self.failed = failed


class Shared:
    """A source of bytes. bytes_per_s: of all readers together; per_reader: the most that one gets, in bytes/s;
    latency_s: before the first byte of each read."""

    def __init__(
        self, clock: Clock, bytes_per_s: float, *, per_reader: float = float("inf"), latency_s: float = 0.0
    ) -> None:
        self._clock = clock
        self._total = bytes_per_s
        self._per_reader = per_reader
        self._latency_s = latency_s
        self._work = 0.0
        """Bytes that a reader who was there all the time would have."""
        self._at_s = clock.now
        self._readers: list[tuple[float, int, Transfer]] = []
        self._open: dict[Transfer, None] = {}
        """Reads that were asked for and are not over."""
        self._live = 0
        self._made = 0
        self._timer: Timer | None = None
        self.moved_bytes = 0.0
        """Bytes of reads that ended."""
        self.most_readers = 0
        """How many read at once, at most."""

    @property
    def readers(self) -> int:
        """How many read now."""
        return self._live

    def read(self, size: float, done: Callable[[], None], failed: Callable[[], None] | None = None) -> Transfer:
        """Read so many bytes."""
        transfer = Transfer(size, 0.0, done, failed)
        self._open[transfer] = None
        self._clock.after(self._latency_s, lambda: self._begin(transfer))
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """Stop a read; it frees its share."""
        if transfer.done is not None:
            transfer.done = None
            del self._open[transfer]
            if transfer.due:
                self._advance()
                self._live -= 1
                self._plan()

    def fail(self) -> None:
        """What is read from is gone: all reads that can fail do."""
        for transfer in [transfer for transfer in self._open if transfer.failed is not None]:
            self.cancel(transfer)
            assert transfer.failed is not None
            transfer.failed()

    def _begin(self, transfer: Transfer) -> None:
        if transfer.done is None:
            return
        self._advance()
        self._made += 1
        transfer.due = self._work + max(transfer.bytes, 1.0)
        heapq.heappush(self._readers, (transfer.due, self._made, transfer))
        self._live += 1
        self.most_readers = max(self.most_readers, self._live)
        self._plan()

    @property
    def _rate(self) -> float:
        return min(self._per_reader, self._total / max(1, self._live))

    def _advance(self) -> None:
        now = self._clock.now
        if self._live:
            self._work += (now - self._at_s) * self._rate
        self._at_s = now

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._readers and self._readers[0][2].done is None:
            heapq.heappop(self._readers)
        if self._readers:
            left_s = max(0.0, self._readers[0][0] - self._work) / self._rate
            self._timer = self._clock.after(left_s, self._end)

    def _end(self) -> None:
        """The first reader, whom this moment was planned for, is done."""
        self._advance()
        due, _, transfer = heapq.heappop(self._readers)
        self._work = max(self._work, due)
        done, transfer.done = transfer.done, None
        del self._open[transfer]
        self._live -= 1
        self.moved_bytes += transfer.bytes
        self._timer = None
        self._plan()
        if done is not None:
            done()
