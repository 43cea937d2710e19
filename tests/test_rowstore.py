"""RowStore gives back the very bytes, in any cut, and holds only what was not dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilotlight.rowstore import RowStore
from pilotlight.wire import Chunk


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_cut_gives_the_rows(sizes: list[int], choice: object) -> None:
    import random

    assert isinstance(choice, random.Random)
    store, start = RowStore(), 0
    chunks: list[Chunk] = []
    for size in sizes:
        lines = [f"row {index}".encode() for index in range(start, start + size)]
        chunks.append(Chunk(start, size, start + 1, "f", b"\n".join(lines)))
        start += size
    choice.shuffle(chunks)
    for chunk in chunks:
        store.add(chunk)
    left = set(range(start))
    while left:
        low = choice.choice(sorted(left))
        high = low + 1
        while high in left and choice.random() < 0.7:
            high += 1
        cut = store.get([(low, high)])
        assert [line for chunk in cut for line in chunk.blob.split(b"\n")] == [
            f"row {i}".encode() for i in range(low, high)
        ]
        assert [chunk.line for chunk in cut] == [chunk.start + 1 for chunk in cut]
        store.drop([(low, high)])
        left -= set(range(low, high))
    assert len(store) == 0
    assert store.bytes_held == 0


def test_dropping_what_is_not_there_is_harmless() -> None:
    store = RowStore()
    store.add(Chunk(10, 2, 1, "f", b"a\nb"))
    store.drop([(0, 5), (20, 30)])
    assert store.get([(10, 12)])[0].blob == b"a\nb"
