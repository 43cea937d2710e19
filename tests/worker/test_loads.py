"""Where the time to live went: what a load waited for counts, and only that."""

from __future__ import annotations

import pytest

from pilotlight.core.transitions import Level
from pilotlight.worker.loads import Load, Loads

PLACES = [("cpu", "v"), ("gpu", "v")]


def load(loads: Loads, replica_id: str) -> Load:
    found = loads.of(replica_id)
    assert found is not None
    return found


@pytest.fixture
def loads() -> Loads:
    """Wished for at 10 s; staged from 10 to 14, parked from 14 to 15."""
    made = Loads()
    made.wish(PLACES, 10.0)
    made.copying("v", Level.STAGED, 10.0)
    made.copied("v", Level.STAGED, 14.0)
    made.copying("v", Level.PARKED, 14.0)
    made.copied("v", Level.PARKED, 15.0)
    return made


def test_a_load_begins_with_the_copies_that_it_waited_for(loads: Loads) -> None:
    for number, (device, variant) in enumerate(PLACES):
        loads.start(f"w.{number}", device, variant, 15.0)
        loads.origin(f"w.{number}", "parked")
        loads.live(f"w.{number}", 18.0, {"import": 1.0, "start": 0.5}, {"read": 1.5})
        made = load(loads, f"w.{number}")
        assert made.stages == {"stage": 4.0, "park": 1.0, "import": 1.0, "start": 0.5, "read": 1.5}
        assert (made.load_s, made.origin) == (8.0, "parked")


def test_a_successor_waited_for_none(loads: Loads) -> None:
    loads.start("w.1", "cpu", "v", 15.0)
    loads.live("w.1", 18.0)
    loads.end("w.1")
    loads.start("w.2", "cpu", "v", 30.0)
    loads.live("w.2", 31.0, {"start": 0.5})
    assert (load(loads, "w.2").stages, load(loads, "w.2").load_s) == ({"start": 0.5}, 1.0)


def test_a_copy_that_was_there_before_the_wish_cost_nothing(loads: Loads) -> None:
    loads.wish([], 20.0)
    loads.wish(PLACES, 25.0)
    loads.start("w.1", "cpu", "v", 25.0)
    loads.live("w.1", 26.0)
    assert (load(loads, "w.1").stages, load(loads, "w.1").load_s) == ({}, 1.0)


def test_only_the_part_of_a_copy_after_the_wish_counts() -> None:
    loads = Loads()
    loads.copying("v", Level.STAGED, 0.0)
    loads.wish(PLACES, 6.0)
    loads.copied("v", Level.STAGED, 8.0)
    loads.start("w.1", "cpu", "v", 8.0)
    loads.live("w.1", 9.0)
    assert (load(loads, "w.1").stages, load(loads, "w.1").load_s) == ({"stage": 2.0}, 3.0)


def test_waking_is_a_load_of_its_own(loads: Loads) -> None:
    loads.start("w.1", "cpu", "v", 15.0)
    loads.live("w.1", 18.0, {"read": 1.0})
    loads.wake("w.1", 40.0)
    assert load(loads, "w.1").load_s == 0.0
    loads.live("w.1", 40.5, {"wake": 0.4})
    assert load(loads, "w.1") == Load(("cpu", "v"), 40.0, "asleep", 0.5, {"wake": 0.4})
