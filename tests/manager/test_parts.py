"""A part of a chunk of results: its rows, its errors, and sums that are exact."""

from __future__ import annotations

from pilotlight.manager.jobs import only
from pilotlight.wire import ResultChunk


def test_a_part_of_a_chunk_has_its_own_sums() -> None:
    chunk = ResultChunk(
        [(3, 5), (9, 10)],
        b"three\nfour\nnine",
        {"bad_row": [4, 9]},
        {"prompt_tokens": 17.0, "busy_s": 3.0},
        {"prompt_tokens": [5.0, 10.0, 2.0]},
    )
    part = only(chunk, [(3, 4), (9, 10)])
    assert part.blob == b"three\nnine"
    assert part.errors == {"bad_row": [9]}
    assert part.counters == {"prompt_tokens": 7.0, "busy_s": 2.0}
    assert only(part, [(9, 10)]).counters == {"prompt_tokens": 2.0, "busy_s": 1.0}
