"""A pool from Python: what one client does wrong, or leaves early, costs nobody else anything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import pytest

import pilotlight as pl
from pilotlight.client.pool import Pool
from pilotlight.core.errors import PilotlightError
from pilotlight.wire import Context, JobRequest, Operation, StreamInput, StreamOutput


@pytest.fixture
def pool() -> Iterator[Pool]:
    with pl.Pool(workers=1) as made:
        yield made


def double(number: int) -> int:
    return 2 * number


def test_a_job_that_is_cancelled_while_rows_still_come_leaves_the_pool_alive(pool: Pool) -> None:
    for _ in range(10):
        job = pool.map(double, itertools.count())
        assert next(iter(job)).value == 0
        job.cancel()
    assert [result.value for result in pool.map(double, range(5))] == [0, 2, 4, 6, 8]


def test_a_request_that_makes_no_sense_is_refused_and_the_pool_lives(pool: Pool) -> None:
    job = pool.generate(pl.LLM("/" + "x" * 5000), ["a"])
    with pytest.raises(PilotlightError):
        job.wait()
    assert [result.value for result in pool.map(double, range(3))] == [0, 2, 4]


def test_a_weight_of_nothing_does_not_travel() -> None:
    request = JobRequest(
        context=Context(runtime="echo", name="e", identity="e"),
        operation=Operation(kind="echo"),
        input=StreamInput(),
        output=StreamOutput(),
        weight=0.0,
    )
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=JobRequest)
