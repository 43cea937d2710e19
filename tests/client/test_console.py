"""The picture of a job and its last words, as pure functions of the manager's messages."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pilotlight.client.console.fold import Fold
from pilotlight.client.console.summary import render, summarise
from pilotlight.messages import JobEnded, Notice, Snapshot
from pilotlight.quantities import duration, number
from pilotlight.views import OTHERS, ArrivalView, JobView, ReplicaView, Totals, WorkerView


def _view(done: int, **more: object) -> JobView:
    values = {"state": "running", "rows_read": 2 * done, "rows_error": 0, "rows_leased": 1} | more
    return JobView(job="j", name="n", rows_done=done, **values)  # type: ignore[arg-type]


def _snapshot(view: JobView | None, *workers: WorkerView) -> Snapshot:
    return Snapshot(jobs=[view] if view else [], workers=list(workers), totals=Totals())


def _worker(state: str) -> WorkerView:
    replica = ReplicaView(device="cpu", device_kind="cpu", context="c", name="tiny", state=state, load_s=1.25)
    return WorkerView(worker="worker-1", pid=1, host="h", state="live", rows_done=7, rows_leased=0, replicas=[replica])


def test_before_anything_is_known() -> None:
    fold = Fold()
    assert fold.line == "starting workers"
    assert (fold.rows_per_s, fold.fraction, fold.eta_s) == (None, None, None)


def test_rate_fraction_and_time_left() -> None:
    fold = Fold()
    fold.take(_snapshot(_view(0, rows_total=1000)), 100.0)
    fold.take(_snapshot(_view(100, rows_total=1000)), 101.0)
    assert fold.rows_per_s == 100
    assert fold.fraction == 0.1
    assert fold.eta_s == 9.0
    assert fold.line.startswith("100 of 1,000 rows, 10 %, 100 rows/s, 9.0 s left, 0 errors")


def test_the_rate_is_of_late() -> None:
    fold = Fold()
    for second, rows in enumerate([0, *[1000] * 20, 1010]):
        fold.take(_snapshot(_view(rows, rows_total=2000)), float(second))
    assert fold.rows_per_s is not None
    assert fold.rows_per_s < 2


def test_the_fraction_is_scaled_from_what_was_read() -> None:
    fold = Fold()
    fold.take(_snapshot(_view(100, fraction=0.5)), 1.0)
    assert fold.fraction == 0.25


def test_what_is_waited_for_is_named() -> None:
    fold = Fold()
    fold.take(_snapshot(_view(0), _worker("starting")), 1.0)
    assert fold.line.endswith("loading tiny")
    fold.take(_snapshot(_view(0), _worker("live")), 1.0)
    assert fold.worker_lines == [("worker-1", "live", "tiny live on cpu, loaded in 1.2 s", "7 rows")]


def test_files_on_their_way_are_shown_by_the_one_that_is_furthest() -> None:
    def fetching(done: int, source: str) -> WorkerView:
        arrival = ArrivalView(name="tiny", done_bytes=done, total_bytes=3_400_000_000, source=source)
        return msgspec.structs.replace(_worker("starting"), replicas=[], arriving=[arrival])

    fold = Fold()
    fold.take(_snapshot(_view(0), fetching(34_000_000, "worker-2"), fetching(1_700_000_000, "")), 1.0)
    assert fold.line.endswith("fetching tiny, 50 % of 3.4 GB")
    assert fold.worker_lines[0] == ("worker-1", "live", "fetching tiny, 1 % of 3.4 GB from worker-2", "7 rows")


def test_other_jobs_are_not_shown() -> None:
    fold = Fold(job="other")
    fold.take(_snapshot(_view(5)), 1.0)
    assert fold.view is None


def test_notices_are_taken_once() -> None:
    fold = Fold()
    fold.take(Notice(level="info", text="hello"), 1.0)
    assert [notice.text for notice in fold.take_notices()] == ["hello"]
    assert fold.take_notices() == []


def test_the_summary_says_what_people_ask() -> None:
    counters = {"prompt_tokens": 5000.0, "truncated": 2.0, "length": 3.0}
    view = _view(1000, rows_resumed=400, rows_error=5, errors={"bad_row": 4, "x": 1}, counters=counters, running_s=6.0)
    totals = Totals(loads={"tiny": 3}, load_s=4.5, busy_s=70.0, rows_lost=12, workers_lost=1, replicas_lost=0)
    ended = JobEnded(job="j", outcome="completed", view=view, totals=totals)
    told = dict(summarise(ended, output="out.jsonl", report="out.report"))
    assert told["requests"] == "1,000 done (400 of them by earlier runs)"
    assert told["speed"] == "100 requests/s over 6.0 s"
    assert told["error rows"] == "5 (4 bad_row, 1 x)"
    assert told["contexts loaded"] == "tiny 3 times"
    assert told["time"] == "4.5 s loading, 1 min 10 s inferring (all workers)"
    assert told["work lost"] == "12 requests had begun and ran again; 1 worker lost"
    assert "2 prompts" in told["truncated"]
    assert "3 answers" in told["cut short"]
    assert render([("a", "b"), ("longer", "c")]) == "a       b\nlonger  c"


def test_figures_for_people() -> None:
    assert [number(value) for value in (0.123, 9.94, 1234.5)] == ["0.1", "9.9", "1,234"]
    assert [duration(value) for value in (1.25, 59.0, 61, 7260)] == ["1.2 s", "59 s", "1 min 01 s", "2 h 01 min"]


def _running(rows: int, **totals: Any) -> Snapshot:
    view = JobView(
        job="j", name="", state="running", rows_read=1000, rows_done=rows, rows_error=0, rows_leased=0, rows_total=1000
    )
    return Snapshot(jobs=[view], workers=[], totals=Totals(**totals))


def test_loading_says_nothing_of_the_rate() -> None:
    fold = Fold()
    for second in range(60):
        fold.take(_running(0), second)
    assert fold.eta_s is None
    fold.take(_running(100), 60.0)
    assert fold.rows_per_s == pytest.approx(100)
    assert fold.eta_s == pytest.approx(9)


def test_sums_of_a_pool_that_stays_begin_when_we_come() -> None:
    fold = Fold()
    fold.take(_running(0, loads={"a": 2}, load_s=9.0, rows_lost=3), 0.0)
    fold.take(_running(9, loads={"a": 2, "b": 1}, load_s=10.0, rows_lost=3), 1.0)
    assert fold.since(fold.totals) == Totals(loads={"b": 1}, load_s=1.0)
    fold.forget()
    fold.take(_running(9, loads={"b": 1}), 2.0)
    assert fold.since(fold.totals) == Totals(loads={"b": 1})


def test_an_unfinished_output_is_not_called_one() -> None:
    view = _running(5).jobs[0]
    told = dict(summarise(JobEnded(job="j", outcome="cancelled", view=view, totals=Totals()), output="out.jsonl"))
    assert "output" not in told
    assert "out.jsonl.pilotlight" in told["unfinished"]


def test_loads_since_we_came_are_right_when_contexts_are_summed_up() -> None:
    fold = Fold()
    fold.before = Totals(loads={"a": 5, "b": 1, OTHERS: 10})
    assert fold.since(Totals(loads={"a": 6, "b": 1, "c": 2, OTHERS: 10})).loads == {"a": 1, "c": 2}
    assert fold.since(Totals(loads={"b": 3, OTHERS: 15})).loads == {"b": 2}  # `a` was summed up, and not loaded
    assert fold.since(Totals(loads={"a": 1, "b": 1, OTHERS: 16})).loads == {OTHERS: 2}  # loaded twice, once since
