"""Parts of sums: of a chunk of results, and of a pool's life."""

from __future__ import annotations

from pilotlight.manager.jobs import only
from pilotlight.manager.ledger import since
from pilotlight.views import Totals
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


def test_what_came_to_a_pools_sums_since_a_job_began() -> None:
    before = Totals(loads={"a": 2, "b": 1}, load_s=3.0, busy_s=5.0, rows_lost=7, workers_lost=1)
    now = Totals(loads={"a": 3, "b": 1, "c": 1}, load_s=4.0, busy_s=9.0, rows_lost=7, workers_lost=2, replicas_lost=1)
    came = since(now, before)
    assert came == Totals(loads={"a": 1, "c": 1}, load_s=1.0, busy_s=4.0, workers_lost=1, replicas_lost=1)
