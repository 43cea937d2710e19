"""Tokens are good for one role until they expire; tickets for one worker's name."""

from __future__ import annotations

import pytest

from pilotlight.gate import tokens
from pilotlight.gate.handshake import Admitted, Denied, Knock, judge
from pilotlight.gate.tokens import Role
from pilotlight.wire import VERSION

KEY, OTHER = bytes(range(32)), bytes(32)
NOW_S = 1_000_000.0


def kind(knock: Knock, *, now_s: float = NOW_S, is_taken: bool = False) -> str:
    answer = judge(knock, KEY, now_s, is_taken=is_taken)
    return answer.kind if isinstance(answer, Denied) else "admitted"


@pytest.mark.parametrize("role", ["worker", "client"])
def test_a_token_is_good_until_it_expires(role: Role) -> None:
    knock = Knock(role=role, name="w", token=tokens.token(KEY, role, NOW_S))
    assert kind(knock, now_s=NOW_S - 1) == "admitted"
    assert kind(knock, now_s=NOW_S) == "expired"


@pytest.mark.parametrize(
    "shown",
    [
        "",
        ".",
        "x",
        "²." + "0" * 64,
        tokens.token(OTHER, "worker", NOW_S + 9),
        tokens.token(KEY, "client", NOW_S + 9),
        tokens.token(KEY, "worker", NOW_S - 9).replace(str(int(NOW_S - 9)), str(int(NOW_S + 9))),
        tokens.ticket(KEY, "w"),
        "é" * 40,
    ],
)
def test_no_other_token_is_good(shown: str) -> None:
    assert kind(Knock(role="worker", name="w", token=shown)) == "unknown"


def test_a_ticket_outlives_every_token_but_is_good_for_one_name() -> None:
    old = tokens.token(KEY, "worker", NOW_S)
    admitted = judge(Knock(role="worker", name="w", token=old), KEY, NOW_S - 1, is_taken=False)
    assert isinstance(admitted, Admitted)
    later_s = NOW_S + 1e9
    assert kind(Knock(role="worker", name="w", token=old, ticket=admitted.ticket), now_s=later_s) == "admitted"
    assert kind(Knock(role="worker", name="v", token=old, ticket=admitted.ticket), now_s=later_s) == "expired"
    assert kind(Knock(role="client", name="w", token=old, ticket=admitted.ticket), now_s=later_s) == "unknown"


def test_a_name_that_is_taken_is_given_to_its_owner_only() -> None:
    token, ticket = tokens.token(KEY, "worker", NOW_S + 9), tokens.ticket(KEY, "w")
    assert kind(Knock(role="worker", name="w", token=token), is_taken=True) == "name_taken"
    assert kind(Knock(role="worker", name="w", token=token, ticket=ticket), is_taken=True) == "admitted"


@pytest.mark.parametrize("name", ["", "a/b", "..\n", "x" * 65])
def test_a_name_that_no_file_should_have_is_refused(name: str) -> None:
    assert kind(Knock(role="worker", name=name, token=tokens.token(KEY, "worker", NOW_S + 9))) == "name"


def test_another_wire_version_hears_both_releases_and_the_remedy_once_it_is_known() -> None:
    knock = Knock(
        role="worker", name="w", version=VERSION + 1, release="9.9", token=tokens.token(KEY, "worker", NOW_S + 9)
    )
    answer = judge(knock, KEY, NOW_S, is_taken=False)
    assert isinstance(answer, Denied)
    assert answer.kind == "version"
    assert "9.9" in answer.sentence
    assert "pip install pilotlight==" in answer.sentence
    assert kind(Knock(role="worker", name="w", version=VERSION + 1, token="x")) == "unknown"


def test_derived_keys_differ_from_each_other_and_from_the_pools() -> None:
    assert len({KEY, tokens.derived(KEY, "files"), tokens.derived(KEY, "other")}) == 3
