"""The fixture of all fault tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.harness import Playground, playground


@pytest.fixture
def ground() -> Iterator[Playground]:
    """A folder of its own for real commands."""
    with playground() as made:
        yield made
