"""The client's end of the link: an event loop in a background thread, behind methods that any thread may call.

Messages are handed on in the loop's thread, in order; handlers must be short and never block. What the messages
mean: `jobs.py` and `pool.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from pilotlight.connection import Connection, dial
from pilotlight.core.errors import LinkClosed, PilotlightError
from pilotlight.gate import dialling
from pilotlight.gate.invitation import Invitation
from pilotlight.messages import ClientMessage, ClientReply, Greeting, Hello
from pilotlight.wire import VERSION

Place = str | Invitation
"""Where a manager is: a Unix socket's path, or a pool on another machine."""
GREETING_S_MAX = 30.0
CLOSE_S_MAX = 5.0


class Link:
    """A connection to a manager. `open` once, `close` once (idempotent); `send` from any thread in between."""

    def __init__(self, on_message: Callable[[ClientReply], None], on_closed: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="pilotlight-client", daemon=True)
        self._connection: Connection | None = None
        self._greeting: Future[Greeting] = Future()
        self._stopped = False

    def open(self, place: Place, hello: Hello, timeout_s: float = GREETING_S_MAX) -> Greeting:
        """Connect and introduce ourselves. Raises `LinkClosed`, or `PilotlightError` on another version, silence, or
        where a gate does not let us in."""
        self._thread.start()
        dialled = asyncio.run_coroutine_threadsafe(self._dial(place), self._loop)
        try:
            self._connection = dialled.result(timeout_s)
            self.send(hello)
            greeting = self._greeting.result(timeout_s)
        except FutureTimeout:
            raise PilotlightError(f"the pool's manager did not answer in {timeout_s:.0f} s") from None
        if greeting.version != VERSION:
            message = f"the manager speaks version {greeting.version}, this client {VERSION}: use one release for both"
            raise PilotlightError(message)
        return greeting

    async def _dial(self, place: Place) -> Connection:
        if isinstance(place, str):
            return await dial(place, ClientReply, self._prepare)
        connection, _ = await dialling.dial(place, "", "", ClientReply, self._prepare)
        return connection

    def send(self, message: ClientMessage) -> None:
        """Queue a message. A closed link swallows it; `on_closed` has told or will tell."""
        self.post(lambda: self._connection.send(message) if self._connection else None)

    def post(self, action: Callable[[], Any], delay_s: float = 0.0) -> None:
        """Run something in the loop's thread, now or after a while."""
        try:
            if delay_s:
                self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, action)
            else:
                self._loop.call_soon_threadsafe(action)
        except RuntimeError:
            # The loop is closed, and the link with it.
            if not self._stopped:
                raise

    def close(self, grace_s: float = CLOSE_S_MAX) -> None:
        """Send what is queued (for `grace_s` at most), close, end the thread."""
        if self._stopped:
            return
        self._stopped = True
        if not self._thread.is_alive():
            self._loop.close()
            return
        asyncio.run_coroutine_threadsafe(self._close(min(grace_s, CLOSE_S_MAX)), self._loop).result(GREETING_S_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GREETING_S_MAX)

    async def _close(self, grace_s: float) -> None:
        if self._connection is not None and not self._connection.closed:
            self._connection.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._connection.gone.wait(), grace_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _prepare(self, connection: Connection) -> None:
        connection.on_message = self._receive
        connection.on_closed = self._lost

    def _receive(self, message: ClientReply) -> None:
        if isinstance(message, Greeting):
            self._greeting.set_result(message)
        else:
            self._on_message(message)

    def _lost(self, reason: str) -> None:
        if not self._greeting.done():
            self._greeting.set_exception(LinkClosed(f"the manager closed the connection: {reason}"))
        self._on_closed(reason)
