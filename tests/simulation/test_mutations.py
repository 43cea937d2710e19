"""The hunt bites: each mistake, planted in the core's source, is found within 200 seeds, and most within a few."""

from __future__ import annotations

import pytest

from pilotlight.sim.hunt import failure
from pilotlight.sim.plan import plan
from tests.simulation.planted import MISTAKES, Planted, planted

SEEDS = 200


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_planted_mistake_is_found(mistake: Planted) -> None:
    with planted(mistake):
        found = next((seed for seed in range(SEEDS) if failure(plan(seed))), None)
    assert found is not None, f"not found in {SEEDS} seeds: {mistake.what}"
    assert failure(plan(found)) is None, "the core fails without it, too"
