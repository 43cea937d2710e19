"""EchoRuntime: the kit, and the fields by which a row steers it."""

from __future__ import annotations

import os
import signal

import pytest

from pilotlight.core.errors import LoadError
from pilotlight.runtimes.echo import EchoRuntime
from pilotlight.testing.runtimes import CPU, RuntimeCase, check, check_sleep, run_rows
from pilotlight.wire import Context, Operation

ECHO = Operation(kind="echo")


def context(**options: object) -> Context:
    return Context(runtime="echo", name="echo", identity="1", options=dict(options))


def test_conforms() -> None:
    jobs = [(ECHO, [{"a": 1}, {"b": [2]}, 3]), (Operation(kind="echo", function_name="other"), ["x", {"sleep_s": 0}])]
    check(RuntimeCase(EchoRuntime, context(), jobs, bad=[({"fail": "no"}, "echo_error")]))


def test_fail_has_the_rows_text() -> None:
    (outcome,) = run_rows(EchoRuntime().load(context(), CPU), ECHO, [{"fail": "because"}])
    assert (outcome.error_kind, outcome.error) == ("echo_error", "because")


def test_options_shape_the_model() -> None:
    model = EchoRuntime().load(context(wanted=7, memory_bytes=99), CPU)
    assert (model.wanted, model.memory_bytes) == (7, 99)
    with pytest.raises(LoadError, match="broken on purpose"):
        EchoRuntime().load(context(fail_load="broken on purpose"), CPU)


def test_a_poison_row_kills_its_process() -> None:
    child = os.fork()
    if child == 0:
        run_rows(EchoRuntime().load(context(), CPU), ECHO, [{"die": True}])
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_many_rows_take_several_steps() -> None:
    rows = list(range(10_000))
    assert [outcome.result for outcome in run_rows(EchoRuntime().load(context(), CPU), ECHO, rows)] == rows


def test_it_pretends_to_sleep() -> None:
    jobs = [(ECHO, [1, 2]), (Operation(kind="echo", function_name="other"), [3])]
    check_sleep(RuntimeCase(EchoRuntime, context(can_sleep=True, memory_bytes=99), jobs))
    model = EchoRuntime().load(context(can_sleep=True, memory_bytes=99), CPU)
    model.sleep()
    assert model.memory_bytes == 0
    model.wake()
    assert (model.can_sleep, model.memory_bytes) == (True, 99)
    assert not EchoRuntime().load(context(), CPU).can_sleep
