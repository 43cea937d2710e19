"""What people ask of contexts: keep one live, or let one go.

The scheduler decides what follows; here a name becomes a context, and pins are kept in the pool's journal, so that the
next manager of a pool that crashed goes on with them.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Coroutine
from typing import Any

from pilotlight.connection import Connection
from pilotlight.core import events as ev
from pilotlight.core.errors import ConfigError, PilotlightError
from pilotlight.manager import background, models
from pilotlight.manager.facts import variant_of
from pilotlight.manager.jobs import variant_id_of
from pilotlight.manager.journal import PoolJournal
from pilotlight.manager.loop import Manager
from pilotlight.manager.submissions import refuse
from pilotlight.messages import Done, Evict, Pin, Unstage
from pilotlight.wire import Context


class Residences:
    """Pins and evictions. Each is answered by `Done` or `Refused`."""

    def __init__(self, manager: Manager, journal: PoolJournal) -> None:
        self._manager = manager
        self._journal = journal
        self._tasks: set[asyncio.Task[None]] = set()

    def resume(self) -> None:
        """Pin again what the manager before this one had pinned."""
        for variant_id, context in self._journal.pins.items():
            self._manager.contexts[variant_id] = context
            self._manager.put(ev.VariantPinned(variant_of(variant_id, context), on=True))

    async def stop(self) -> None:
        """Leave what is being looked at."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pin(self, client: Connection, pin: Pin) -> None:
        """Pin or unpin a context; a model that is not here yet is fetched first."""
        self._run(client, pin.ticket, self._pin(pin))

    def evict(self, client: Connection, evict: Evict) -> None:
        """Let a context go that no job needs."""
        self._run(client, evict.ticket, self._evict(evict))

    async def _pin(self, pin: Pin) -> str:
        context = self._known(pin.context)
        if context is None:
            context = await background.begin(lambda: models.resolve_context(pin.context))
        variant_id = variant_id_of(context)
        pins = self._journal.pins
        if pin.on:
            self._journal.keep_pins({**pins, variant_id: context})
            self._manager.contexts[variant_id] = context
        elif variant_id not in pins:
            raise ConfigError(f"{context.name} is not pinned; {self._listed(pins)}")
        else:
            self._journal.keep_pins({other: pins[other] for other in pins if other != variant_id})
        self._manager.put(ev.VariantPinned(variant_of(variant_id, context), pin.on))
        how = "is pinned: it stays live wherever there is room" if pin.on else "is no longer pinned"
        return f"{context.name} ({context.id}) {how}"

    async def _evict(self, evict: Evict) -> str:
        variant_id, context = self._find(evict.context)
        users = [job.job_id for job in self._manager.scheduler.state.jobs.values() if job.variant_id == variant_id]
        if users:
            raise ConfigError(f"{context.name} is in use by {', '.join(users)}: wait for that, or cancel it")
        pins = self._journal.pins
        if variant_id in pins:
            self._journal.keep_pins({other: pins[other] for other in pins if other != variant_id})
        self._manager.put(ev.VariantEvicted(variant_id))
        if not evict.disk:
            return f"{context.name} ({context.id}) leaves all devices and memories; its files stay in the disks' caches"
        self._manager.tell_all(Unstage(variant=variant_id))
        return f"{context.name} ({context.id}) leaves all devices, memories and the disks' caches"

    def _known(self, asked: Context) -> Context | None:
        """The context that is meant by the name or the id of one that is here, where that is no model's folder."""
        if asked.identity or asked.model_path is None or os.path.isdir(asked.model_path):
            return None
        pinned = self._journal.pins.values()
        found = [c for c in (*self._manager.contexts.values(), *pinned) if asked.model_path in {c.name, c.id}]
        return found[0] if len({context.id for context in found}) == 1 else None

    def _find(self, named: str) -> tuple[str, Context]:
        """A context by its name, its id (or the begin of it), its variant's id or its model's folder. Raises
        `ConfigError`."""
        known = self._manager.contexts
        folder = os.path.realpath(os.path.expanduser(named))
        exact = [v for v, c in known.items() if named in {v, c.id, c.name, c.model_path} or folder == c.model_path]
        found = exact or [v for v, c in known.items() if len(named) >= 4 and c.id.startswith(named)]
        if not found:
            raise ConfigError(f"this pool knows no context {named}; {self._listed(known)}")
        if len(found) > 1:
            raise ConfigError(f"{named} names several contexts, say which by its id: {self._names(found)}")
        return found[0], known[found[0]]

    def _listed(self, variants: dict[str, Context]) -> str:
        return f"there are: {self._names(list(variants))}" if variants else "there is none"

    def _names(self, variants: list[str]) -> str:
        contexts = [self._manager.contexts.get(v) or self._journal.pins[v] for v in variants]
        return ", ".join(f"{context.name} ({context.id})" for context in contexts)

    def _run(self, client: Connection, ticket: int, work: Coroutine[Any, Any, str]) -> None:
        async def answered() -> None:
            try:
                text = await work
            except PilotlightError as error:
                refuse(client, ticket, error)
            except Exception as error:  # one client's odd request must not end the others' jobs
                traceback.print_exc()
                refuse(client, ticket, PilotlightError(f"that can't be done: {type(error).__name__}: {error}"))
            else:
                client.send(Done(ticket=ticket, text=text))

        task = asyncio.get_running_loop().create_task(answered())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
