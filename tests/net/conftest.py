"""Tests here need namespaces, and say so where there are none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.harness import Playground, playground
from tests.net.lan import missing


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if why := missing():
        pytest.skip(why)


@pytest.fixture
def ground() -> Iterator[Playground]:
    """A folder of its own for real commands."""
    with playground() as made:
        yield made
