"""How many descriptors a process may have open: as many as the system grants, and a sentence where they run out.

Each connection takes one. Where none is left, who dials waits until one is free; nobody who is inside is touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time
from collections.abc import Callable

SAY_S = 60.0
"""How often to say it: a crowd comes back again and again."""
_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What accept(2) says where there is no room for another connection."""


def raise_limit() -> None:
    """Let this process, and those that it starts, have as many files open as it may allow itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS's hard limit is higher than what it grants
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """How many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Shortage:
    """Says when connections have to wait because no descriptor is left."""

    def __init__(self, who: str, note: Callable[[str, str, str], None]) -> None:
        """who: whose the connections are. note: takes a level, the sentence, and whom else it is about: nobody."""
        self._who = who
        self._note = note
        self._said_s = -SAY_S

    def is_why(self, error: object) -> bool:
        """Whether that is why a connection could not be accepted; then it is said, once a minute."""
        if not isinstance(error, OSError) or error.errno not in _NONE_LEFT:
            return False
        self.tell(error.errno)
        return True

    def tell(self, number: int = errno.EMFILE) -> None:
        """Say it, once a minute. number: the system's, for what is short."""
        if time.monotonic() - self._said_s < SAY_S:
            return
        self._said_s = time.monotonic()
        self._note(
            "warning",
            f"{self._who} can't take another connection now ({os.strerror(number)}; it may have {limit()} files open): "
            "start it where the limit is higher (ulimit -Hn)",
            "",
        )
