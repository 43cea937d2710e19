"""How many workers there are: replacements, adopted ones, strangers."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import pytest

from pilotlight.core.errors import PilotlightError
from pilotlight.manager import keeper as keeper_module
from pilotlight.manager.keeper import RETURN_S_MAX, Keeper

HERE = platform.node()


class Provider:
    """Pilots that end when a test says so."""

    def __init__(self, alive: set[str] | None = None) -> None:
        self.names: dict[str, str] = {}
        self.alive = alive or set()
        self.ended: dict[str, str] = {}
        self.cancelled: list[str] = []
        self.fails = False

    def submit(self, name: str) -> str:
        if self.fails:
            raise PilotlightError("no room")
        pilot_id = f"p-{name}"
        self.names[pilot_id] = name
        return pilot_id

    def adopt(self, pilot_id: str) -> bool:
        return pilot_id in self.alive

    def poll(self) -> dict[str, str]:
        ended, self.ended = self.ended, {}
        return ended

    def cancel(self, pilot_id: str) -> None:
        self.cancelled.append(pilot_id)

    def close(self) -> None:
        self.alive.clear()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The keeper's clock, which stands."""
    made = Clock()
    monkeypatch.setattr(keeper_module, "time", made)
    return made


def quiet(_level: str, _text: str, _subject: str) -> None:
    """Nobody listens."""


def test_names_are_used_once_in_a_pools_life(clock: Clock) -> None:
    provider, kept = Provider(), list[Mapping[str, str]]()
    first = Keeper(provider, 2, quiet, keep=kept.append)
    first.look()
    assert list(provider.names.values()) == ["worker-1", "worker-2"]
    clock.now += 60
    for name in ("worker-1", "worker-2"):
        first.joined(name, HERE)
    provider.ended = {"p-worker-1": "exit status 1"}
    assert first.look() == {"worker-1": "exit status 1"}
    assert list(provider.names.values()) == ["worker-1", "worker-2", "worker-3"]
    later = Keeper(provider, 1, quiet, epoch=3)
    later.look()
    assert provider.names["p-worker-3-1"] == "worker-3-1"


def test_what_runs_is_kept_before_and_after_each_submission(clock: Clock) -> None:
    kept: list[Mapping[str, str]] = []
    provider = Provider()
    keeper = Keeper(provider, 1, quiet, keep=kept.append)
    keeper.look()
    assert kept == [{"worker-1": ""}, {"worker-1": "p-worker-1"}]
    clock.now += 60
    provider.ended = {"p-worker-1": "killed"}
    provider.fails = True
    keeper.look()
    assert kept[-1] == {}


def test_adopted_pilots_count(clock: Clock) -> None:
    provider = Provider(alive={"a", "b"})
    keeper = Keeper(provider, 3, quiet, epoch=2)
    assert keeper.adopt({"worker-1": "a", "worker-2": "b", "worker-3": "gone"}) == ["worker-1", "worker-2"]
    keeper.look()
    assert list(provider.names.values()) == ["worker-2-1"]
    clock.now += 60
    keeper.joined("worker-1", HERE)
    provider.ended = {"a": "its process is gone"}
    assert keeper.look() == {"worker-1": "its process is gone"}
    assert list(provider.names.values()) == ["worker-2-1", "worker-2-2"]


def test_pilots_that_are_too_many_are_ended(clock: Clock) -> None:
    provider = Provider(alive={"a", "b"})
    keeper = Keeper(provider, 1, quiet, epoch=2)
    assert keeper.adopt({"worker-1": "a", "worker-2": "b"}) == ["worker-1"]
    assert provider.cancelled == ["b"]
    clock.now += 60
    keeper.joined("worker-1", HERE)
    provider.ended = {"b": "its process is gone"}
    keeper.look()
    assert not provider.names


def test_an_adopted_pilot_whose_worker_does_not_come_back_is_ended(clock: Clock) -> None:
    provider = Provider(alive={"a"})
    keeper = Keeper(provider, 1, quiet, epoch=2)
    keeper.adopt({"worker-1": "a"})
    clock.now += keeper_module.JOIN_S_MAX + 1
    keeper.look()
    assert provider.cancelled == ["a"]


def test_a_worker_of_no_known_pilot_counts_while_it_is_here_and_a_while_longer(clock: Clock) -> None:
    provider = Provider()
    keeper = Keeper(provider, 1, quiet, epoch=2)
    keeper.joined("worker-7", HERE)
    clock.now += 1000
    keeper.look()
    assert not provider.names
    keeper.left("worker-7")
    keeper.look()
    assert not provider.names  # it may come back
    keeper.joined("worker-7", HERE)
    clock.now += RETURN_S_MAX + 1
    keeper.look()
    assert not provider.names
    keeper.left("worker-7")
    clock.now += RETURN_S_MAX + 1
    keeper.look()
    assert list(provider.names.values()) == ["worker-2-1"]


def test_a_pilot_that_was_about_to_be_submitted_may_have_been(clock: Clock) -> None:
    provider = Provider()
    keeper = Keeper(provider, 1, quiet, epoch=2)
    keeper.adopt({"worker-1": ""})
    keeper.look()
    assert not provider.names
    clock.now += RETURN_S_MAX + 1
    keeper.look()
    assert list(provider.names.values()) == ["worker-2-1"]


def test_strangers_are_known_to_the_manager_after_next(clock: Clock) -> None:
    kept: list[Mapping[str, str]] = []
    keeper = Keeper(Provider(), 1, quiet, epoch=2, keep=kept.append)
    keeper.joined("worker-7", HERE)
    assert kept[-1] == {"worker-7": ""}
    provider = Provider()
    later = Keeper(provider, 1, quiet, epoch=3, keep=kept.append)
    later.adopt(kept[-1])
    later.look()
    assert not provider.names
    clock.now += RETURN_S_MAX + 1
    later.look()
    assert list(kept[-1]) == ["worker-3-1"]


@pytest.mark.parametrize(("name", "host"), [("gpu7-3f2a1b", "gpu7"), ("gpu7-3f2a1b", HERE), ("worker-1", "gpu7")])
def test_workers_that_dial_in_do_not_count(clock: Clock, name: str, host: str) -> None:
    kept: list[Mapping[str, str]] = []
    provider = Provider()
    keeper = Keeper(provider, 1, quiet, epoch=2, keep=kept.append)
    keeper.joined(name, host)
    keeper.look()
    assert list(provider.names.values()) == ["worker-2-1"]
    assert name not in kept[-1]
    keeper.left(name)
    clock.now += RETURN_S_MAX + 1
    keeper.look()
    assert list(provider.names.values()) == ["worker-2-1"]
