"""What signals and silence do to a command that follows a job."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pilotlight as pl
from pilotlight.client.console import follow as following
from pilotlight.client.console.display import PLAIN_S, PlainDisplay
from pilotlight.client.console.fold import Fold
from pilotlight.client.feed import Feeder, Window
from pilotlight.client.jobs import Job
from pilotlight.client.pool import Pool
from pilotlight.messages import Accepted, Cancel, JobEnded, RowsIn
from pilotlight.views import JobView, Totals
from pilotlight.wire import JobRequest, Operation, StreamInput, StreamOutput

from .conftest import COMMAND, up


def _ended(outcome: Any, message: str = "") -> JobEnded:
    view = JobView(job="j", name="", state=outcome, rows_read=9, rows_done=5, rows_error=0, rows_leased=0)
    return JobEnded(job="j", outcome=outcome, view=view, totals=Totals(), message=message)


def test_a_signal_before_the_job_is_accepted_ends_the_command(tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "x"}\n')
    calls = 0

    def submit(pool: Pool, _again: bool) -> Job[Any]:
        return pool.run_files(pl.LLM("slow"), Operation(kind="generate"), [source], output)

    def step(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    ending = following.follow(Pool(1, manager_command=COMMAND), submit, output=output, quiet=True, step=step)
    assert (ending.exit_code, ending.ended) == (128 + signal.SIGTERM, None)
    assert not output.exists()


def _followed(output: Path, at_step: Callable[[int], None], **how: Any) -> following.Ending:
    """Follow a job that hangs, in the pool that is up."""
    calls = 0

    def submit(pool: Pool, _again: bool) -> Job[Any]:
        return pool.run_files(pl.LLM(how.get("model", "hang")), Operation(kind="generate"), [output], output)

    def step(*_: object) -> None:
        nonlocal calls
        calls += 1
        at_step(calls)

    return following.follow(Pool.connect(), how.get("submit", submit), output=output, quiet=True, step=step)


def _interrupts(at: int) -> Callable[[int], None]:
    return lambda call: os.kill(os.getpid(), signal.SIGINT) if call == at else None


def test_a_command_that_joined_leaves_while_another_asks_for_the_job(lasting_pool: int, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with Pool.connect() as other:
        first = other.run_files(pl.LLM("hang"), Operation(kind="generate"), [output], output)
        ending = _followed(output, _interrupts(3))
        assert (ending.exit_code, ending.goes_on) == (130, True)
        assert ending.notes == ["left; job-1 goes on, as another command asks for it (pilotlight cancel job-1 ends it)"]
        first.cancel()


def test_a_command_that_joined_ends_the_job_if_it_is_the_last(lasting_pool: int, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    other = Pool.connect()
    other.start()
    other.run_files(pl.LLM("hang"), Operation(kind="generate"), [output], output)

    def at_step(call: int) -> None:
        if call == 3:
            other.close()
        if call == 6:
            os.kill(os.getpid(), signal.SIGINT)

    ending = _followed(output, at_step)
    assert (ending.exit_code, ending.goes_on) == (130, False)
    assert ending.ended is not None
    assert ending.ended.outcome == "cancelled"


def test_leaving_before_the_pool_answers_says_what_that_means(lasting_pool: int, tmp_path: Path) -> None:
    def submit(pool: Pool, _again: bool) -> Job[Any]:
        os.kill(os.getpid(), signal.SIGINT)
        return pool.run_files(pl.LLM("slow"), Operation(kind="generate"), [tmp_path], tmp_path / "out", detach=True)

    ending = following.hand_over(Pool.connect(), submit)
    assert ending.notes == ["left before the pool had taken the job, which may still begin (pilotlight jobs shows it)"]
    attached = following.follow(Pool.connect(), submit, output=Path("job-3"), quiet=True, leaves=True)
    assert attached.notes == ["left before the pool had answered; nothing was stopped"]


def test_a_manager_that_dies_as_soon_as_it_is_back_counts_as_a_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with up() as pid:
        pool, pids = Pool.connect(), [pid]

        def revive(_: str) -> object:
            again = contextlib.ExitStack()
            pids.append(again.enter_context(up()))
            stack.push(again)
            return object()

        def submit(pool: Pool, _again: bool) -> Job[Any]:
            if len(pids) < 3:
                os.kill(pids[-1], signal.SIGKILL)
                _until(lambda: pool.lost)
            return pool.run_files(pl.LLM("some"), Operation(kind="generate"), [source], tmp_path / "out.jsonl")

        source = tmp_path / "in.jsonl"
        source.write_text('{"prompt": "x"}\n')
        with contextlib.ExitStack() as stack:
            monkeypatch.setattr(following.lasting, "revive", revive)
            ending = following.follow(pool, submit, output=tmp_path / "out.jsonl", quiet=True)
    assert ending.exit_code == 0
    assert len(pids) == 3


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("outcome", ["suspended", "failed"])
def test_what_went_wrong_during_a_drain_is_said(outcome: str) -> None:
    interrupts = following.Interrupts(first=signal.SIGINT)
    ending = following._ending(_ended(outcome, "the disk is full"), interrupts, Path("out.jsonl"), "")
    assert ending.exit_code == 130
    assert "the disk is full" in ending.notes
    ending = following._ending(_ended("cancelled"), interrupts, Path("out.jsonl"), "")
    assert len(ending.notes) == 1


def test_a_log_file_shows_signs_of_life_while_nothing_changes(capsys: pytest.CaptureFixture[str]) -> None:
    display, fold = PlainDisplay(verbose=False), Fold()
    for second in range(12):
        display.update(fold, PLAIN_S * second / 4)
    assert capsys.readouterr().err.splitlines() == [
        "pilotlight: starting workers (5.0 s)",
        "pilotlight: starting workers (10 s)",
    ]


def test_no_rows_follow_a_cancel() -> None:
    sent: list[Any] = []
    posted: list[Callable[[], None]] = []
    window = Window()
    job: Job[Any] = Job(send=sent.append, reader=None, ordered=True, window=window)
    request = JobRequest(
        context=pl.LLM("x/y").wire, operation=Operation(kind="generate"), input=StreamInput(), output=StreamOutput()
    )
    job.on_accepted(Accepted(ticket=1, job="job-1", request=request))
    more = threading.Event()

    def rows() -> Any:
        yield "first"
        more.wait()
        yield "second"

    entered = threading.Event()

    def post(action: Callable[[], None], _: float) -> None:
        posted.append(action)
        entered.set()

    feeder = Feeder(
        rows(),
        str.encode,
        window,
        job="job-1",
        send=sent.append,
        post=post,
        on_error=job.on_failed,
        keep_prompts=False,
    )
    feeder.start()
    assert entered.wait(30)
    job.cancel()
    more.set()
    feeder.join(30)
    for action in posted:
        action()
    assert [type(message) for message in sent] == [Cancel]
    assert not any(isinstance(message, RowsIn) for message in sent)


def _leased(rows: int) -> Fold:
    view = JobView(job="j", name="", state="draining", rows_read=9, rows_done=5, rows_error=0, rows_leased=rows)
    return Fold(view=view)


def test_a_drain_says_what_it_waits_for() -> None:
    drain = following.Drain(began_s=100.0)
    said = [drain.hint(_leased(rows), 100.0 + second) for second, rows in enumerate([7] * 11 + [1] * 5)]
    assert [bool(text) for text in said] == [second in {5, 10, 15} for second in range(16)]
    assert "waiting for 7 rows" in said[5]
    assert "waiting for 1 row that" in said[15]


@pytest.mark.parametrize(("rows", "said"), [(1, "1 row is an error row"), (1200, "1,200 rows are error rows")])
def test_error_rows_are_counted_in_words(rows: int, said: str) -> None:
    view = JobView(job="j", name="", state="completed", rows_read=9, rows_done=9, rows_error=rows, rows_leased=0)
    ended = JobEnded(job="j", outcome="completed", view=view, totals=Totals())
    (note,) = following._ending(ended, following.Interrupts(), Path("out.jsonl"), "").notes
    assert note.startswith(said)


def test_a_job_that_others_ended_says_so() -> None:
    notes = following._ending(_ended("cancelled"), following.Interrupts(), Path("out.jsonl"), "").notes
    assert "cancelled by another command, or its pool was taken down" in notes[0]
    assert "the same command goes on" in notes[1]
