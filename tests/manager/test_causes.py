"""Which step led to what: an answer is given once, and what is never answered does not pile up."""

from __future__ import annotations

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.transitions import Level
from pilotlight.manager.causes import KEPT_MAX, Causes


def wants(version: int, *variants: str) -> do.SendWants:
    return do.SendWants("w", version, tuple(("cpu", variant, Level.LIVE) for variant in variants))


def test_a_stop_is_answered_once() -> None:
    causes = Causes()
    causes.learn(1, [wants(1, "a", "b")])
    causes.learn(2, [wants(2, "b")])
    assert causes.of(ev.ReplicaStopped("w", "cpu", "a")) == 2
    assert causes.of(ev.ReplicaStopped("w", "cpu", "a")) is None


def test_what_is_wanted_again_is_unwanted_no_more() -> None:
    causes = Causes()
    for n, variants in enumerate((["a"], ["b"], ["a"]), start=1):
        causes.learn(n, [wants(n, *variants)])
    assert causes.of(ev.ReplicaStopped("w", "cpu", "a")) is None
    assert causes.of(ev.ReplicaStopped("w", "cpu", "b")) == 3


def test_a_copy_that_is_gone_answers_the_wish_for_none() -> None:
    causes = Causes()
    causes.learn(1, [do.SendWants("w", 1, (("", "a", Level.PARKED),))])
    causes.learn(2, [do.SendWants("w", 2, ())])
    gone = ev.CopyReported("w", ev.CopyFact("a", Level.PARKED, 0, 0.0))
    assert [causes.of(gone), causes.of(gone)] == [2, None]


def test_what_nobody_answers_is_forgotten() -> None:
    causes = Causes()
    for n in range(3 * KEPT_MAX):
        causes.learn(n, [wants(n, f"v{n}"), do.RevokeRows("w", f"lease-{n}", None)])
    assert {len(causes._unwanted["w"]), len(causes._revokes["w"])} == {KEPT_MAX}
    assert causes.of(ev.ReplicaStopped("w", "cpu", f"v{3 * KEPT_MAX - 2}")) == 3 * KEPT_MAX - 1
