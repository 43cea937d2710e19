"""IndexSet against the obvious model of it: a Python set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilotlight.core.ranges import IndexSet, Span, span_count

spans = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda t: (t[0], t[0] + t[1]))
changes = st.lists(st.tuples(st.sampled_from(["add", "remove", "take", "take last"]), spans), max_size=30)


def members(rows: IndexSet) -> set[int]:
    return set(rows.indices())


@given(changes)
def test_behaves_as_a_set(steps: list[tuple[str, Span]]) -> None:
    rows, model = IndexSet(), set[int]()
    for what, (start, stop) in steps:
        these = set(range(start, stop))
        if what == "add":
            assert rows.add(start, stop) == len(these - model)
            model |= these
        elif what == "remove":
            assert rows.remove(start, stop) == len(these & model)
            model -= these
        else:
            last = what == "take last"
            count = stop - start
            expected = sorted(model)[-count:] if last and count else sorted(model)[:count]
            taken = rows.take(count, last=last)
            assert [i for low, high in taken for i in range(low, high)] == expected
            model -= set(expected)
        assert members(rows) == model
        assert len(rows) == len(model) == span_count(rows.spans())
        flat = [edge for span in rows for edge in span]
        assert flat == sorted(set(flat)), "intervals touch or overlap"


@given(st.lists(spans, max_size=10), spans)
def test_within_and_missing_share_out_a_span(held: list[Span], span: Span) -> None:
    rows = IndexSet(held)
    start, stop = span
    inside = {i for low, high in rows.within(start, stop) for i in range(low, high)}
    outside = {i for low, high in rows.missing(start, stop) for i in range(low, high)}
    assert inside | outside == set(range(start, stop))
    assert inside == members(rows) & set(range(start, stop))
    assert rows.covers(start, stop) == (not outside)
    assert all((i in rows) == (i in inside) for i in range(start, stop))
