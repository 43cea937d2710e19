"""Stories told from what the real machines did: they agree with the machines' belief, and with what became of rows."""

from __future__ import annotations

from typing import Any

import pytest

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.allocation import Options
from pilotlight.core.decisions import ManagerDecision
from pilotlight.core.model import Device, Variant
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.story.cast import Cast
from pilotlight.core.story.records import Began, Gap, Record, Step, Story
from pilotlight.core.story.scene import Scene
from pilotlight.core.story.subjects import (
    ContextSubject,
    JobSubject,
    LeaseSubject,
    RowSubject,
    Subject,
    WorkerSubject,
    find,
    known_names,
    name_of,
)
from pilotlight.core.story.telling import overview, survey, tell
from pilotlight.core.story.words import bytes_text, duration_text, rows_text
from pilotlight.core.transitions import Level, ReplicaState
from pilotlight.manager.causes import Causes
from tests.core.storm import storm
from tests.core.world import World

STORMS = 12


class Recorder:
    """What a manager's event log would hold, and the believed leases after each step."""

    def __init__(self) -> None:
        self.records: list[Record] = [Began(0.0, 1, "test", "", 0.0)]
        self.leases: list[dict[str, list[tuple[int, int]]]] = []
        self._of: Scheduler | None = None
        self._causes = Causes()

    def attach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        handle = Scheduler.handle

        def recorded(scheduler: Scheduler, event: ev.ManagerEvent, now: float) -> list[ManagerDecision]:
            decisions = handle(scheduler, event, now)
            if self._of is not None and scheduler is not self._of:
                self.records.append(Began(now, 2, "test", "", 0.0))
                self._causes = Causes()
            self._of = scheduler
            n, because = len(self.records), self._causes.of(event)
            self.records.append(Step(n, now, event, tuple(decisions), because, since_s=now))
            self._causes.learn(n, decisions)
            state = scheduler.state
            self.leases.append({lease.lease_id: lease.open.spans() for lease in state.leases.values()})
            return decisions

        monkeypatch.setattr(Scheduler, "handle", recorded)

    def tell(self, subject: Subject) -> Story:
        return tell(self.records, subject)

    def texts(self, subject: Subject) -> str:
        """A story as one text."""
        story = self.tell(subject)
        return "\n".join([story.title, *(line.text for line in story.lines)])


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    recorder.attach(monkeypatch)
    return recorder


def pump(world: World, name: str) -> None:
    """All messages of a worker arrive."""
    while name in world.workers and (world.workers[name].up or world.workers[name].down):
        world.deliver(name, "up")
        world.deliver(name, "down")


def warm(world: World, *names: str) -> None:
    """Workers join, get their rows and begin."""
    for _ in range(6):
        for name in names:
            pump(world, name)
            for replica_id in list(world.workers[name].replicas):
                if not world.workers[name].replicas[replica_id].live:
                    world.work(name, replica_id)
            pump(world, name)
        world.tick(0.01)


# --- agreement with the machines


@pytest.mark.parametrize("seed", range(STORMS))
def test_stories_agree_with_what_the_machines_believed(recorder: Recorder, seed: int) -> None:
    world = storm(seed)
    scene = Scene()
    believed = iter(recorder.leases)
    for record in recorder.records:
        if isinstance(record, Began):
            scene.began()
        elif isinstance(record, Step):
            scene.take(record)
            seen = {lease.lease_id: lease.open.spans() for lease in scene.leases.values()}
            assert seen == next(believed), f"after {record}"
    for job_id, job in world.jobs.items():
        for index in range(0, job.rows, 7):
            told = recorder.tell(RowSubject(job_id, index))
            answered = ": it was answered" in told.title
            failed = "became an error row" in told.title
            assert answered == (job.output.get(index) == "result"), told
            assert failed == (index in job.output and job.output[index] != "result"), told
    cast = survey(recorder.records)
    for name in known_names(cast):
        for subject in find(cast, name):
            story = recorder.tell(subject)
            assert story.lines, name
            assert [line.at_s for line in story.lines] == sorted(line.at_s for line in story.lines)
            assert subject in find(cast, name_of(subject))
    assert overview(recorder.records)


# --- rows


def test_a_poison_row_tells_of_its_deaths_and_charges(recorder: Recorder) -> None:
    world = World()
    world.add_worker()
    world.add_worker()
    job_id = world.submit(40, poison=frozenset({21}))
    world.settle()
    story = recorder.tell(RowSubject(job_id, 21))
    texts = [line.text for line in story.lines]
    assert texts[0].startswith("was read from the input")
    assert "was leased to worker-" in texts[1]
    charged = [text.partition("attempt ")[2][0] for text in texts if "charged" in text]
    assert charged == ["1", "2", "3"]
    assert any("all run again like others" in text for text in texts)
    assert any("suspects now" in text for text in texts)
    assert any("to run alone" in text for text in texts)
    assert texts[-2] == "had no attempt left: its error row was written"
    assert texts[-1].startswith("got the error row killed_replica: the request ended its replica 3 times")
    assert "it became an error row (killed_replica)" in story.title
    assert "3 attempts charged" in story.title


def test_a_row_that_hangs_is_told_apart_from_one_that_kills(recorder: Recorder) -> None:
    world = World()
    world.add_worker()
    world.add_worker()
    job_id = world.submit(20, hangs=frozenset({5}))
    world.settle()
    told = recorder.texts(RowSubject(job_id, 5))
    assert "hung and was ended with it" in told
    assert "it became an error row (timed_out)" in told


def test_a_lost_worker_gives_its_rows_back(recorder: Recorder) -> None:
    world = World()
    job_id = world.submit(30)
    first, second = world.add_worker(), world.add_worker()
    warm(world, first, second)
    (lease_id, lease) = next((i, e) for i, e in world.scheduler.state.leases.items() if e.worker_id == first)
    row = lease.open.spans()[0][0]
    world.kill_worker(first)
    world.settle()
    told = recorder.texts(RowSubject(job_id, row))
    assert f"{first} was lost (killed) with {lease_id}: it went back to the queue" in told
    assert f"was leased again to {second}" in told
    assert f"was answered by {second}/d0" in told
    told = recorder.texts(WorkerSubject(first))
    assert f"was lost (killed): {lease_id} (rows" in told
    assert "went back to the queue" in told
    told = recorder.texts(LeaseSubject(lease_id))
    assert f"{first} was lost (killed)" in told
    assert f"{first} was lost (killed): rows" in recorder.texts(JobSubject(job_id))
    assert f"{first} was lost (killed), and with it the replica on d0" in recorder.texts(ContextSubject("v"))


def test_a_cut_connection_is_told_and_a_late_result_too(recorder: Recorder) -> None:
    world = World()
    job_id = world.submit(12)
    name = world.add_worker()
    warm(world, name)
    (replica_id,) = world.workers[name].replicas
    row = world.workers[name].replicas[replica_id].rows[0][2]
    world.work(name, replica_id)  # finished, and on its way when the connection breaks
    world.cut(name)
    world.settle()
    told = recorder.texts(RowSubject(job_id, row))
    assert f"{name} was lost (cut)" in told
    assert "though that lease was void by then" in told


def test_a_hedged_row_tells_of_both_leases(recorder: Recorder) -> None:
    world = World(Options(hedge_after_s=1.0))
    job_id = world.submit(8)
    slow = world.add_worker()
    warm(world, slow)
    fast = world.add_worker()
    warm(world, fast)
    held = {row for replica in world.workers[slow].replicas.values() for _, _, row in replica.rows}
    for _ in range(12):  # the slow one does nothing but breathe
        world.tick(0.5)
        for name in (slow, fast):
            pump(world, name)
        for replica_id in list(world.workers[fast].replicas):
            world.work(fast, replica_id)
        pump(world, fast)
    (again,) = [index for index in sorted(held) if "second time" in recorder.texts(RowSubject(job_id, index))][:1]
    told = recorder.texts(RowSubject(job_id, again))
    assert f"was leased a second time, to {fast} in lease-" in told
    assert f"beside {slow}'s lease-" in told
    assert f"{slow} had it too, in lease-" in told
    assert f"was answered by {fast}/d0" in told


def test_a_row_that_was_taken_back_tells_why_it_moved(recorder: Recorder) -> None:
    world = World()
    job_id = world.submit(8)
    slow = world.add_worker()
    warm(world, slow)
    fast = world.add_worker()
    warm(world, fast)
    world.settle()
    told = [recorder.texts(RowSubject(job_id, index)) for index in range(8)]
    moved = [text for text in told if f"was given back unstarted by {slow}" in text]
    assert moved
    assert all("asked for unstarted rows" in text and f"was leased again to {fast}" in text for text in moved)


def test_a_resumed_row_needs_no_answer(recorder: Recorder) -> None:
    world = World()
    world.add_worker()
    job_id = world.submit(5, done=((0, 2),), attempts={3: 1})
    world.jobs[job_id].output.update({0: "result", 1: "result"})
    world.settle()
    assert "an earlier run had answered it" in recorder.texts(RowSubject(job_id, 1))
    assert "began with 1 attempt charged in an earlier run" in recorder.texts(RowSubject(job_id, 3))


def test_a_row_that_was_never_read_says_so(recorder: Recorder) -> None:
    world = World()
    world.add_worker()
    job_id = world.submit(5)
    world.settle()
    story = recorder.tell(RowSubject(job_id, 99))
    assert story.title == f"row 99 of {job_id} ({job_id}): the log says nothing of it"
    assert not story.lines


# --- other subjects


def test_a_device_tells_only_of_itself(recorder: Recorder) -> None:
    world = World(devices=2)
    name = world.add_worker()
    world.submit(40)
    world.settle()
    told = recorder.texts(WorkerSubject(name, "d1"))
    assert "v is live on d1" in told
    assert "live on d0" not in told


def test_a_context_that_can_not_be_loaded_says_where_and_why(recorder: Recorder) -> None:
    world = World()
    first, second = world.add_worker(), world.add_worker()
    world.unloadable.add((first, "d0"))
    world.submit(10)
    world.settle()
    told = recorder.texts(ContextSubject("v"))
    assert f"{first}: it could not be loaded on d0: unloadable" in told
    assert f"{second}: v is live on d0 after 100 ms" in told


def test_the_overview_counts_and_names_what_went_wrong(recorder: Recorder) -> None:
    world = World()
    world.add_worker()
    lost = world.add_worker()
    job_id = world.submit(40, poison=frozenset({3}))
    warm(world, *list(world.workers))
    world.kill_worker(lost)
    world.settle()
    recorder.records.insert(5, Gap(0.0, 7, "the disk was full"))
    told = {story.title: "\n".join(line.text for line in story.lines) for story in overview(recorder.records)}
    assert f"{job_id} ({job_id}) on v: completed" in told["jobs"]
    assert "40 rows written" in told["jobs"]
    assert "3 attempts charged" in told["jobs"]
    assert "error rows: 1 killed_replica" in told["jobs"]
    assert f"{lost} joined with d0 (kind)" in told["workers"]
    assert "(killed)" in told["workers"]
    assert "on average" in told["contexts"]
    assert "(7 steps missing: the disk was full)" in told["what went wrong"]


def test_a_new_manager_is_told_of(recorder: Recorder) -> None:
    world = World()
    world.add_worker()
    job_id = world.submit(30)
    warm(world, *list(world.workers))
    world.restart_manager()
    world.settle()
    assert "(a new manager, number 2, took over)" in recorder.texts(JobSubject(job_id))


# --- steps that no simulation makes at will


def joined(worker_id: str) -> ev.WorkerJoined:
    return ev.WorkerJoined(worker_id, 1, "here", (Device("cpu", "cpu", 1 << 30),))


def grant(worker_id: str, lease_id: str, start: int, stop: int, *, isolated: bool = False) -> do.GrantRows:
    return do.GrantRows(worker_id, lease_id, "job-1", ((start, stop),), isolated)


def text_of(steps: list[Step], subject: Subject) -> str:
    story = tell(steps, subject)
    return "\n".join([story.title, *(line.text for line in story.lines)])


def test_workers_that_are_told_in_one_step_keep_their_own_reasons() -> None:
    wanted = (("cpu", "tiny-1a2b", Level.LIVE),)
    first, second = (do.SendWants(f"worker-{n}", 1, wanted, f"reason {n}") for n in (1, 2))
    starting = ev.ReplicaFact("cpu", "tiny-1a2b", "worker-1.1", ReplicaState.STARTING)
    steps = [
        Step(1, 0.0, joined("worker-1")),
        Step(2, 0.1, joined("worker-2")),
        Step(3, 0.2, submitted("job-1", "out.jsonl"), (first, second)),
        Step(4, 0.3, ev.ReplicaReported("worker-1", starting), because=3),
    ]
    assert "starts a replica of tiny on cpu (reason 1)" in text_of(steps, WorkerSubject("worker-1"))


def caught(*rest: Step) -> list[Step]:
    """Two rows of a worker, the second of which another has too, when the replica dies with both."""
    died = ev.ReplicaDied("worker-1", "cpu", "tiny-1a2b", {"lease-1": [(0, 2)]}, 2, "killed")
    return [
        Step(1, 0.0, submitted("job-1", "out.jsonl")),
        Step(2, 0.1, joined("worker-1"), (grant("worker-1", "lease-1", 0, 2),)),
        Step(3, 0.2, joined("worker-2"), (grant("worker-2", "lease-2", 1, 2),)),
        Step(4, 0.3, died, (do.RecordAttempts("job-1", ((0, 1),)),)),
        *rest,
    ]


def test_a_row_that_another_worker_has_too_leaves_its_neighbour_alone() -> None:
    told = text_of(caught(), RowSubject("job-1", 0))
    assert "attempt 1 of 3 charged, because it was alone in its replica" in told
    assert "1 attempt charged" in told
    told = text_of(caught(), RowSubject("job-1", 1))
    assert "died with it (killed): worker-2 has it too, in lease-2" in told
    assert "charged" not in told
    apart = "row 0 is a suspect now; another worker has row 1 too"
    assert apart in text_of(caught(), JobSubject("job-1"))
    assert apart in text_of(caught(), LeaseSubject("lease-1"))


def test_an_attempt_that_is_given_back_is_no_charge() -> None:
    rests = do.Note("warning", "worker-1/cpu rests", "worker-1", rest_device="cpu", rest_s=1.0)
    steps = caught(Step(5, 0.4, ev.Tick(), (do.RecordAttempts("job-1", ((0, 0),)), rests)))
    told = text_of(steps, RowSubject("job-1", 0))
    assert "an attempt was given back: the device is to blame" in told
    assert "attempts charged" not in told
    assert "an attempt of row 0 was given back" in text_of(steps, JobSubject("job-1"))
    (jobs, *_) = overview(steps)
    assert "charged" not in jobs.lines[0].text


def test_a_row_that_is_summed_up_with_others_is_answered_within_a_range() -> None:
    written = ev.RowsWritten("job-1", ((0, 4),), "lease-1", "worker-1", "cpu")
    steps = [
        Step(1, 0.0, submitted("job-1", "out.jsonl")),
        Step(2, 1.0, joined("worker-1"), (grant("worker-1", "lease-1", 0, 4),)),
        Step(3, 2.0, written, since_s=1.2),
    ]
    told = text_of(steps, RowSubject("job-1", 0))
    assert "was answered by worker-1/cpu in lease-1, 200 ms to 1.0 s after it was leased" in told
    assert "after it was read" not in told, "nothing says when it was read"
    told = text_of(
        [steps[0], Step(2, 0.5, ev.RowsRead("job-1", 0, 4, exhausted=True)), *steps[1:]], RowSubject("job-1", 0)
    )
    assert "700 ms to 1.5 s after it was read" in told


def test_one_row_is_spoken_of_in_the_singular() -> None:
    steps = [
        Step(1, 0.0, submitted("job-1", "out.jsonl")),
        Step(2, 0.1, joined("worker-1"), (grant("worker-1", "lease-1", 7, 8, isolated=True),)),
        Step(3, 0.3, ev.WorkerLost("worker-1", "killed")),
    ]
    told = text_of(steps, LeaseSubject("lease-1"))
    assert "row 7 of job-1 was leased to worker-1" in told
    assert "row 7 stays a suspect" in told


def test_a_worker_that_joined_twice_was_here_as_long_in_every_story() -> None:
    steps = [
        Step(1, 0.0, joined("worker-1")),
        Step(2, 5.0, joined("worker-1")),
        Step(3, 8.0, ev.WorkerLeaving("worker-1", "a signal")),
        Step(4, 9.0, ev.WorkerLost("worker-1", "exit status 0")),
    ]
    assert "left after 9.0 s" in text_of(steps, WorkerSubject("worker-1"))
    (workers,) = [story for story in overview(steps) if story.title == "workers"]
    assert "left after 9.0 s (exit status 0)" in workers.lines[0].text


def test_what_a_lost_worker_had_begun_is_told() -> None:
    lost = do.Note("warning", "whatever it says", "worker-1", again=3)
    steps = [Step(1, 0.0, joined("worker-1")), Step(2, 9.0, ev.WorkerLost("worker-1", "killed"), (lost,))]
    told = text_of(steps, WorkerSubject("worker-1"))
    assert "was lost (killed); 3 requests had started and run again elsewhere" in told


CLOSED = "the other end closed the connection"


@pytest.mark.parametrize("first", [True, False])
def test_a_worker_is_lost_for_how_its_process_ended(*, first: bool) -> None:
    noted = do.Note("warning", f"worker-1 was lost ({CLOSED}); 0 requests", "worker-1")
    lost: tuple[ev.ManagerEvent, do.Note] = (ev.WorkerLost("worker-1", CLOSED), noted)
    ended = ev.PilotEnded("worker-1", "killed by SIGKILL")
    steps = [
        Step(1, 0.0, joined("worker-1")),
        Step(2, 1.0, ended) if first else Step(2, 1.0, lost[0], (noted,)),
        Step(3, 1.2, lost[0], (noted,)) if first else Step(3, 1.2, ended),
    ]
    assert "was lost (killed by SIGKILL)" in text_of(steps, WorkerSubject("worker-1"))
    told = "\n".join(line.text for story in overview(steps) for line in story.lines)
    assert "worker-1 was lost (killed by SIGKILL); 0 requests" in told
    assert CLOSED not in told


def test_a_worker_that_we_let_go_is_lost_for_that_and_one_that_ended_later_for_what_was_said() -> None:
    ended = ev.PilotEnded("worker-1", "killed by SIGTERM")
    steps = [
        Step(1, 0.0, joined("worker-1")),
        Step(2, 1.0, ev.Tick(), (do.DropWorker("worker-1", "silent for 30 s"),)),
        Step(3, 1.0, ev.WorkerLost("worker-1", "silent for 30 s")),
        Step(4, 1.5, ended),
    ]
    assert "was lost (silent for 30 s)" in text_of(steps, WorkerSubject("worker-1"))
    steps = [
        steps[0],
        Step(2, 1.0, ev.WorkerLost("worker-1", "cut")),
        Step(3, 9.0, joined("worker-1")),
        Step(4, 9, ended),
    ]
    assert "was lost (cut)" in text_of(steps, WorkerSubject("worker-1"))


# --- names


def cast_of(*events: ev.ManagerEvent) -> Cast:
    return survey(Step(n, 0.0, event) for n, event in enumerate(events, 1))


def submitted(job_id: str, name: str, variant: str = "tiny-1a2b") -> ev.JobSubmitted:
    return ev.JobSubmitted(job_id, name, Variant(variant, variant.partition("-")[0]))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("job-1", [JobSubject("job-1-abc")]),
        ("job-1-abc", [JobSubject("job-1-abc")]),
        ("out.jsonl", [JobSubject("job-1-abc")]),
        ("job-2:7", [RowSubject("job-2-def", 7)]),
        ("row 7", [RowSubject("job-1-abc", 7), RowSubject("job-2-def", 7)]),
        ("tiny", [ContextSubject("tiny-1a2b")]),
        ("tiny-1a2b", [ContextSubject("tiny-1a2b")]),
        ("job-3", []),
        ("row x", []),
    ],
)
def test_names(name: str, found: list[Any]) -> None:
    cast = cast_of(submitted("job-1-abc", "out.jsonl"), submitted("job-2-def", "other.jsonl"))
    assert find(cast, name) == found


def test_a_row_alone_may_be_meant_of_one_job() -> None:
    cast = cast_of(submitted("job-1-abc", "out.jsonl"), submitted("job-2-def", "other.jsonl"))
    assert find(cast, "row 7", of_job="job-2-def") == [RowSubject("job-2-def", 7)]


def test_words() -> None:
    assert [bytes_text(n) for n in (12, 3000, 4_200_000, 1_250_000_000)] == ["12 B", "3 kB", "4 MB", "1.2 GB"]
    assert rows_text([(120, 184), (190, 191)]) == "rows 120-183 and 190"
    assert rows_text([(7, 8)]) == "row 7"
    assert rows_text([(i, i + 1) for i in range(0, 20, 2)]) == "10 rows between 0 and 18"
    assert [duration_text(s) for s in (0.0354, 4.12, 99.96, 125, 12_000)] == [
        "35 ms",
        "4.1 s",
        "1 min 40 s",
        "2 min 5 s",
        "3 h 20 min",
    ]
