"""Several contexts on real workers: room, sizes, speeds, sleep, hangs, workers that are broken in some way."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pilotlight import Pool, WorkerShape, context
from pilotlight.core.errors import JobFailed
from pilotlight.views import ContextView

GB = 10**9


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTLIGHT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("PILOTLIGHT_CACHE", str(tmp_path / "cache"))


def holding(name: str, memory_bytes: int, loads: Path) -> Any:
    """A context that notes each of its loads in a file."""

    @context(name=name, version="1", memory_bytes=memory_bytes)
    def build() -> str:
        with loads.open("a") as file:
            file.write(f"{name}\n")
        return name

    return build()


def answer(state: str, row: int) -> tuple[str, int, str]:
    return state, row, os.path.basename(os.environ["TMPDIR"])


def same(row: int) -> int:
    return row


def by_name(contexts: list[ContextView]) -> dict[str, ContextView]:
    return {view.name: view for view in contexts}


def levels(view: ContextView) -> list[str]:
    return sorted(residence.level for residence in view.residences)


def test_contexts_that_fit_together_are_live_together_and_stay(tmp_path: Path) -> None:
    contexts = [holding(name, GB // 2, tmp_path / "loads") for name in ("one", "two", "three")]
    with Pool(worker_shapes=[WorkerShape(memory_bytes=2 * GB)]) as pool:
        for _ in range(2):
            jobs = [pool.map(answer, range(50), context=each) for each in contexts]
            for each, job in zip(contexts, jobs, strict=True):
                assert [result.value[:2] for result in job] == [(each.name, row) for row in range(50)]
        seen = by_name(pool.contexts())
        assert {name: levels(seen[name]) for name in ("one", "two", "three")} == {
            name: ["live"] for name in ("one", "two", "three")
        }
    assert sorted((tmp_path / "loads").read_text().split()) == ["one", "three", "two"]


def test_a_context_that_fits_nowhere_says_what_it_needs_and_what_there_is(tmp_path: Path) -> None:
    with Pool(worker_shapes=[WorkerShape(memory_bytes=GB), WorkerShape(memory_bytes=2 * GB)]) as pool:
        job = pool.map(answer, range(5), context=holding("huge", 50 * GB, tmp_path / "loads"))
        with pytest.raises(JobFailed, match=r"50\.0 GB.* 2\.0 GB"):
            list(job)
        assert [
            result.value[1] for result in pool.map(answer, range(5), context=holding("small", 0, tmp_path / "l"))
        ] == [*range(5)]


def test_a_context_that_fits_some_devices_uses_those(tmp_path: Path) -> None:
    with Pool(worker_shapes=[WorkerShape(memory_bytes=GB), WorkerShape(memory_bytes=4 * GB)]) as pool:
        job = pool.map(answer, range(200), context=holding("large", 3 * GB, tmp_path / "loads"))
        assert len({result.value[2] for result in job}) == 1
    assert (tmp_path / "loads").read_text().split() == ["large"]


def test_a_slow_worker_does_less_and_both_finish(tmp_path: Path) -> None:
    def spin(state: str, row: int) -> str:
        total = 0
        for number in range(60_000):
            total += number
        return os.path.basename(os.environ["TMPDIR"])

    with Pool(worker_shapes=[WorkerShape(speed=1.0), WorkerShape(speed=0.03)]) as pool:
        held = holding("spinning", 0, tmp_path / "loads")
        first = Counter(result.value for result in pool.map(spin, range(400), context=held))
        done = Counter(result.value for result in pool.map(spin, range(1500), context=held))
    assert sum(done.values()) == 1500
    assert sum(first.values()) == 400
    assert done["worker-1"] > 4 * done["worker-2"]


def test_what_has_no_room_sleeps_and_is_not_built_again(tmp_path: Path) -> None:
    class Sleeper:
        def __init__(self, name: str, notes: Path) -> None:
            self.name, self.notes = name, notes
            self.say("load")

        def say(self, what: str) -> None:
            with self.notes.open("a") as file:
                file.write(f"{what} {self.name}\n")

        def sleep(self) -> None:
            self.say("sleep")

        def wake_up(self) -> None:
            self.say("wake")

    def make(name: str) -> Any:
        @context(name=name, version="1", memory_bytes=3 * GB // 2)
        def build() -> Sleeper:
            return Sleeper(name, notes)

        return build()

    def call(state: Any, row: int) -> tuple[str, int]:
        return state.name, row

    notes = tmp_path / "notes"
    first, second = make("first"), make("second")
    with Pool(worker_shapes=[WorkerShape(memory_bytes=2 * GB)]) as pool:
        for each in (first, second, first):
            assert [result.value for result in pool.map(call, range(20), context=each)] == [
                (each.name, row) for row in range(20)
            ]
    said = notes.read_text().splitlines()
    assert said.count("load second") == 1
    assert said.index("sleep first") < said.index("load second")
    assert said.index("wake first") > said.index("load second")
    assert said.count("load first") == 1


def test_a_row_that_hangs_becomes_an_error_row_and_costs_the_others_nothing(tmp_path: Path) -> None:
    def stuck(state: str, row: int) -> int:
        if row == 7:
            import time

            while True:
                time.sleep(60)
        return row

    with Pool(2) as pool:
        held = holding("patient", 0, tmp_path / "loads")
        job = pool.map(stuck, range(60), context=held, request_timeout_s=4.0)
        results = list(job)
    assert {result.index: result.error.kind for result in results if result.error} == {7: "timed_out"}
    assert [result.value for result in results if not result.error] == [row for row in range(60) if row != 7]


def test_a_context_that_one_worker_can_not_load_is_left_to_the_others(tmp_path: Path) -> None:
    @context(name="picky", version="1")
    def build() -> str:
        if os.environ["TMPDIR"].endswith("worker-1"):
            raise RuntimeError("not on this one")
        return "built"

    with Pool(2) as pool:
        results = list(pool.map(answer, range(100), context=build()))
        assert {result.value[2] for result in results} == {"worker-2"}


def test_a_context_that_no_worker_can_load_ends_its_job_with_the_reason_and_no_other() -> None:
    @context(name="broken", version="1")
    def build() -> str:
        raise RuntimeError("the index is missing")

    with Pool(2) as pool:
        other = pool.map(same, range(500))
        with pytest.raises(JobFailed, match="the index is missing"):
            list(pool.map(answer, range(10), context=build()))
        assert [result.value for result in other] == list(range(500))


def test_a_worker_whose_replicas_die_whatever_they_run_makes_no_error_rows(tmp_path: Path) -> None:
    def fragile(state: str, row: int) -> int:
        if os.environ["TMPDIR"].endswith("worker-2"):
            os.kill(os.getpid(), 9)
        return row

    with Pool(2) as pool:
        results = list(pool.map(fragile, range(300), context=holding("fragile", 0, tmp_path / "loads")))
    assert [result.value for result in results] == list(range(300))


def test_a_small_job_beside_a_huge_one_ends_first(tmp_path: Path) -> None:
    def slow(state: str, row: int) -> int:
        import time

        time.sleep(0.002)
        return row

    held = holding("shared", 0, tmp_path / "loads")
    with Pool(2) as pool:
        huge = pool.map(slow, range(100_000), context=held)
        next(iter(huge))
        small = pool.map(slow, range(100), context=held, weight=4.0)
        assert [result.value for result in small] == list(range(100))
        assert huge.progress().rows_done < 50_000
        huge.cancel()
