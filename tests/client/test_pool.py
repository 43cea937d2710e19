"""Jobs from Python against a manager at the protocol's edge: order, errors, bounds, ends."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pilotlight as pl
from pilotlight.client.pool import Pool
from pilotlight.core.errors import LinkClosed, ModelNotFound
from pilotlight.wire import Operation

from .conftest import COMMAND

MODEL = pl.LLM("some/model")
SHORT_S = 30.0


class Point:
    """A user's class in a module that workers can't import."""

    def __init__(self, x: int) -> None:
        self.x = x


def helper(point: Point) -> int:
    return point.x * 10


@pl.context
def times(factor: int) -> dict[str, int]:
    return {"factor": factor}


def multiply(state: dict[str, int], row: int) -> Point:
    if row == 3:
        raise ValueError("not three")
    return Point(row * state["factor"])


def test_map_gives_every_row_in_order_and_errors_as_results(pool: Pool) -> None:
    results = list(pool.map(multiply, range(5000), context=times(2)))
    assert [result.index for result in results] == list(range(5000))
    assert results[3].error == pl.RowError("function_error", "not three")
    assert results[3].value is None
    assert not results[3].ok
    assert all(result.value.x == 2 * result.index for result in results if result.ok)


def test_map_without_context_and_with_users_classes(pool: Pool) -> None:
    assert [result.value for result in pool.map(helper, [Point(1), Point(2)])] == [10, 20]
    assert [result.value for result in pool.map(lambda row: row + 1, [1, None, 3])] == [2, None, 4]


def test_rows_of_unknown_length_and_of_none(pool: Pool) -> None:
    generator = (f"prompt {index}" for index in range(3000))
    texts = [result.text for result in pool.generate(MODEL, generator)]
    assert texts == [f"prompt {index}!" for index in range(3000)]
    assert list(pool.generate(MODEL, iter(()))) == []


def test_results_as_they_finish(pool: Pool) -> None:
    indices = [result.index for result in pool.classify(MODEL, ["x"] * 2000, labels=["a", "b"], ordered=False)]
    assert indices != sorted(indices)
    assert sorted(indices) == list(range(2000))


def test_a_row_that_cannot_travel_keeps_its_place(pool: Pool) -> None:
    class Unpicklable:
        def __reduce__(self) -> str:
            raise TypeError("no")

    mapped = list(pool.map(str, [1, Unpicklable(), 3]))
    assert [result.value for result in mapped] == ["1", None, "3"]
    assert mapped[1].error is not None
    assert "can't be sent" in mapped[1].error.message
    answered = list(pool.generate(MODEL, ["a", object(), {"prompt": "c"}, [5, 6]]))
    assert [result.text for result in answered] == ["a!", "", "c!", ""]
    assert "[5, 6]" in str(answered[3].error)
    assert answered[1].error is not None
    assert answered[1].outputs[0].finish_reason == "error"
    assert [answered[place].prompt for place in (0, 2, 3)] == ["a", "c", [5, 6]]


def test_an_endless_generator_is_read_only_as_far_as_the_window() -> None:
    read = itertools.count()
    with Pool(1, window_rows=50, manager_command=COMMAND) as pool:
        job = pool.generate(MODEL, (f"{next(read)}" for _ in itertools.count()))
        results = iter(job)
        for index in range(200):
            assert next(results).text == f"{index}!"
        assert next(read) <= 251
        job.cancel()
        with pytest.raises(pl.JobCancelled):
            list(results)


def test_the_window_counts_bytes_too() -> None:
    read = itertools.count()
    with Pool(1, window_rows=10_000, window_bytes=100_000, manager_command=COMMAND) as pool:
        results = iter(pool.generate(MODEL, ("x" * 10_000 + str(next(read)) for _ in range(500))))
        assert next(results).ok
        assert next(read) <= 12
        assert sum(1 for _ in results) == 499


def test_a_blocking_generator_gets_the_answers_to_what_it_gave(pool: Pool) -> None:
    answered = threading.Event()

    def rows() -> Iterator[str]:
        yield "first"
        assert answered.wait(SHORT_S)
        yield "second"

    texts: list[str] = []
    for result in pool.generate(MODEL, rows()):
        texts.append(result.text)
        answered.set()
    assert texts == ["first!", "second!"]


def test_what_the_rows_raise_reaches_who_reads_results(pool: Pool) -> None:
    def rows() -> Iterator[str]:
        yield "first"
        raise OSError("the file broke")

    with pytest.raises(OSError, match="the file broke"):
        list(pool.generate(MODEL, rows()))
    assert [result.text for result in pool.generate(MODEL, ["next"])] == ["next!"]


def test_a_refused_job_raises_the_managers_error(pool: Pool) -> None:
    with pytest.raises(ModelNotFound, match="no such model"):
        list(pool.generate(pl.LLM("refuse"), ["x"]))


def test_a_failed_job_raises_and_names_the_logs(pool: Pool) -> None:
    with pytest.raises(pl.JobFailed, match=str(pool.log_dir)):
        list(pool.generate(pl.LLM("fail"), ["x", "y"]))


def test_a_dead_manager_ends_jobs_and_calls(pool: Pool) -> None:
    with pytest.raises(LinkClosed, match="manager is gone"):
        list(pool.generate(pl.LLM("die"), ["x"]))
    with pytest.raises(LinkClosed):
        pool.generate(MODEL, ["x"])


def test_closing_the_pool_ends_its_jobs() -> None:
    with Pool(1, manager_command=COMMAND) as pool:
        job = pool.generate(pl.LLM("hang"), ["x"])
    with pytest.raises(pl.JobCancelled):
        list(job)
    with pytest.raises(pl.ConfigError, match="not started"):
        pool.generate(MODEL, ["x"])


def test_wait_leaves_the_results_to_be_taken() -> None:
    with Pool(1, window_rows=10, manager_command=COMMAND) as pool:
        job = pool.generate(MODEL, ["x"] * 100)
        assert job.wait(SHORT_S).outcome == "completed"
        assert job.progress().rows_done == 100
        assert len(list(job)) == 100
        hanging = pool.generate(pl.LLM("hang"), ["x"])
        with pytest.raises(TimeoutError):
            hanging.wait(0.01)


def test_a_job_between_files(pool: Pool, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    job = pool.run_files(MODEL, Operation(kind="generate"), [source], output)
    ended = job.wait(SHORT_S)
    assert ended.outcome == "completed"
    assert ended.view.rows_done == 2
    assert list(job) == []
    assert output.read_text().count("\n") == 2


def test_from_asyncio() -> None:
    async def use() -> None:
        async with Pool(1, watch_s=0.1, manager_command=COMMAND) as pool:
            first, second = pool.chat(MODEL, ["hi"] * 100), pool.generate(MODEL, ["yo"] * 100, ordered=False)
            both = await asyncio.gather(first, _texts(second))
            assert [result.text for result in both[0]] == ["hi!"] * 100
            assert both[1] == ["yo!"] * 100
            hanging = pool.generate(pl.LLM("hang"), ["x"])
            waiting = asyncio.ensure_future(_texts(hanging))
            ticks = [await asyncio.sleep(0.001, tick) for tick in range(20)]
            assert len(ticks) == 20
            assert not waiting.done()
            hanging.cancel()
            with pytest.raises(pl.JobCancelled):
                await waiting

    async def _texts(job: pl.Job[pl.Generation]) -> list[str]:
        return [result.text async for result in job]

    asyncio.run(use())


def test_an_llm_makes_a_new_pool_where_its_own_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = dict(Pool.__init__.__kwdefaults__ or {}) | {"manager_command": COMMAND}
    monkeypatch.setattr(Pool.__init__, "__kwdefaults__", defaults)
    with pl.LLM("die", workers=1) as llm:
        with pytest.raises(pl.PilotlightError, match="manager is gone"):
            llm.generate("x")
        lost = llm._pool
        assert lost is not None
        assert lost.lost
        assert llm._started() is not lost


def test_the_calls_of_an_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = dict(Pool.__init__.__kwdefaults__ or {}) | {"manager_command": COMMAND}
    monkeypatch.setattr(Pool.__init__, "__kwdefaults__", defaults)
    with pl.LLM("some/model", workers=1) as llm:
        outputs = llm.generate(["a", "b"], pl.SamplingParams(max_tokens=5))
        assert [output.outputs[0].text for output in outputs] == ["a!", "b!"]
        assert llm.generate("alone")[0].text == "alone!"
        assert "[1, 2]" in str(llm.generate([1, 2])[0].error)
        assert llm.chat([{"role": "user", "content": "hi"}])[0].text == "hi!"
        assert len(llm.chat([[{"role": "user", "content": "hi"}]] * 2)) == 2
        assert llm.classify(["x"], labels=["yes", "no"])[0].probabilities == {"yes": 0.5, "no": 0.5}


@pytest.mark.parametrize(
    ("labels", "said"), [(["a"], "at least 2"), (["a", "b", "a"], "a is given more"), ("ab", "list")]
)
def test_labels_are_checked_before_anything_runs(labels: list[str], said: str) -> None:
    with pytest.raises(pl.ConfigError, match=said):
        Pool(1).classify(MODEL, ["x"], labels=labels)


def test_a_context_is_known_by_source_arguments_and_version() -> None:
    assert times(2).id == times(2).id
    assert times(2).id != times(3).id
    first, same, later = (
        pl.context(name="n", version=version)(build)().id
        for version, build in (("1", lambda: 1), ("1", lambda: 2), ("2", lambda: 1))
    )
    assert first == same != later


def test_a_users_module_travels_by_value(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_the_script.py").write_text(
        "def inner(row):\n    return row * 3\n\ndef outer(row):\n    return inner(row) + 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("beside_the_script")
    assert isinstance(module, ModuleType)
    assert [result.value for result in pool.map(module.outer, [1, 2])] == [4, 7]
    del sys.modules["beside_the_script"]


def test_functions_do_not_travel_to_a_pool_of_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PYTHON", "3.2.1")
    with pl.Pool(1, manager_command=COMMAND) as pool:
        for attempt in (lambda: list(pool.map(str, [1])), lambda: pool.pin(times(2))):
            with pytest.raises(pl.ConfigError, match=r"the pool runs Python 3\.2\.1: use Python 3\.2 here"):
                attempt()
        assert len(list(pool.generate(MODEL, ["a"]))) == 1
