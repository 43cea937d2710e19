"""Which prefixes are worth keeping, and when rows are compared."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pilotlight.runtimes.transformers.sharing import LOOK_ROWS, WINDOW_ROWS, Window, worth_keeping

HEAD = list(range(100))


def found(rows: list[list[int]], *, scale: float = 1.0, saved_min: float = 0.0) -> list[list[int]]:
    return worth_keeping(rows, scale=scale, saved_min=saved_min)


def own(row: int) -> list[int]:
    """Twenty ids that only this row has."""
    return [1000 + 20 * row + place for place in range(20)]


def test_what_all_begin_with() -> None:
    assert found([HEAD + own(row) for row in range(8)]) == [HEAD]


def test_too_few_rows_or_tokens_share_nothing() -> None:
    assert found([HEAD + own(row) for row in range(3)]) == []
    assert found([HEAD[:15] + own(row) for row in range(8)]) == []
    assert found([]) == found([HEAD]) == []


def test_rows_equal_to_the_prefix_leave_a_token_to_read() -> None:
    assert found([HEAD] * 5) == [HEAD[:-1]]
    assert found([HEAD, *(HEAD + own(row) for row in range(8))]) == [HEAD[:-1]]
    assert found([HEAD[:50], *(HEAD + own(row) for row in range(8))]) == [HEAD[:49], HEAD]


def test_several_heads_in_one_job() -> None:
    heads = [[kind] * 40 for kind in (7, 8, 9)]
    rows = [heads[row % 3] + own(row) for row in range(30)]
    assert sorted(found(rows)) == heads
    assert min(found([[1] * 20 + row for row in rows]), key=len) == [1] * 20
    assert len(found([[1] * 20 + row for row in rows])) == 4


def test_rows_that_share_nothing_do_not_disturb() -> None:
    rows = [HEAD + own(row) for row in range(8)] + [own(100), own(101), []]
    assert found(rows) == [HEAD]


def test_a_prefix_must_save_what_it_costs() -> None:
    rows = [HEAD + own(row) for row in range(8)]
    assert found(rows, saved_min=700) == [HEAD]
    assert found(rows, saved_min=701) == []
    assert found(rows, saved_min=1500, scale=2.0) == [HEAD]


def test_rows_are_compared_often_at_first() -> None:
    window = Window()
    looks = [at for at in range(4 * LOOK_ROWS) if window.add([own(at)])]
    assert looks[:3] == [3, 7, 11]
    assert max(later - earlier for earlier, later in pairwise(looks)) == LOOK_ROWS
    assert len(window.rows) == WINDOW_ROWS
