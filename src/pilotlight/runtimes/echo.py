"""A runtime that gives each row back: for benchmarks of everything around a model, and for tests of faults.

The result of a row is its payload. A payload that is a dict may steer: `sleep_s` (the row takes that long), `fail`
(a text: the row becomes an error of kind `echo_error`), `die` (true: the replica kills itself, as a row that crashes
a driver would). Context options: `wanted`, `load_s`, `fail_load` (a text), `memory_bytes`, `can_sleep` (it then holds
no memory while it sleeps), `wake_s`.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from pilotlight.core.errors import LoadError
from pilotlight.ports import Outcome, Row
from pilotlight.wire import Context, DeviceSpec, Operation

WANTED_DEFAULT = 4096
STEP_S = 0.5
PACE_START = 64
"""Rows wanted before the first step has shown how long rows take."""
ROWS_PER_STEP = 4096
_STEERING = frozenset({"sleep_s", "fail", "die"})


class EchoModel:
    """Answers in the order of arrival; see `ports.Model`."""

    def __init__(self, options: dict[str, Any], load_s: float, speed: float = 1.0) -> None:
        self._step_s = STEP_S * speed
        self._waiting: deque[Row] = deque()
        self._wanted = int(options.get("wanted", WANTED_DEFAULT))
        self._pace = min(self._wanted, PACE_START)
        self._stepped = PACE_START
        self._memory_bytes = int(options.get("memory_bytes", 0))
        self._can_sleep = bool(options.get("can_sleep", False))
        self._wake_s = float(options.get("wake_s", 0.0))
        self._asleep = False
        self._stages = {"read": load_s, "to_device": 0.0, "warm": 0.0}

    @property
    def wanted(self) -> int:
        """Rows it would like to hold: about two steps' worth, so that slow rows are not hoarded."""
        return min(self._wanted, self._pace)

    @property
    def memory_bytes(self) -> int:
        """What the option `memory_bytes` pretends; nothing while it sleeps."""
        return 0 if self._asleep else self._memory_bytes

    @property
    def attachment_bytes(self) -> int:
        """None here."""
        return 0

    @property
    def can_sleep(self) -> bool:
        """What the option `can_sleep` says."""
        return self._can_sleep

    def sleep(self) -> None:
        """Pretend to hold nothing."""
        self._asleep = True

    def wake(self) -> None:
        """Take `wake_s` seconds, then be as before."""
        time.sleep(self._wake_s)
        self._asleep = False

    def forget(self, operation: Operation) -> None:
        """Nothing is kept for an operation."""

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of the pretended load, all under `read`."""
        return self._stages

    @property
    def pending(self) -> int:
        """Rows not answered yet."""
        return len(self._waiting)

    @property
    def started(self) -> int:
        """As many as the last step answered, if so many are left."""
        return min(len(self._waiting), self._stepped)

    def add(self, operation: Operation, rows: Sequence[Row]) -> None:  # noqa: ARG002
        """Any operation kind is echoed."""
        self._waiting.extend(rows)

    def step(self) -> list[Outcome]:
        """Answer up to 4,096 rows, or as many as half a second of `sleep_s` allows."""
        waiting = self._waiting
        done: list[Outcome] = []
        stop_s: float | None = None
        for _ in range(min(len(waiting), ROWS_PER_STEP)):
            row = waiting.popleft()
            payload = row.payload
            if type(payload) is not dict or _STEERING.isdisjoint(row.payload):
                done.append(Outcome(row.ticket, payload))
                continue
            stop_s = stop_s or time.monotonic() + self._step_s
            done.append(_steered(row, cast("dict[str, Any]", payload)))
            if time.monotonic() >= stop_s:
                break
        self._stepped = len(done)
        self._pace = self._wanted if stop_s is None else max(2, 2 * len(done))
        return done

    def close(self) -> None:
        """Nothing is held."""
        self._waiting.clear()


class EchoRuntime:
    """See the module's text and `ports.Runtime`."""

    name = "echo"

    def preload(self) -> None:
        """Nothing to import."""

    def load(self, context: Context, device: DeviceSpec) -> EchoModel:
        """Take `load_s` seconds, then succeed, or fail with the text of `fail_load`."""
        options = context.options
        load_s = float(options.get("load_s", 0.0))
        if load_s > 0:
            time.sleep(load_s)
        if options.get("fail_load"):
            raise LoadError(str(options["fail_load"]))
        return EchoModel(options, load_s, device.speed)

    def preview(
        self,
        context: Context,  # noqa: ARG002
        operation: Operation,  # noqa: ARG002
        payloads: Sequence[Any],
    ) -> list[dict[str, Any]]:
        """The payload's text, and no tokens."""
        return [{"prompt": str(payload), "prompt_tokens": 0, "token_ids": []} for payload in payloads]


def _steered(row: Row, payload: dict[str, Any]) -> Outcome:
    sleep_s = payload.get("sleep_s")
    if isinstance(sleep_s, int | float) and sleep_s > 0:
        time.sleep(sleep_s)
    if payload.get("die") is True:
        os.kill(os.getpid(), signal.SIGKILL)
    if payload.get("fail"):
        return Outcome(row.ticket, error_kind="echo_error", error=str(payload["fail"]))
    return Outcome(row.ticket, payload)
