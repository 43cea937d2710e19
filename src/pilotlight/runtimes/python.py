"""A runtime that calls the user's Python function on each row, with state that is built once.

A context's `load` builds the state (a model of any library, an index, a connection); without it there is none. The
operation's function is called as `f(payload)` or `f(state, payload)`; a batched one gets a list of payloads and
returns as many results, or yields them. Async functions are awaited, several at once. What a function raises becomes
its row's error; a batched call that raises is repeated row by row, so that only the rows to blame fail.

The replica decodes payloads and encodes results; this module sees Python values only.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, cast

import cloudpickle

from pilotlight.core.errors import LoadError
from pilotlight.ports import Outcome, Row
from pilotlight.wire import Context, DeviceSpec, Operation

STEP_S = 0.5
HORIZON_S = 2.0
WANTED_MAX = 4096
CONCURRENCY_DEFAULT = 64
_NO_STATE = object()


class PythonModel:
    """One state and the functions that use it; see `ports.Model`."""

    def __init__(
        self,
        state: Any,
        *,
        concurrency: int,
        loop: asyncio.AbstractEventLoop,
        closing: contextlib.ExitStack,
        load_s: float,
        speed: float = 1.0,
    ) -> None:
        self._state = state
        self._closing = closing
        self._concurrency = concurrency
        self._loop = loop
        self._stages = {"read": load_s, "to_device": 0.0, "warm": 0.0}
        self._functions: dict[str, _Function] = {}
        self._waiting: deque[tuple[_Function, Row]] = deque()
        self._tasks: dict[asyncio.Task[list[Outcome]], int] = {}
        self._done: list[Outcome] = []
        self._step_s, self._horizon_s = STEP_S * speed, HORIZON_S * speed
        self._row_s: float | None = None
        self._batch_max = 1
        self._stepped = 1

    @property
    def wanted(self) -> int:
        """Two seconds' worth at the measured speed, at least two batches, twice the concurrency if async."""
        least = 2 * self._batch_max
        if any(function.is_async for function in self._functions.values()):
            least = max(least, 2 * self._concurrency)
        if self._row_s is None:
            return max(least, 16)
        return max(least, min(WANTED_MAX, int(self._horizon_s / max(self._row_s, 1e-9))))

    @property
    def memory_bytes(self) -> int:
        """Unknown: a user's state can't be measured."""
        return 0

    @property
    def attachment_bytes(self) -> int:
        """Unknown, as `memory_bytes` is."""
        return 0

    @property
    def can_sleep(self) -> bool:
        """Whether the state has `sleep()` and `wake_up()`, as vLLM's `LLM` does."""
        return all(callable(getattr(self._state, name, None)) for name in ("sleep", "wake_up"))

    def sleep(self) -> None:
        """Ask the state to."""
        self._ask("sleep")

    def wake(self) -> None:
        """Ask the state to."""
        self._ask("wake_up")

    def forget(self, operation: Operation) -> None:
        """Drop the unpickled function, and what it closes over."""
        self._functions.pop(operation.id, None)
        self._batch_max = max((function.batch_max for function in self._functions.values()), default=1)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds that the context's `load` took, under `read`."""
        return self._stages

    @property
    def pending(self) -> int:
        """Rows added and not answered."""
        return len(self._waiting) + sum(self._tasks.values()) + len(self._done)

    def add(self, operation: Operation, rows: Sequence[Row]) -> None:
        """Rows wait for their function; one that can't be unpickled answers them all with an error."""
        function = self._functions.get(operation.id)
        if function is None:
            try:
                function = _Function(operation, self._state)
            except Exception as error:
                text = f"The function can't be used: {_last_line(error)}"
                self._done.extend(Outcome(row.ticket, error_kind="function_error", error=text) for row in rows)
                return
            self._functions[operation.id] = function
        self._batch_max = max(self._batch_max, function.batch_max)
        self._waiting.extend((function, row) for row in rows)

    @property
    def started(self) -> int:
        """Calls in flight, and as many rows as the last step answered (one batch, before the first)."""
        return min(self.pending, sum(self._tasks.values()) + self._stepped)

    def step(self) -> list[Outcome]:
        """Call functions for about half a second of the device's time, or once if that takes longer."""
        start_s = time.monotonic()
        done, self._done = self._done, []
        worked = 0
        while self._waiting or self._tasks:
            if self._waiting and self._waiting[0][0].is_async:
                self._start_tasks()
            elif self._waiting:
                answers = self._call_next()
                done.extend(answers)
                worked += len(answers)
            left_s = self._step_s - (time.monotonic() - start_s)
            if self._tasks:
                answers = self._run_loop(max(0.0, left_s), wait=not self._can_go_on())
                done.extend(answers)
                worked += len(answers)
            if left_s <= 0:
                break
        self._stepped = max(worked, self._batch_max)
        if worked:
            row_s = (time.monotonic() - start_s) / worked
            self._row_s = row_s if self._row_s is None else 0.5 * (self._row_s + row_s)
        return done

    def close(self) -> None:
        """Cancel what runs, close the state (its `close()`, or its context manager), end the loop."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._tasks.clear()
        try:
            self._closing.close()
        finally:
            self._state = None
            self._functions.clear()
            self._loop.close()

    def _ask(self, name: str) -> None:
        result = getattr(self._state, name)()
        if inspect.isawaitable(result):
            self._loop.run_until_complete(_awaited(result))

    def _take(self, rows_max: int) -> tuple[_Function, list[Row]]:
        function, row = self._waiting.popleft()
        rows = [row]
        while len(rows) < rows_max and self._waiting and self._waiting[0][0] is function:
            rows.append(self._waiting.popleft()[1])
        return function, rows

    def _call_next(self) -> list[Outcome]:
        function, rows = self._take(self._waiting[0][0].batch_max)
        return function.call_batch(rows) if function.batched else [function.call(rows[0])]

    def _can_go_on(self) -> bool:
        return bool(self._waiting) and (not self._waiting[0][0].is_async or len(self._tasks) < self._concurrency)

    def _start_tasks(self) -> None:
        while self._waiting and self._waiting[0][0].is_async and len(self._tasks) < self._concurrency:
            function, rows = self._take(self._waiting[0][0].batch_max)
            task = self._loop.create_task(function.acall_batch(rows) if function.batched else function.acall(rows[0]))
            self._tasks[task] = len(rows)

    def _run_loop(self, wait_s: float, *, wait: bool) -> list[Outcome]:
        async def pause() -> set[asyncio.Task[list[Outcome]]]:
            finished, _ = await asyncio.wait(
                self._tasks, timeout=wait_s if wait else 0, return_when=asyncio.FIRST_COMPLETED
            )
            return finished

        answers: list[Outcome] = []
        for task in self._loop.run_until_complete(pause()):
            del self._tasks[task]
            answers.extend(task.result())
        return answers


class PythonRuntime:
    """Runs contexts whose runtime is `python`; see `ports.Runtime`."""

    name = "python"

    def preload(self) -> None:
        """Nothing left to import: cloudpickle came with this module, the user's own imports belong to their `load`."""

    def load(self, context: Context, device: DeviceSpec) -> PythonModel:
        """Build the state. Option `concurrency`: async calls in flight at once (default 64)."""
        start_s = time.monotonic()
        loop = asyncio.new_event_loop()
        closing = contextlib.ExitStack()
        state: Any = _NO_STATE
        if context.load is not None:
            try:
                function, args, kwargs = cloudpickle.loads(context.load)
                state = function(*args, **kwargs)
                if inspect.isawaitable(state):
                    state = loop.run_until_complete(_awaited(state))
                if callable(getattr(state, "close", None)):
                    closing.callback(_close, state, loop)
                elif isinstance(state, contextlib.AbstractContextManager):
                    state = closing.enter_context(cast("contextlib.AbstractContextManager[Any]", state))
            except Exception as error:
                loop.close()
                raise LoadError(f"The load function of {context.name} failed: {_last_line(error)}") from error
        concurrency = int(context.options.get("concurrency", CONCURRENCY_DEFAULT))
        load_s = time.monotonic() - start_s
        return PythonModel(
            state, concurrency=concurrency, loop=loop, closing=closing, load_s=load_s, speed=device.speed
        )

    def preview(
        self,
        context: Context,  # noqa: ARG002
        operation: Operation,  # noqa: ARG002
        payloads: Sequence[Any],
    ) -> list[dict[str, Any]]:
        """The payload that the function would get, as text, and no tokens."""
        return [{"prompt": repr(payload), "prompt_tokens": 0, "token_ids": []} for payload in payloads]


class _Function:
    """A user's function bound to the state, and what its calls become."""

    def __init__(self, operation: Operation, state: Any) -> None:
        if operation.kind != "map" or operation.function is None:
            raise TypeError(f"a Python context runs functions (kind `map`), not `{operation.kind}`")
        function: Callable[..., Any] = cloudpickle.loads(operation.function)
        inner = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
        self.is_async = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
        self.batched = operation.batched
        self.batch_max = max(1, operation.batch_max) if operation.batched else 1
        self._function = function
        self._leading = () if state is _NO_STATE else (state,)

    def call(self, row: Row) -> Outcome:
        """One row, one call."""
        try:
            return Outcome(row.ticket, self._function(*self._leading, row.payload))
        except (Exception, SystemExit) as error:
            return _failed(row, error)

    async def acall(self, row: Row) -> list[Outcome]:
        """One row, one awaited call."""
        try:
            return [Outcome(row.ticket, await self._function(*self._leading, row.payload))]
        except (Exception, SystemExit) as error:
            return [_failed(row, error)]

    def call_batch(self, rows: list[Row]) -> list[Outcome]:
        """Several rows in one call; after an error those without a result again, one by one."""
        results: list[Any] = []
        try:
            for result in self._function(*self._leading, [row.payload for row in rows]):
                results.append(result)  # noqa: PERF402  (what was yielded before an error must stay)
            return _paired(rows, results)
        except (Exception, SystemExit) as error:
            done = _kept(rows, results)
            rest = rows[len(done) :]
            if len(rest) == 1 and not done:
                return [_failed(rest[0], error)]
            return done + [outcome for row in rest for outcome in self.call_batch([row])]

    async def acall_batch(self, rows: list[Row]) -> list[Outcome]:
        """As `call_batch`, for coroutines and async generators."""
        results: list[Any] = []
        try:
            answer: Any = self._function(*self._leading, [row.payload for row in rows])
            if inspect.isasyncgen(answer):
                async for result in cast("AsyncGenerator[Any]", answer):
                    results.append(result)  # noqa: PERF401  (as in `call_batch`)
            else:
                results.extend(await answer)
            return _paired(rows, results)
        except (Exception, SystemExit) as error:
            done = _kept(rows, results)
            rest = rows[len(done) :]
            if len(rest) == 1 and not done:
                return [_failed(rest[0], error)]
            return done + [outcome for row in rest for outcome in await self.acall_batch([row])]


def _paired(rows: list[Row], results: list[Any]) -> list[Outcome]:
    if len(results) != len(rows):
        text = f"The function returned {len(results)} results for {len(rows)} rows."
        return [Outcome(row.ticket, error_kind="function_error", error=text) for row in rows]
    return [Outcome(row.ticket, result) for row, result in zip(rows, results, strict=True)]


def _kept(rows: list[Row], results: list[Any]) -> list[Outcome]:
    """What a generator had yielded before it raised."""
    return [Outcome(row.ticket, result) for row, result in zip(rows, results, strict=False)]


def _failed(row: Row, error: BaseException) -> Outcome:
    return Outcome(row.ticket, error_kind="function_error", error=_last_line(error))


def _last_line(error: BaseException) -> str:
    """`ValueError: text (file.py, line 3, in name: the source line)`."""
    frames = traceback.extract_tb(error.__traceback__)
    text = f"{type(error).__name__}: {error}"
    if not frames:
        return text
    last = frames[-1]
    source = f": {last.line}" if last.line else ""
    return f"{text} ({last.filename}, line {last.lineno}, in {last.name}{source})"


def _close(state: Any, loop: asyncio.AbstractEventLoop) -> None:
    result = state.close()
    if inspect.isawaitable(result):
        loop.run_until_complete(_awaited(result))


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
