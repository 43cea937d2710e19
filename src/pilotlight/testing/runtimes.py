"""The conformance kit of `ports.Runtime`: whoever writes a runtime describes it in a `RuntimeCase` and runs `check`.

Each check raises AssertionError with a sentence. Those about `preload` and fork run in a process of their own, since
they are about what a process has done before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

from pilotlight.ports import Model, Outcome, Row, Runtime
from pilotlight.wire import Context, DeviceSpec, Operation

CPU = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1 << 30, threads=1)
STEPS_MAX = 10_000
CHILD_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class RuntimeCase:
    """A runtime with something to do. factory: makes the runtime, and can be pickled by cloudpickle.

    jobs: operations with payloads that have results, the same in any batch; two or more. bad: payloads of the first
    operation that become an error of the named kind.
    """

    factory: Callable[[], Runtime]
    context: Context
    jobs: Sequence[tuple[Operation, Sequence[Any]]]
    bad: Sequence[tuple[Any, str]] = ()
    device: DeviceSpec = CPU
    same: Callable[[Any, Any], bool] = field(default=lambda one, other: one == other)


def check(case: RuntimeCase) -> None:
    """All checks below."""
    for one in (
        check_answers,
        check_bad_rows,
        check_interleaved,
        check_batches_do_not_matter,
        check_small_steps,
        check_close_with_rows,
        check_forget,
        check_sleep,
        check_preview,
        check_preload_is_quiet,
        check_fork_after_preload,
    ):
        one(case)


def run_rows(model: Model, operation: Operation, payloads: Sequence[Any], *, first_ticket: int = 0) -> list[Outcome]:
    """Add all payloads at once and step until all are answered; outcomes in the order of the payloads."""
    rows = [Row(first_ticket + index, index, payload) for index, payload in enumerate(payloads)]
    model.add(operation, rows)
    return _ordered(_drain(model), rows)


def check_answers(case: RuntimeCase) -> None:
    """Every row gets exactly one outcome, and the figures of a live model make sense."""
    model = case.factory().load(case.context, case.device)
    assert model.pending == 0, "a fresh model has rows"
    assert model.wanted > 0, "a model wants no rows"
    assert 0 <= model.attachment_bytes <= model.memory_bytes, "attachments are part of the memory"
    assert set(model.stages) >= {"read", "to_device", "warm"}, f"stages are {model.stages}"
    assert model.step() == [], "a model without rows has outcomes"
    for operation, payloads in case.jobs:
        for outcome in run_rows(model, operation, payloads):
            assert outcome.error_kind is None, f"a good row failed: {outcome.error}"
        assert model.wanted > 0, "a model wants no rows any more"
    model.close()


def check_bad_rows(case: RuntimeCase) -> None:
    """A bad row is answered with its kind, and its neighbours are as they would be without it."""
    operation, payloads = case.jobs[0]
    model = case.factory().load(case.context, case.device)
    alone = run_rows(model, operation, payloads)
    mixed: list[Any] = [item for pair in zip(case.bad, payloads, strict=False) for item in (pair[0][0], pair[1])]
    mixed += [payload for payload, _ in case.bad[len(payloads) :]]
    outcomes = run_rows(model, operation, mixed)
    model.close()
    for place, (payload, kind) in enumerate(case.bad):
        at = 2 * place if place < len(payloads) else len(payloads) + place
        outcome = outcomes[at]
        assert outcome.error_kind == kind, f"{payload!r} became {outcome.error_kind}, not {kind}"
        assert outcome.error, f"{payload!r} has no error text"
        if place < len(payloads):
            good = outcomes[at + 1]
            assert case.same(good.result, alone[place].result), f"{payload!r} changed its neighbour's result"


def check_interleaved(case: RuntimeCase) -> None:
    """Operations may alternate row by row."""
    model = case.factory().load(case.context, case.device)
    alone = [run_rows(model, operation, payloads) for operation, payloads in case.jobs]
    expected: dict[int, Any] = {}
    rows: list[Row] = []
    for place in range(max(len(payloads) for _, payloads in case.jobs)):
        for number, (operation, payloads) in enumerate(case.jobs):
            if place < len(payloads):
                row = Row(len(rows), place, payloads[place])
                rows.append(row)
                expected[row.ticket] = alone[number][place].result
                model.add(operation, [row])
    for outcome in _ordered(_drain(model), rows):
        assert case.same(outcome.result, expected[outcome.ticket]), "a result changed when operations alternated"
    model.close()


def check_batches_do_not_matter(case: RuntimeCase) -> None:
    """A row's result is the same alone and among others."""
    model = case.factory().load(case.context, case.device)
    for operation, payloads in case.jobs:
        together = run_rows(model, operation, payloads)
        for index, payload in enumerate(payloads):
            model.add(operation, [Row(1, index, payload)])
            (alone,) = _drain(model)
            assert case.same(alone.result, together[index].result), f"{payload!r}: {alone.result} alone, else other"
    model.close()


def check_small_steps(case: RuntimeCase) -> None:
    """Rows may be added between steps, and `pending` counts them all the while."""
    model = case.factory().load(case.context, case.device)
    operation, payloads = case.jobs[0]
    done: list[Outcome] = []
    rows = [Row(index, index, payload) for index, payload in enumerate(payloads)]
    for added, row in enumerate(rows, 1):
        model.add(operation, [row])
        done += model.step()
        assert model.pending == added - len(done), f"{model.pending} pending of {added} added and {len(done)} done"
        assert 0 <= model.started <= model.pending, f"{model.started} started of {model.pending} pending"
    _ordered(done + _drain(model), rows)
    model.close()


def check_close_with_rows(case: RuntimeCase) -> None:
    """A model can be closed with rows inside."""
    model = case.factory().load(case.context, case.device)
    operation, payloads = case.jobs[0]
    model.add(operation, [Row(index, index, payload) for index, payload in enumerate(payloads)])
    model.close()


def check_forget(case: RuntimeCase) -> None:
    """A forgotten operation may come back and gives the same results; one that never came may be forgotten."""
    model = case.factory().load(case.context, case.device)
    (first, payloads), (other, others) = case.jobs[0], case.jobs[1]
    model.forget(other)
    before = [outcome.result for outcome in run_rows(model, first, payloads)]
    model.forget(first)
    kept = [outcome.result for outcome in run_rows(model, other, others)]
    again = [outcome.result for outcome in run_rows(model, first, payloads)]
    assert all(map(case.same, before, again)), "a forgotten operation has other results when it comes back"
    model.forget(first)
    rest = [outcome.result for outcome in run_rows(model, other, others)]
    assert all(map(case.same, kept, rest)), "forgetting one operation changed another's results"
    model.close()


def check_sleep(case: RuntimeCase) -> None:
    """Whoever can sleep holds no more memory asleep than awake, and wakes as it was, also twice in a row."""
    model = case.factory().load(case.context, case.device)
    operation, payloads = case.jobs[0]
    expected = [outcome.result for outcome in run_rows(model, operation, payloads)]
    for _ in range(2 if model.can_sleep else 0):
        awake_bytes = model.memory_bytes
        model.sleep()
        assert model.memory_bytes <= awake_bytes, "a sleeping model holds more than one that is awake"
        assert model.attachment_bytes == 0, "attachments stay while the model sleeps"
        model.wake()
        found = [outcome.result for outcome in run_rows(model, operation, payloads)]
        assert all(map(case.same, expected, found)), "a model that slept has other results"
    model.close()


def check_preview(case: RuntimeCase) -> None:
    """Each payload is shown with its tokens, or with why it can't run."""
    operation, payloads = case.jobs[0]
    everything = [*payloads, *(payload for payload, _ in case.bad)]
    shown = case.factory().preview(case.context, operation, everything)
    assert len(shown) == len(everything), f"{len(shown)} previews of {len(everything)} rows"
    for item in shown:
        assert set(item) in ({"prompt", "prompt_tokens", "token_ids"}, {"error_kind", "error"}), f"preview {item}"


def check_preload_is_quiet(case: RuntimeCase) -> None:
    """After `preload` the process has one thread."""
    assert _in_child(_threads_after_preload, case) == 1, "preload started threads, so a fork after it may hang"


def check_fork_after_preload(case: RuntimeCase) -> None:
    """A process that has preloaded can fork children that load and run, one after the other."""
    for outcomes in _in_child(_run_in_forks, case):
        assert outcomes == len(case.jobs[0][1]), f"a forked child answered {outcomes} rows"


def _drain(model: Model) -> list[Outcome]:
    done: list[Outcome] = []
    for _ in range(STEPS_MAX):
        if not model.pending:
            return done
        done += model.step()
    raise AssertionError(f"{model.pending} rows are not answered after {STEPS_MAX} steps")


def _ordered(outcomes: Sequence[Outcome], rows: Sequence[Row]) -> list[Outcome]:
    by_ticket = {outcome.ticket: outcome for outcome in outcomes}
    assert len(by_ticket) == len(outcomes), "a row was answered twice"
    assert set(by_ticket) == {row.ticket for row in rows}, "a row was not answered, or one that was never added"
    return [by_ticket[row.ticket] for row in rows]


def _in_child(function: Callable[[RuntimeCase], Any], case: RuntimeCase) -> Any:
    """Run in a fresh interpreter; what it returns."""
    read, write = os.pipe()
    code = (
        "import sys, cloudpickle\n"
        f"function, case, path = cloudpickle.loads(sys.stdin.buffer.read())\n"
        "sys.path[:] = path\n"
        f"open({write}, 'wb').write(cloudpickle.dumps(function(case)))\n"
    )
    # As in a runtime server: one thread, whatever the libraries would like to start.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=cloudpickle.dumps((function, case, sys.path)),  # pyright: ignore[reportUnknownMemberType]
            pass_fds=(write,),
            env=environment,
            timeout=CHILD_TIMEOUT_S,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(write)
        write = -1
        assert done.returncode == 0, f"the child ended with {done.returncode}: {done.stderr.decode()[-2000:]}"
        with os.fdopen(os.dup(read), "rb") as answer:
            return cloudpickle.loads(answer.read())
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


def _threads_after_preload(case: RuntimeCase) -> int:
    case.factory().preload()
    return len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 1


def _run_in_forks(case: RuntimeCase) -> list[int]:
    runtime = case.factory()
    runtime.preload()
    counts: list[int] = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 255
            try:
                model = runtime.load(case.context, case.device)
                operation, payloads = case.jobs[0]
                code = len(run_rows(model, operation, payloads))
                model.close()
            finally:
                os._exit(code)
        stop_s = time.monotonic() + CHILD_TIMEOUT_S / 3
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > stop_s:
                os.kill(child, 9)
                os.waitpid(child, 0)
                raise AssertionError("a forked child hangs")
            time.sleep(0.01)
        counts.append(os.waitstatus_to_exitcode(status))
    return counts
