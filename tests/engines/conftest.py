"""Where the engines' tests have their sockets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose name is short enough for a Unix socket's path."""
    folder = Path(tempfile.mkdtemp(prefix="pl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)
