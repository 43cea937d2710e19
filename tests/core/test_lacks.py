"""Devices on which a runtime can't run: others get its work, and a job that nobody can take ends with the reason."""

from __future__ import annotations

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.allocation import Options
from pilotlight.core.model import Device, Variant
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.story.records import Began, Step
from pilotlight.core.story.subjects import WorkerSubject
from pilotlight.core.story.telling import tell
from pilotlight.core.transitions import JobState

MODEL, FUNCTION = Variant("m", "model", runtime="transformers"), Variant("f", "function", runtime="python")
WHY = "sm_61 is too old"


def device(name: str, *lacks: str) -> Device:
    return Device(name, "gpu", 1 << 30, lacks=tuple((runtime, WHY) for runtime in lacks))


class Pool:
    def __init__(self, workers_expected: int) -> None:
        self.scheduler = Scheduler(Options(workers_expected=workers_expected))
        self.now = 0.0
        self.wants: dict[str, list[str]] = {}
        self.ends: list[do.EndJob] = []

    def put(self, event: ev.ManagerEvent) -> None:
        for decision in self.scheduler.handle(event, self.now):
            match decision:
                case do.SendWants(worker_id=worker_id):
                    self.wants[worker_id] = [variant for _, variant, _ in decision.wants]
                case do.EndJob():
                    self.ends.append(decision)
                case do.ReadRows(job_id, rows):
                    self.put(ev.RowsRead(job_id, 0, rows, exhausted=False))
                case _:
                    pass
        self.scheduler.check()

    def submit(self, job: str, variant: Variant) -> None:
        self.put(ev.JobSubmitted(job, job, variant, 1.0, 3, may_hedge=False, done=(), attempts={}))

    def pass_s(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            for worker in list(self.scheduler.state.workers):
                self.put(ev.WorkerHeard(worker, 0))
            self.put(ev.Tick())


def test_a_variant_goes_where_its_runtime_runs_and_nowhere_else() -> None:
    pool = Pool(2)
    pool.put(ev.WorkerJoined("old", 1, "h", (device("old", "transformers", "python"),)))
    pool.put(ev.WorkerJoined("new", 1, "h", (device("new", "python"),)))
    pool.submit("job", MODEL)
    pool.pass_s(5)
    assert pool.wants.get("new") == ["m"]
    assert not pool.wants.get("old")
    assert not pool.ends


def test_one_workers_lack_says_nothing_of_its_kind_of_device() -> None:
    pool = Pool(3)
    for name in ("a", "b"):
        pool.put(ev.WorkerJoined(name, 1, "h", (device(name, "python"),)))
    pool.put(ev.WorkerJoined("c", 1, "h", (device("c"),)))
    pool.submit("job", FUNCTION)
    pool.pass_s(5)
    assert {worker for worker, wants in pool.wants.items() if wants} == {"c"}


def test_a_job_that_none_of_the_pools_workers_can_run_ends_with_the_reason() -> None:
    pool = Pool(1)
    pool.put(ev.WorkerJoined("w", 1, "h", (device("w", "transformers"),)))
    pool.submit("job", MODEL)
    pool.pass_s(1)
    (end,) = pool.ends
    assert end.state is JobState.FAILED
    assert end.message == f"model can't be held by any worker: {WHY}"
    assert not pool.wants.get("w")


def test_where_workers_dial_in_a_job_waits_for_one_that_can() -> None:
    pool = Pool(0)
    pool.put(ev.WorkerJoined("w", 1, "h", (device("w", "transformers"),)))
    pool.submit("job", MODEL)
    pool.pass_s(60)
    assert not pool.ends
    pool.put(ev.WorkerJoined("v", 1, "h", (device("v"),)))
    pool.pass_s(1)
    assert pool.wants["v"] == ["m"]
    pool.put(ev.WorkerLost("w", "gone"))
    assert not pool.scheduler.state.lacking


def test_a_workers_story_has_what_it_said_of_itself() -> None:
    joined = ev.WorkerJoined("w", 1, "h", (device("w"),), about=("its cache is /scratch", "it has Python 3.12"))
    story = tell([Began(0.0, 1, "0", "", 0.0), Step(1, 1.0, joined)], WorkerSubject("w"))
    assert [line.text for line in story.lines][1:] == ["its cache is /scratch", "it has Python 3.12"]
