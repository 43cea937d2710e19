"""Log files that processes append to for as long as a pool lasts: their ends, and how they are kept from growing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

LOG_BYTES_MAX = 8 << 20
KEPT_BYTES = 64 << 10


def shorten(paths: Iterable[Path]) -> None:
    """Cut the beginning off logs that have grown too long. Their writers append, so they go on at the new end."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_size <= LOG_BYTES_MAX:
                continue
            kept = tail(path, KEPT_BYTES)
            with path.open("r+b") as log:
                log.truncate(0)
            with path.open("ab") as log:
                log.write(b"(what was here is gone)\n" + kept)


def tail(path: Path, size: int) -> bytes:
    """The last bytes of a file. Raises OSError."""
    with path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - size))
        return log.read()
