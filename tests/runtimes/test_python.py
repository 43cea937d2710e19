"""PythonRuntime: the kit, and the shapes that a user's functions come in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
import pytest

from pilotlight.core.errors import LoadError
from pilotlight.ports import Outcome, Row
from pilotlight.runtimes.python import PythonRuntime
from pilotlight.testing.runtimes import CPU, RuntimeCase, check, check_sleep, run_rows
from pilotlight.wire import Context, Operation


def context(load: Any = None, *args: Any, **options: Any) -> Context:
    pickled = None if load is None else cloudpickle.dumps((load, args, {}))
    return Context(runtime="python", name="mine", identity="1", load=pickled, options=options)


def operation(function: Any, *, batch: int = 0) -> Operation:
    return Operation(kind="map", function=cloudpickle.dumps(function), batched=batch > 0, batch_max=batch or 1)


def run(function: Any, payloads: list[Any], *, batch: int = 0, load: Any = None) -> list[Outcome]:
    model = PythonRuntime().load(context(load), CPU)
    try:
        return run_rows(model, operation(function, batch=batch), payloads)
    finally:
        model.close()


def results(outcomes: list[Outcome]) -> list[Any]:
    return [outcome.result if outcome.error_kind is None else outcome.error_kind for outcome in outcomes]


def test_conforms() -> None:
    def halve(payload: int) -> float:
        return 12 / payload

    async def double(payload: int) -> int:
        await asyncio.sleep(0)
        return 2 * payload

    def negate(payloads: list[int]) -> list[int]:
        return [-payload for payload in payloads]

    jobs = [(operation(halve), [1, 2, 3]), (operation(double), [1, 2, 3, 4]), (operation(negate, batch=2), [5, 6, 7])]
    check(RuntimeCase(PythonRuntime, context(), jobs, bad=[(0, "function_error"), ("x", "function_error")]))


def test_state_is_built_once() -> None:
    def count(state: list[int], payload: int) -> int:
        state.append(payload)
        return len(state)

    assert results(run(count, [7, 7, 7], load=list)) == [1, 2, 3]


def test_context_manager_state_is_entered_and_left(tmp_path: Path) -> None:
    mark = tmp_path / "left"

    @contextlib.contextmanager
    def opened() -> Iterator[int]:
        yield 10
        mark.write_text("left")

    assert results(run(lambda state, payload: state + payload, [1, 2], load=opened)) == [11, 12]
    assert mark.exists()


def test_close_is_called(tmp_path: Path) -> None:
    mark = tmp_path / "closed"

    class State:
        def close(self) -> None:
            mark.write_text("closed")

    run(lambda state, payload: payload, [1], load=State)
    assert mark.exists()


def test_none_is_a_state_too() -> None:
    assert results(run(lambda state, payload: (state, payload), [1], load=lambda: None)) == [(None, 1)]


def test_an_exception_is_the_rows_error_with_its_place() -> None:
    def picky(payload: int) -> int:
        if payload == 2:
            raise KeyError("two")
        return payload

    outcomes = run(picky, [1, 2, 3])
    assert results(outcomes) == [1, "function_error", 3]
    assert outcomes[1].error.startswith("KeyError: 'two' (")
    assert "in picky" in outcomes[1].error


def test_exit_in_a_function_is_an_error_too() -> None:
    def leave(payload: int) -> int:
        raise SystemExit(payload)

    assert results(run(leave, [1])) == ["function_error"]


def test_a_batch_that_raises_is_repeated_row_by_row() -> None:
    def inverse(payloads: list[int]) -> list[float]:
        return [1 / payload for payload in payloads]

    assert results(run(inverse, [1, 2, 0, 4], batch=4)) == [1.0, 0.5, "function_error", 0.25]


def test_a_generator_keeps_what_it_yielded() -> None:
    def inverses(payloads: list[int]) -> Iterator[float]:
        for payload in payloads:
            yield 1 / payload

    assert results(run(inverses, [1, 2, 0, 4], batch=4)) == [1.0, 0.5, "function_error", 0.25]


def test_too_few_results_are_errors() -> None:
    outcomes = run(lambda payloads: payloads[:1], [1, 2, 3], batch=3)
    assert results(outcomes) == ["function_error"] * 3
    assert "1 results for 3 rows" in outcomes[0].error


def test_async_functions_run_at_the_same_time() -> None:
    def make() -> dict[str, int]:
        return {"now": 0, "most": 0}

    async def busy(state: dict[str, int], payload: int) -> int:
        state["now"] += 1
        state["most"] = max(state["most"], state["now"])
        for _ in range(3):
            await asyncio.sleep(0)
        state["now"] -= 1
        return state["most"]

    assert max(results(run(busy, [0] * 20, load=make))) == 20


def test_async_batches_and_generators() -> None:
    async def inverse(payloads: list[int]) -> list[float]:
        await asyncio.sleep(0)
        return [1 / payload for payload in payloads]

    async def inverses(payloads: list[int]) -> AsyncIterator[float]:
        for payload in payloads:
            yield 1 / payload

    for function in (inverse, inverses):
        assert results(run(function, [1, 2, 0, 4], batch=2)) == [1.0, 0.5, "function_error", 0.25]


def test_async_close_with_calls_in_flight() -> None:
    async def forever(payload: int) -> None:
        await asyncio.Event().wait()

    model = PythonRuntime().load(context(), CPU)
    model.add(operation(forever), [Row(1, 0, 1)])
    assert model.step() == []
    assert model.pending == 1
    model.close()


def test_a_function_that_cannot_be_unpickled_answers_its_rows() -> None:
    model = PythonRuntime().load(context(), CPU)
    outcomes = run_rows(model, Operation(kind="map", function=b"junk"), [1, 2])
    assert results(outcomes) == ["function_error"] * 2
    outcomes = run_rows(model, Operation(kind="generate"), [1])
    assert "not `generate`" in outcomes[0].error
    model.close()


def test_a_load_that_fails_says_why() -> None:
    def broken() -> None:
        raise FileNotFoundError("index.bin")

    with pytest.raises(LoadError, match=r"mine failed: FileNotFoundError: index\.bin"):
        PythonRuntime().load(context(broken), CPU)


def test_wanted_follows_speed() -> None:
    model = PythonRuntime().load(context(), CPU)
    run_rows(model, operation(lambda payload: payload), list(range(1000)))
    assert model.wanted > 100
    model.close()


def test_a_slowed_device_takes_smaller_steps_and_wants_less() -> None:
    slow = msgspec.structs.replace(CPU, speed=0.1)
    model = PythonRuntime().load(context(), slow)
    model.add(operation(lambda payload: time.sleep(0.01)), [Row(index, index, index) for index in range(100)])
    assert len(model.step()) <= 6  # half a second of its time is a twentieth of ours
    assert model.wanted <= 20
    model.close()


class Sleeper:
    """A state that can sleep, as vLLM's `LLM` can, one way plainly and the other as a coroutine."""

    def __init__(self) -> None:
        self.awake = True
        self.naps = 0

    def sleep(self, level: int = 1) -> None:
        self.awake = False
        self.naps += level

    async def wake_up(self) -> None:
        await asyncio.sleep(0)
        self.awake = True


def test_a_state_that_can_sleep_does() -> None:
    def ask(state: Any, payload: int) -> tuple[bool, int]:
        return state.awake, payload

    case = RuntimeCase(PythonRuntime, context(Sleeper), [(operation(ask), [1, 2])])
    check_sleep(case)
    model = PythonRuntime().load(context(Sleeper), CPU)
    assert model.can_sleep
    model.sleep()
    assert not model._state.awake
    model.wake()
    assert (model._state.awake, model._state.naps) == (True, 1)
    model.close()
    for other in (context(object), context()):
        model = PythonRuntime().load(other, CPU)
        assert not model.can_sleep
        model.close()


def test_a_forgotten_function_lets_go_of_what_it_holds() -> None:
    def wide(payloads: list[int]) -> list[int]:
        return payloads

    model = PythonRuntime().load(context(), CPU)
    run_rows(model, operation(wide, batch=500), [1, 2])
    assert model.wanted >= 1000
    model.forget(operation(wide, batch=500))
    assert model._functions == {}
    assert model._batch_max == 1
    model.close()
