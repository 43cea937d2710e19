"""A folder for the pool whose gate is tested."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def pool() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)
