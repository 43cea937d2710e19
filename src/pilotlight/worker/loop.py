"""The agent's loop: carries out what `core.agent` decides, and tells it what happened.

It keeps the bytes of leased rows until their results are in, and results until the manager has acknowledged them. The
latter are bounded by the former: without a manager only rows that replicas hold go on, so nothing needs to spill.
Files are the business of `copies`, processes that of `processes`; neither ever blocks this loop.
"""

from __future__ import annotations

import asyncio
import math
import os
import platform
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any, Literal

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.agent import Agent
from pilotlight.core.errors import LinkClosed, NotWanted
from pilotlight.core.model import Device, Variant
from pilotlight.core.transitions import Level, ReplicaState
from pilotlight.messages import (
    Ack,
    Beat,
    Copy,
    CopyFailed,
    DefineJob,
    Died,
    Drain,
    ForgetJob,
    Grant,
    Join,
    Kept,
    Leaving,
    LoadFailed,
    ManagerMessage,
    Reported,
    Resident,
    Returned,
    Revoke,
    Rows,
    SourceAsked,
    SourceNamed,
    Stopped,
    TurnedAway,
    Unstage,
    Wants,
    Welcome,
)
from pilotlight.ports import WorkerLink
from pilotlight.replica_messages import Asleep, Failed, Feed, Finished, Live, ReplicaReply, Working
from pilotlight.rowstore import RowStore
from pilotlight.wire import Context, DeviceSpec, Operation, PoolSpec
from pilotlight.worker import log
from pilotlight.worker.copies import Copies, CopyEvent
from pilotlight.worker.loads import Loads
from pilotlight.worker.processes import Servers
from pilotlight.worker.scratch import Surroundings

TICK_S = 0.1
BEAT_S = 0.5
RECONNECT_S, RECONNECT_S_MAX = 0.1, 0.8
"""How long to wait before dialling again: at first, and after many tries."""
JOIN_S_MAX = 60.0
"""A worker that can't join its pool by then gives up; one that was in waits for its orphan timeout."""
LOOK_S = 5.0
"""How often to see whether staged copies are still there."""

_TOLD: dict[ReplicaState, Literal["starting", "live", "asleep"]] = {
    ReplicaState.STARTING: "starting",
    ReplicaState.LIVE: "live",
    ReplicaState.ASLEEP: "asleep",
}


class AgentLoop:
    """One worker's event loop around its pure machine."""

    def __init__(
        self,
        name: str,
        spec: PoolSpec,
        devices: list[DeviceSpec],
        link: WorkerLink,
        memory_bytes: int,
        copies: Copies,
        surroundings: Surroundings,
    ) -> None:
        """memory_bytes: of the host, for parked copies and sleeping replicas. copies: what handles files; ends with
        this."""
        self._surroundings = surroundings
        self._turned_away: NotWanted | None = None
        self._name = name
        self._spec = spec
        self._link = link
        self._devices = {device.id: device for device in devices}
        self._memory_bytes = memory_bytes
        facts = tuple(
            Device(device.id, device.kind, device.memory_bytes, is_host=device.type == "cpu") for device in devices
        )
        self._agent = Agent(name, facts, spec.orphan_timeout_s, memory_bytes)
        self._servers = Servers(
            Path(spec.log_dir), name, self._replica_said, self._replica_ended, surroundings.of_runtime
        )
        self._copies = copies
        self._loads = Loads()
        self._contexts: dict[str, Context] = {}
        self._operations: dict[str, Operation] = {}
        self._stores: dict[str, RowStore] = {}
        self._kept: deque[Rows] = deque()
        self._seq = 0
        self._over = asyncio.Event()
        self._lost = asyncio.Event()

    async def run(self) -> None:
        """Until the machine says `Exit`. Raises `NotWanted` where the pool can't use this worker."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled, number)
        loop.set_exception_handler(self._broke)
        self._copies.begin(self._copy_changed, self._ask_remote)
        over = loop.create_task(self._over.wait())
        beats = loop.create_task(self._beat())
        connects = loop.create_task(self._stay_connected())
        try:
            done, _ = await asyncio.wait((over, beats, connects), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (over, beats, connects):
                task.cancel()
            self._servers.close()
            self._link.close()
            await asyncio.gather(beats, connects, return_exceptions=True)
            await self._copies.close()
        if self._turned_away is not None:
            raise self._turned_away

    def _broke(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A mistake of ours in a callback: say it in the log, and leave; the manager gives our rows to others."""
        loop.default_exception_handler(context)
        self._over.set()

    # --- the manager

    async def _stay_connected(self) -> None:
        """Dial, and again whenever the manager is lost. Raises what no other try can help, and what did not help in
        `JOIN_S_MAX` where it never was in."""
        self._handle(ev.ManagerLost())
        give_up_at_s, pause_s, said = time.monotonic() + JOIN_S_MAX, RECONNECT_S, ""
        while True:
            self._lost.clear()
            try:
                await self._link.connect(self._manager_said, self._manager_gone)
            except LinkClosed as error:
                if time.monotonic() >= give_up_at_s:
                    raise
                if str(error) != said:
                    said = str(error)
                    log.say(f"{said}; trying again")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RECONNECT_S_MAX)
                continue
            log.say("the manager let it in")
            give_up_at_s, pause_s, said = math.inf, RECONNECT_S, ""
            self._copies.serve(self._link.ends)
            self._join()
            await self._lost.wait()
            self._handle(ev.ManagerLost())
            for job_id in list(self._operations):  # the next manager defines its own, under the same names
                self._forget(job_id)
            await asyncio.sleep(RECONNECT_S)

    def _join(self) -> None:
        residents = [self._resident(replica_id, with_context=True) for replica_id in self._agent.replicas]
        copies = [
            self._copy(variant_id, level, held.bytes, held.took_s, context)
            for variant_id, level, held in self._agent.residences.made_copies()
            if (context := self._contexts.get(variant_id)) is not None
        ]
        self._link.send(
            Join(
                worker=self._name,
                pid=os.getpid(),
                host=platform.node(),
                devices=list(self._devices.values()),
                memory_bytes=self._memory_bytes,
                serves=self._copies.served(),
                residents=[resident for resident in residents if resident is not None],
                copies=copies,
                environment=self._surroundings.environment,
                cache=self._surroundings.look(),
                cache_name=self._copies.cache_name,
            )
        )
        for rows in self._kept:
            self._link.send(rows)

    def _manager_gone(self, reason: str) -> None:
        log.say(f"the manager is gone: {reason}")
        self._lost.set()

    def _manager_said(self, message: ManagerMessage) -> None:
        match message:
            case Grant():
                store = RowStore()
                for chunk in message.chunks:
                    store.add(chunk)
                self._stores[message.lease] = store
                spans = tuple((chunk.start, chunk.stop) for chunk in message.chunks)
                granted = ev.LeaseGranted(
                    message.epoch, message.lease, message.job, spans, message.isolated, tuple(message.avoid)
                )
                self._handle(granted)
            case Ack():
                while self._kept and self._kept[0].seq <= message.upto:
                    self._kept.popleft()
            case Revoke():
                self._handle(ev.LeaseRevoked(message.epoch, message.lease, message.rows))
            case DefineJob():
                self._operations[message.job] = message.operation
                self._handle(ev.JobDefined(message.job, message.variant, message.request_timeout_s))
            case Wants():
                for want in message.wants:
                    self._contexts[want.variant] = want.context
                wants = tuple(
                    (
                        want.device,
                        Variant(
                            want.variant,
                            want.context.name,
                            want.context.memory_bytes,
                            has_files=want.context.model_path is not None,
                        ),
                        Level(want.level),
                    )
                    for want in message.wants
                )
                self._loads.wish([(d, v.variant_id) for d, v, level in wants if level is Level.LIVE], time.monotonic())
                self._handle(ev.WantsChanged(message.epoch, message.version, wants))
                self._forget_contexts()
            case SourceNamed():
                self._copies.named(message)
                self._handle(ev.SourceNamed(message.epoch, message.variant, message.source))
            case ForgetJob():
                self._handle(ev.JobForgotten(message.job))
                self._forget(message.job)
            case Unstage():
                self._copies.unstage(message.variant)
            case Drain():
                self._handle(ev.DrainAsked(message.grace_s, "the manager ends it"))
            case Welcome():
                self._handle(ev.ManagerFound(message.epoch))
            case TurnedAway():
                self._turned_away = NotWanted(message.reason)
                self._over.set()

    def _forget(self, job_id: str) -> None:
        self._operations.pop(job_id, None)
        self._servers.forget(job_id)

    def _forget_contexts(self) -> None:
        """Keep the contexts that are wanted, and those that are held in any form."""
        residences = self._agent.residences
        needed = {variant.variant_id for slot in residences.slots.values() for variant in slot.wants}
        needed |= {variant.variant_id for variant in residences.park_wants}
        needed |= {replica.variant.variant_id for replica in residences.replicas.values()}
        needed |= {variant_id for variant_id, _ in residences.copies}
        for variant_id in self._contexts.keys() - needed:
            del self._contexts[variant_id]

    # --- copies

    def _copy_changed(self, event: CopyEvent) -> None:
        if not isinstance(event, ev.CopyGone):
            self._loads.copied(event.variant_id, event.level, time.monotonic())
        self._handle(event)
        self._forget_contexts()

    def _ask_remote(self, variant_id: str) -> None:
        self._link.send(SourceAsked(variant=variant_id, remote=True))

    def _copy(self, variant_id: str, level: Level, size: int, took_s: float, context: Context | None = None) -> Copy:
        kept: Literal["parked", "staged"] = "parked" if level is Level.PARKED else "staged"
        listing = self._copies.listing(variant_id) if level is Level.STAGED and size else None
        return Copy(variant=variant_id, level=kept, bytes=size, took_s=took_s, context=context, listing=listing)

    # --- replicas

    def _replica_said(self, replica_id: str, message: ReplicaReply) -> None:
        match message:
            case Finished():
                self._finished(replica_id, message)
            case Working():
                self._handle(ev.ReplicaProgressed(replica_id, message.started, message.wanted))
            case Live():
                process = self._servers.processes.get(replica_id)
                self._copies.loaded(replica_id)
                own = process.stages if process is not None and "wake" not in message.stages else {}
                self._loads.live(replica_id, time.monotonic(), own, message.stages)
                live = ev.ReplicaLive(replica_id, message.wanted, message.memory_bytes, can_sleep=message.can_sleep)
                self._handle(live)
            case Asleep():
                self._handle(ev.ReplicaSlept(replica_id, message.memory_bytes))
            case Failed():
                self._handle(ev.ReplicaFailed(replica_id, message.kind, message.reason))

    def _finished(self, replica_id: str, message: Finished) -> None:
        replica = self._agent.replicas.get(replica_id)
        event = ev.RowsFinished(
            replica_id,
            message.lease,
            tuple(message.chunk.spans),
            message.wanted,
            message.started,
            message.memory_bytes,
            message.attachment_bytes,
        )
        decisions = self._agent.handle(event, time.monotonic())
        self._seq += 1
        rows = Rows(
            seq=self._seq,
            lease=message.lease,
            job=message.job,
            device=replica.device_id if replica is not None else "",
            chunk=message.chunk,
            started=self._agent.started,
        )
        self._kept.append(rows)
        self._link.send(rows)
        self._carry_out(decisions)

    def _replica_ended(self, replica_id: str, reason: str) -> None:
        self._copies.ended(replica_id)
        self._handle(ev.ReplicaExited(replica_id, reason))
        self._loads.end(replica_id)
        self._forget_contexts()

    # --- the machine

    def _handle(self, event: ev.AgentEvent) -> None:
        self._carry_out(self._agent.handle(event, time.monotonic()))

    def _carry_out(self, decisions: list[do.AgentDecision]) -> None:
        for decision in decisions:
            match decision:
                case do.FeedRows():
                    self._feed(decision)
                case do.DropRows():
                    self._drop(decision)
                case do.SendReturned():
                    self._link.send(Returned(lease=decision.lease_id, spans=list(decision.spans)))
                case do.SendResident():
                    resident = self._resident(decision.replica_id)
                    if resident is not None:
                        self._link.send(Reported(resident=resident))
                case do.StartReplica():
                    self._start(decision)
                case do.StopReplica():
                    self._servers.stop(decision.replica_id, kill=decision.kill)
                case do.SendStopped(device_id, variant_id, replica_id):
                    self._link.send(Stopped(device=device_id, variant=variant_id, replica=replica_id))
                case do.SendDied(device_id, variant_id, replica_id, rows, started, reason, kind):
                    log.say(f"{replica_id} died: {reason}")
                    died = Died(
                        device=device_id,
                        variant=variant_id,
                        replica=replica_id,
                        rows=rows,
                        started=started,
                        reason=reason,
                        kind=kind,
                    )
                    self._link.send(died)
                case do.SendLoadFailed(device_id, variant_id, replica_id, kind, reason):
                    log.say(f"{replica_id or variant_id} could not load: {reason}")
                    self._link.send(
                        LoadFailed(device=device_id, variant=variant_id, replica=replica_id, kind=kind, reason=reason)
                    )
                case do.SendLeaving():
                    self._link.send(Leaving(grace_s=decision.grace_s, reason=decision.reason))
                case do.Exit():
                    log.say(f"leaving: {decision.reason}")
                    self._over.set()
                case _:
                    self._reside(decision)

    def _reside(
        self,
        decision: do.SleepReplica
        | do.WakeReplica
        | do.AskSource
        | do.MakeCopy
        | do.DropCopy
        | do.SendCopy
        | do.SendCopyFailed,
    ) -> None:
        """What changes how near a variant is, beside starting and ending replicas."""
        match decision:
            case do.AskSource(variant_id):
                self._link.send(SourceAsked(variant=variant_id))
            case do.SendCopyFailed(variant_id, _, source, reason):
                self._link.send(CopyFailed(variant=variant_id, source=source, reason=reason))
            case do.SleepReplica():
                self._servers.sleep(decision.replica_id)
            case do.WakeReplica():
                self._loads.wake(decision.replica_id, time.monotonic())
                self._servers.wake(decision.replica_id)
            case do.MakeCopy(variant_id, level, source):
                self._loads.copying(variant_id, level, time.monotonic())
                context = self._contexts[variant_id]
                self._copies.make(variant_id, level, context, source)
                if any(v.variant_id == variant_id for slot in self._agent.slots.values() for v in slot.wants):
                    self._servers.prepare(context.runtime)  # while the files are copied
            case do.DropCopy():
                self._copies.unpark(decision.variant_id)
            case do.SendCopy(variant_id, level, size, took_s):
                self._link.send(Kept(copy=self._copy(variant_id, level, size, took_s)))

    def _start(self, decision: do.StartReplica) -> None:
        replica_id, variant_id = decision.replica_id, decision.variant_id
        log.say(f"starting {replica_id} with {variant_id} on {decision.device_id} ({decision.origin})")
        self._loads.start(replica_id, decision.device_id, variant_id, time.monotonic())

        async def find() -> Path | None:
            path = await self._copies.borrow(replica_id, variant_id, decision.origin)
            if path is not None:
                self._loads.origin(replica_id, "parked" if decision.origin == "parked" else "staged")
            return path

        self._servers.start(replica_id, self._contexts[variant_id], self._devices[decision.device_id], find)

    def _feed(self, decision: do.FeedRows) -> None:
        process = self._servers.processes.get(decision.replica_id)
        if process is None:
            return
        operation = None
        if decision.job_id not in process.operations:
            process.operations.add(decision.job_id)
            operation = self._operations[decision.job_id]
        chunks = self._stores[decision.lease_id].get(decision.spans)
        feed = Feed(lease=decision.lease_id, job=decision.job_id, chunks=chunks, operation=operation)
        self._servers.feed(decision.replica_id, feed)

    def _drop(self, decision: do.DropRows) -> None:
        store = self._stores.get(decision.lease_id)
        if store is None:
            return
        if decision.spans is not None:
            store.drop(decision.spans)
        if decision.spans is None or not len(store):
            del self._stores[decision.lease_id]

    def _resident(self, replica_id: str, *, with_context: bool = False) -> Resident | None:
        replica = self._agent.replicas.get(replica_id)
        state = _TOLD.get(replica.state) if replica is not None else None
        if replica is None or state is None:
            return None
        variant_id = replica.variant.variant_id
        load = self._loads.of(replica_id)
        process = self._servers.processes.get(replica_id)
        return Resident(
            device=replica.device_id,
            variant=variant_id,
            replica=replica_id,
            state=state,
            pid=process.pid if process is not None else 0,
            wanted=replica.wanted,
            memory_bytes=replica.memory_bytes,
            attachment_bytes=replica.attachment_bytes,
            origin=load.origin if load is not None else "cold",
            load_s=load.load_s if load is not None else 0.0,
            stages=load.stages if load is not None else {},
            context=self._contexts.get(variant_id) if with_context else None,
        )

    # --- time and signals

    async def _beat(self) -> None:
        beaten = looked = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            self._handle(ev.Tick())
            self._servers.reap()
            if time.monotonic() - beaten >= BEAT_S:
                beaten = time.monotonic()
                self._link.send(Beat(started=self._agent.started, arriving=self._copies.arriving()))
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                copies = self._agent.residences.made_copies()
                self._copies.look(variant_id for variant_id, level, _ in copies if level is Level.STAGED)

    def _signalled(self, number: signal.Signals) -> None:
        self._handle(ev.DrainAsked(self._spec.grace_s, f"it got {number.name}"))
