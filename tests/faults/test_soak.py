"""Two minutes of the soak, for every change; `make soak` runs it for longer, with a seed of its own."""

from __future__ import annotations

import os

import pytest

from tests.faults.soak import Pace, soak


@pytest.mark.soak
@pytest.mark.model
def test_a_pool_survives_random_kills_and_gives_exact_answers() -> None:
    soak(int(os.environ.get("SOAK_SEED", "1")), Pace(minutes=1.2))
