"""The conformance kit of `ports.Sink`: whoever writes a sink describes how to open and read one, and runs `check`.

Each check raises AssertionError with a sentence.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pilotlight.core.errors import PilotlightError
from pilotlight.core.ranges import IndexSet, Span
from pilotlight.ports import Sink
from pilotlight.wire import ResultChunk


@dataclass(frozen=True, slots=True)
class SinkCase:
    """A kind of sink. Each `place` is an output of its own.

    open: opens the output at a place; again, after a close or a death, it goes on with what was there. read: the
    finished output's lines. done: the rows that an opened sink has; None if it can't go on (then only whole runs are
    checked).
    """

    open: Callable[[str], Sink]
    read: Callable[[str], Sequence[bytes]]
    done: Callable[[Sink], IndexSet] | None = None


def check(case: SinkCase) -> None:
    """Run every check."""
    check_empty(case)
    check_in_order(case)
    check_any_order(case)
    check_closed(case)
    check_sync_beside_writes(case)
    if case.done:
        check_goes_on(case)


def line(index: int) -> bytes:
    """The output line of a row in these checks; some are long."""
    return b'{"index":%d,"result":"%s"}' % (index, b"x" * (3000 if index % 50 == 1 else index % 7))


def result_chunk(spans: Iterable[Span]) -> ResultChunk:
    """Finished rows; every 10th is an error row."""
    spans = list(spans)
    indices = [index for start, stop in spans for index in range(start, stop)]
    errors = [index for index in indices if index % 10 == 0]
    lines = [b'{"index":%d,"error":{"kind":"odd","message":""}}' % i if i % 10 == 0 else line(i) for i in indices]
    return ResultChunk(spans, b"\n".join(lines), {"odd": errors} if errors else {}, {"prompt_tokens": len(indices)})


def expected(rows: int) -> list[bytes]:
    """What the finished output must hold."""
    return result_chunk([(0, rows)]).blob.split(b"\n") if rows else []


def random_chunks(rows: int, seed: int) -> list[ResultChunk]:
    """All rows once, cut and mixed: whole runs, single rows, several spans in one chunk, backwards too."""
    rng = random.Random(seed)  # noqa: S311
    cuts = sorted({0, rows, *(rng.randrange(rows) for _ in range(rows // 5))})
    spans = list(pairwise(cuts))
    rng.shuffle(spans)
    chunks: list[ResultChunk] = []
    while spans:
        chunks.append(result_chunk(spans[: (count := rng.choice([1, 1, 2, 9]))]))
        del spans[:count]
    return chunks


def check_empty(case: SinkCase) -> None:
    """A job without rows has an empty output."""
    sink = case.open("empty")
    sink.sync()
    sink.finish(0)
    sink.close()
    assert list(case.read("empty")) == [], "an output of no rows is not empty"


def check_in_order(case: SinkCase) -> None:
    """Rows that come in order stay so."""
    sink = case.open("in-order")
    for start in range(0, 1000, 100):
        sink.write(result_chunk([(start, start + 100)]))
    sink.finish(1000)
    sink.close()
    assert list(case.read("in-order")) == expected(1000), "the output is not what was written"


def check_any_order(case: SinkCase) -> None:
    """Line n answers row n, however rows came."""
    for seed in range(3):
        sink = case.open(f"any-order-{seed}")
        for at, chunk in enumerate(random_chunks(2000, seed)):
            sink.write(chunk)
            if at % 40 == 0:
                sink.sync()
        sink.finish(2000)
        sink.close()
        assert list(case.read(f"any-order-{seed}")) == expected(2000), "the output is not in order"


def check_closed(case: SinkCase) -> None:
    """Closing is idempotent; a closed sink refuses rows."""
    sink = case.open("closed")
    sink.write(result_chunk([(0, 3)]))
    sink.close()
    sink.close()
    try:
        sink.write(result_chunk([(3, 4)]))
    except PilotlightError:
        return
    raise AssertionError("a closed sink took rows and said nothing")


def check_sync_beside_writes(case: SinkCase) -> None:
    """`sync` may run in another thread while rows are written."""
    sink = case.open("beside")
    stop = threading.Event()
    raised: list[BaseException] = []

    def sync() -> None:
        try:
            while not stop.is_set():
                sink.sync()
        except BaseException as error:  # handed to the caller's thread
            raised.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    try:
        for chunk in random_chunks(3000, 7):
            sink.write(chunk)
    finally:
        stop.set()
        thread.join()
    assert not raised, f"sync beside writes raised {raised[0]!r}"
    sink.finish(3000)
    sink.close()
    assert list(case.read("beside")) == expected(3000), "the output is not in order"


def check_goes_on(case: SinkCase) -> None:
    """What was written before a close counts afterwards, and the whole comes out exact."""
    assert case.done
    chunks = random_chunks(1500, 11)
    parts = [chunks[:40], chunks[40:41], chunks[41:]]
    written = IndexSet()
    for part in parts:
        sink = case.open("goes-on")
        assert case.done(sink) == written, "what counts as done is not what was written before"
        for chunk in part:
            sink.write(chunk)
            written.update(chunk.spans)
        if part is parts[-1]:
            sink.finish(1500)
        sink.close()
    assert list(case.read("goes-on")) == expected(1500), "the output is not exact after going on"
