"""The asking side of a file service: content by digest over HTTP, gone on with where a connection was cut.

Nothing here waits without a deadline: a source that is silent for `SILENCE_S` is given up, one that is cut is asked
again as long as something came. What came is checked by whoever asked (`incoming`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from pilotlight.files.incoming import FILES_AT_ONCE
from pilotlight.files.locks import CopyError, Leaving

if TYPE_CHECKING:
    import httpx2

CONNECT_S = 5.0
SILENCE_S = 10.0
TRIES = 2
"""A source is given up after so many tries in a row that brought nothing."""
AGAIN_S = 0.2
BUSY_S = 60.0
"""How long a source may say that it is busy."""


class Peer:
    """One source. url: of its service, without the digest. tokens: by digest. name: what errors call it.

    A context manager; `pieces` may be called by several threads.
    """

    def __init__(self, url: str, tokens: Mapping[str, str], name: str, stop: threading.Event) -> None:
        import httpx2

        self._url = url
        self._tokens = tokens
        self._name = name
        self._stop = stop
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=FILES_AT_ONCE),
            headers={"Accept-Encoding": "identity"},
            trust_env=False,  # a proxy for the world outside knows no peers
            follow_redirects=False,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._client.close()

    def pieces(self, digest: str, size: int, have: int) -> Iterator[bytes]:
        """The content from byte `have` on. Raises `CopyError`, which names the source."""
        import httpx2

        empty_tries, busy_until = 0, time.monotonic() + BUSY_S
        while have < size:
            before = have
            try:
                for piece in self._read(digest, size, have):
                    have += len(piece)
                    yield piece
                reason = "it ended early"
            except _Busy:
                if time.monotonic() > busy_until:
                    raise CopyError(f"{self._name} is busy, and was for {BUSY_S:.0f} s") from None
                self._wait()
                continue
            except httpx2.TransportError as error:
                reason = str(error) or type(error).__name__
            if have > before:
                empty_tries, busy_until = 0, time.monotonic() + BUSY_S
            else:
                empty_tries += 1
            if have < size and empty_tries >= TRIES:
                raise CopyError(f"{self._name} can't be read at {self._url}: {reason}")
            if have < size:
                self._wait()

    def _read(self, digest: str, size: int, have: int) -> Iterator[bytes]:
        token = self._tokens.get(digest)
        if token is None:
            raise CopyError(f"there is no token for {digest[:12]} of {self._name}")
        headers = {"Authorization": f"Bearer {token}", "Range": f"bytes={have}-"}
        with self._client.stream("GET", f"{self._url}/files/{digest}", headers=headers) as response:
            self._check(response, digest, size, have)
            yield from response.iter_raw()

    def _check(self, response: httpx2.Response, digest: str, size: int, have: int) -> None:
        """Raise where the answer is not what was asked for."""
        if response.status_code == 503:
            raise _Busy
        if response.status_code != 206:
            said = {403: "refuses", 404: "has not got"}.get(response.status_code, f"says {response.status_code} for")
            raise CopyError(f"{self._name} {said} {digest[:12]}")
        given = response.headers.get("Content-Range", "")
        if given != f"bytes {have}-{size - 1}/{size}":
            raise CopyError(f"{self._name} sends {given or 'no range'} of {digest[:12]}, which has {size} bytes")

    def _wait(self) -> None:
        if self._stop.wait(AGAIN_S):
            raise Leaving("this worker ends")


class _Busy(Exception):
    """Ask again in a moment."""
