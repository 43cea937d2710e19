"""The manager's loop around the real scheduler, with workers and jobs that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pilotlight.core import events as ev
from pilotlight.core.allocation import Options
from pilotlight.core.ranges import IndexSet
from pilotlight.manager import jobs as jobs_module
from pilotlight.manager.jobs import PathJob, StreamJob, variant_id_of
from pilotlight.manager.keeper import Keeper
from pilotlight.manager.loop import Manager
from pilotlight.messages import (
    Copy,
    CopyFailed,
    Drain,
    Grant,
    Join,
    Kept,
    ManagerMessage,
    Reported,
    Resident,
    Rows,
    RowsOut,
    SourceAsked,
    SourceNamed,
    Wants,
    WorkerMessage,
)
from pilotlight.wire import (
    VERSION,
    Chunk,
    Context,
    DeviceSpec,
    JobRequest,
    Operation,
    ResultChunk,
    Served,
    StreamInput,
    StreamOutput,
)

CONTEXT = Context(runtime="echo", name="echo", identity="echo")
VARIANT = variant_id_of(CONTEXT)
REQUEST = JobRequest(context=CONTEXT, operation=Operation(kind="echo"), input=StreamInput(), output=StreamOutput())
CPU = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1 << 30)


class Link:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ManagerMessage]] = []
        self.say: Callable[[str, WorkerMessage], None] = lambda _worker, _message: None

    async def start(
        self, on_message: Callable[[str, WorkerMessage], None], on_lost: Callable[[str, str], None]
    ) -> None:
        self.say, self.lose = on_message, on_lost

    def send(self, worker_id: str, message: ManagerMessage) -> None:
        self.sent.append((worker_id, message))

    def drop(self, worker_id: str, reason: str) -> None:
        """Nothing to drop."""

    async def stop(self) -> None:
        """Nothing to stop."""


class NoPilots:
    """Workers come by themselves."""

    def submit(self, name: str) -> str:
        return name

    def adopt(self, pilot_id: str) -> bool:
        return False

    def poll(self) -> dict[str, str]:
        return {}

    def cancel(self, pilot_id: str) -> None:
        """Nothing to cancel."""

    def close(self) -> None:
        """Nothing to close."""


def quiet(_level: str, _text: str, _subject: str) -> None:
    """Nobody listens."""


def resident(wanted: int, *, context: Context | None = None) -> Resident:
    return Resident(device="cpu", variant=VARIANT, replica="w.1", state="live", wanted=wanted, context=context)


def played(play: Callable[[Manager, Link], None]) -> None:
    """Run a play against a manager that has started."""

    async def run() -> None:
        link = Link()
        manager = Manager(2, link, Keeper(NoPilots(), 0, quiet), Options(epoch=2))
        await manager.start()
        try:
            play(manager, link)
        finally:
            await manager.stop()

    asyncio.run(run())


def stream_job(manager: Manager, sent: list[RowsOut], *, known_upto: int = 0) -> StreamJob:
    job = StreamJob("job-1", REQUEST, sent.append)
    job.known_upto = known_upto
    manager.add_job(job, [], {})
    return job


def join(*residents: Resident, copies: list[Copy] | None = None) -> Join:
    return Join(worker="w", pid=1, host="h", devices=[CPU], residents=list(residents), copies=copies or [])


def test_long_rows_go_in_several_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "GRANT_BYTES_MAX", 1000)

    def play(manager: Manager, link: Link) -> None:
        job = stream_job(manager, [])
        link.say("w", join())
        link.say("w", Reported(resident=resident(64)))
        for index in range(32):
            job.arrive(Chunk(index, 1, index + 1, "in", b"x" * 300))
        job.arrive(Chunk(32, 1, 33, "in", b"y" * 5000))
        job.end_input()
        for _ in range(40):
            manager.rows_arrived(job)
        grants = [message for _, message in link.sent if isinstance(message, Grant)]
        sizes = [sum(len(chunk.blob) for chunk in grant.chunks) for grant in grants]
        assert max(size for size in sizes if size != 5000) <= 1000
        granted = IndexSet((chunk.start, chunk.stop) for grant in grants for chunk in grant.chunks)
        assert granted.spans() == [(0, 33)]
        assert sum(chunk.count for grant in grants for chunk in grant.chunks) == 33
        manager.scheduler.state.check()

    played(play)


class LongRows:
    """A source of rows of 1,000 bytes, in blocks of 8."""

    fraction = None

    def __init__(self, rows: int) -> None:
        self.left = rows
        self.asked: list[int] = []

    def read(self, rows_max: int) -> list[Chunk]:
        self.asked.append(rows_max)
        chunks: list[Chunk] = []
        for _ in range(0, min(rows_max, self.left), 8):
            chunks.append(Chunk(self.start, 8, self.start + 1, "in", b"\n".join([b"x" * 999] * 8)))
            self.left -= 8
        return chunks

    @property
    def start(self) -> int:
        return 400 - self.left

    def close(self) -> None:
        """Nothing to close."""


class Output:
    """A job's output that only counts."""

    complete = False
    epoch = 1

    def __init__(self) -> None:
        self.done = IndexSet()
        self.errors: dict[str, int] = {}
        self.counters: dict[str, float] = {}
        self.attempts: dict[int, int] = {}

    def write(self, chunk: ResultChunk) -> None:
        self.done.update(chunk.spans)


def test_of_long_rows_no_more_is_read_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "READ_BYTES_MAX", 20_000)
    monkeypatch.setattr(jobs_module, "HELD_BYTES_MAX", 60_000)
    monkeypatch.setattr(jobs_module, "_ROWS_MIN", 8)

    def play(manager: Manager, link: Link) -> None:
        source, output = LongRows(400), Output()
        job = PathJob("job-1", REQUEST, source, cast("Any", output))
        link.say("w", join(resident(4, context=CONTEXT)))
        manager.add_job(job, [], {})
        most, seen = 0, 0
        while len(output.done) < 400:
            grants = [message for _, message in link.sent[seen:] if isinstance(message, Grant)]
            seen = len(link.sent)
            assert grants, "the workers starve"
            for grant in grants:
                for chunk in grant.chunks:
                    most = max(most, job.store.bytes_held)
                    spans = [(chunk.start, chunk.stop)]
                    lines = ResultChunk(spans, b"\n".join([b"r"] * chunk.count))
                    link.say("w", Rows(seq=1, lease=grant.lease, job="job-1", device="cpu", chunk=lines))
        assert most <= 60_000 + 20_000
        assert max(source.asked) <= 20

    played(play)


def test_results_of_an_earlier_managers_leases_count_for_rows_that_it_had_read() -> None:
    def play(manager: Manager, link: Link) -> None:
        sent: list[RowsOut] = []
        stream_job(manager, sent, known_upto=10)
        link.say("w", join(resident(4, context=CONTEXT)))
        early = ResultChunk([(5, 7), (9, 12)], b"5\n6\n9\n10\n11")
        link.say("w", Rows(seq=1, lease="lease-1.1", job="job-1", device="cpu", chunk=early))
        (out,) = sent
        assert (out.chunk.spans, out.chunk.blob) == ([(5, 7), (9, 10)], b"5\n6\n9")
        manager.scheduler.state.check()

    played(play)


def test_a_warm_inventory_is_kept_though_no_job_knows_it() -> None:
    def play(manager: Manager, link: Link) -> None:
        parked = Context(runtime="echo", name="other", identity="other")
        copies = [Copy(variant=variant_id_of(parked), level="parked", bytes=7, context=parked)]
        link.say("w", join(resident(4, context=CONTEXT), copies=copies))
        worker = manager.scheduler.state.workers["w"]
        assert worker.devices["cpu"].replicas[VARIANT].wanted == 4
        assert worker.parked[variant_id_of(parked)].bytes == 7
        wants = [message for _, message in link.sent if isinstance(message, Wants)][-1]
        first = wants.wants[0]
        assert (first.variant, first.level, first.context) == (VARIANT, "live", CONTEXT)
        link.say("w", Kept(copy=Copy(variant=variant_id_of(parked), level="parked", bytes=0)))
        assert not worker.parked

    played(play)


def test_a_worker_hears_from_where_to_stage_and_a_place_that_it_leaves_is_for_another() -> None:
    def play(manager: Manager, link: Link) -> None:
        model = Context(runtime="echo", name="model", identity="model", model_path="/models/m")
        variant = variant_id_of(model)
        has = [Copy(variant=variant, level="staged", bytes=7, context=model)]
        for name in ("far", "deaf"):
            serves = Served(url="http://far:1", key=b"k", now_s=0.0) if name == "far" else None
            link.say(name, Join(worker=name, pid=1, host=name, devices=[], copies=has, serves=serves))
        for name in ("a", "b", "c"):
            link.say(name, Join(worker=name, pid=1, host=name, devices=[]))
            link.say(name, SourceAsked(variant=variant))
        link.say("a", CopyFailed(variant=variant, source="far", reason="no answer"))
        link.say("a", SourceAsked(variant=variant))
        named = [(to, m) for to, m in link.sent if isinstance(m, SourceNamed)]
        assert [(to, m.source) for to, m in named] == [("a", "far"), ("b", "far"), ("c", ""), ("a", "")]
        assert {(m.epoch, m.variant) for _, m in named} == {(2, variant)}
        manager.scheduler.check()

    played(play)


def test_nothing_is_kept_of_workers_that_are_gone() -> None:
    def play(manager: Manager, link: Link) -> None:
        job = stream_job(manager, [])
        for name in ("w", "v"):
            link.say(name, Join(worker=name, pid=1, host="h", devices=[CPU]))
            link.say(name, Reported(resident=resident(4)))
        job.arrive(Chunk(0, 8, 1, "in", b"\n" * 7))
        manager.rows_arrived(job)
        assert job.sent_to
        for name in ("w", "v"):
            link.lose(name, "gone")
        assert not job.sent_to
        assert not manager.ledger.stages("w", "w.1")
        assert not manager.scheduler.state.workers

    played(play)


def test_what_waits_for_its_job_is_gone_with_its_worker() -> None:
    def play(manager: Manager, link: Link) -> None:
        manager.expect_jobs(["job-1"])
        link.say("w", join(resident(4, context=CONTEXT)))
        rows = Rows(seq=1, lease="lease-1.1", job="job-1", device="cpu", chunk=ResultChunk([(0, 1)], b"0"))
        link.say("w", rows)
        link.lose("w", "gone")
        sent: list[RowsOut] = []
        stream_job(manager, sent, known_upto=10)
        assert not sent
        link.say("w", join(resident(4, context=CONTEXT)))
        link.say("w", rows)  # it never heard that they were taken
        assert [out.chunk.spans for out in sent] == [[(0, 1)]]

    played(play)


def test_a_worker_of_another_version_is_told_to_leave_and_spoken_of_once() -> None:
    def play(manager: Manager, link: Link) -> None:
        notes: list[str] = []
        manager.watcher = cast("Any", SimpleNamespace(notice=lambda notice: notes.append(notice.text)))
        for _ in range(2):
            link.say("w", Join(version=VERSION + 1, worker="w", pid=1, host="h", devices=[CPU]))
            link.say("w", Reported(resident=resident(4)))
        assert [message for _, message in link.sent] == [Drain(grace_s=0.0)] * 2
        assert len(notes) == 1
        assert f"w has message version {VERSION + 1}" in notes[0]
        assert notes[0].endswith("upgrade pilotlight where the manager runs, and start the pool again")
        assert not manager.scheduler.state.workers
        link.lose("w", "it left")
        link.say("w", join())
        assert "w" in manager.scheduler.state.workers

    played(play)


def test_an_end_that_is_seen_by_the_way_is_not_forgotten() -> None:
    def play(manager: Manager, link: Link) -> None:
        told: list[ev.ManagerEvent] = []
        manager.record = lambda event, _decisions, _now: told.append(event)
        keeper = cast("Any", manager)._keeper
        link.say("w", join())
        keeper.look = lambda: {"w": "killed by SIGKILL", "v": "exit status 1"}
        link.lose("w", "closed")
        assert told[-2:] == [ev.PilotEnded("v", "exit status 1"), ev.WorkerLost("w", "killed by SIGKILL")]

    played(play)
