"""The worker's machine: `Agent.handle(event, now) -> decisions`.

It owns what is resident on this worker. The manager says what it would like to be held (wants) and leases rows; this
machine has replicas started and stopped (`residence`), feeds rows to them by credit, and gives back what has not
started when asked. It knows rows by index; the loop around it keeps their bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pilotlight.core import events as ev
from pilotlight.core.decisions import (
    AgentDecision,
    DropRows,
    Exit,
    FeedRows,
    SendDied,
    SendLeaving,
    SendLoadFailed,
    SendResident,
    SendReturned,
    SendStopped,
)
from pilotlight.core.model import SLEPT_S, Device, DeviceId, JobId, LeaseId, ReplicaId, VariantId
from pilotlight.core.ranges import IndexSet, Span, span_count
from pilotlight.core.residence import RESTART_S_MAX, Held, Residences, Slot
from pilotlight.core.transitions import REPLICA, ReplicaState, step


@dataclass(slots=True)
class Granted:
    """A lease of this worker: what of it has not been fed to a replica."""

    lease_id: LeaseId
    job_id: JobId
    isolated: bool
    queue: IndexSet
    avoid: tuple[DeviceId, ...] = ()


class Agent:
    """The pure machine of one worker."""

    def __init__(
        self, worker_id: str, devices: tuple[Device, ...], orphan_timeout_s: float, memory_bytes: int = 0
    ) -> None:
        """`memory_bytes`: of the host, for parked copies and sleeping replicas."""
        self.worker_id = worker_id
        self.residences = Residences(worker_id, devices, memory_bytes)
        self.leases: dict[LeaseId, Granted] = {}
        self.jobs: dict[JobId, ev.JobDefined] = {}
        self.epoch = 0
        self.wants_version = 0
        self.orphan_timeout_s = orphan_timeout_s
        self.orphaned_until_s: float | None = None
        self.drain_until_s: float | None = None
        self.drain_reason = ""
        self.exiting = False
        self._out: list[AgentDecision] = []
        self._now = 0.0

    @property
    def replicas(self) -> dict[ReplicaId, Held]:
        """The worker's replicas."""
        return self.residences.replicas

    @property
    def slots(self) -> dict[DeviceId, Slot]:
        """The worker's devices, and what is wanted of them."""
        return self.residences.slots

    @property
    def started(self) -> int:
        """Rows that replicas have begun."""
        return sum(replica.started for replica in self.replicas.values())

    @property
    def due_s(self) -> float:
        """When a tick has something to do if nothing happens before; inf: never. Ticks before then change nothing."""
        ends = (self.drain_until_s, self.orphaned_until_s)
        return min(self.residences.due_s, *(math.inf if until_s is None else until_s for until_s in ends))

    def listened(self, now: float) -> None:
        """Nothing happened up to `now`, and somebody listened: it did not sleep, though no tick came."""
        self._now = max(self._now, now)

    def handle(self, event: ev.AgentEvent, now: float) -> list[AgentDecision]:
        """Take in what happened at `now` (seconds, never decreasing) and say what to do about it."""
        assert now >= self._now, "time went backwards"
        slept_s, self._now = now - self._now, now
        self._out = []
        self.residences.begin(self._out, now)
        if self.exiting:
            return self._out
        if slept_s >= SLEPT_S:
            self._slept(slept_s)
        match event:
            case ev.RowsFinished():
                self._finished(event)
            case ev.LeaseGranted():
                self._granted(event)
            case ev.LeaseRevoked():
                self._revoked(event)
            case ev.WantsChanged():
                self._wants_changed(event)
            case ev.JobDefined():
                self.jobs[event.job_id] = event
            case ev.JobForgotten():
                self._forgotten(event.job_id)
            case ev.ReplicaLive():
                self._live(event)
            case ev.ReplicaFailed():
                self._failed(event)
            case ev.ReplicaExited():
                self._exited(event)
            case ev.ManagerFound():
                self._manager_found(event)
            case ev.ManagerLost():
                self._manager_lost()
            case ev.DrainAsked():
                self._drain(event)
            case ev.Tick():
                self._tick()
            case _:
                self._resided(event)
        return self._out

    def _resided(
        self, event: ev.ReplicaSlept | ev.ReplicaProgressed | ev.SourceNamed | ev.CopyMade | ev.CopyFailed | ev.CopyGone
    ) -> None:
        """What only concerns what is held, and how near."""
        match event:
            case ev.ReplicaProgressed(replica_id, started, wanted):
                if replica_id in self.replicas:
                    self._progressed(self.replicas[replica_id], started, wanted)
                return
            case ev.ReplicaSlept(replica_id, memory_bytes):
                if replica_id in self.replicas:
                    self.residences.slept(self.replicas[replica_id], memory_bytes)
            case ev.SourceNamed(epoch, variant_id, source):
                if epoch >= self.epoch and self.drain_until_s is None:
                    self.residences.files.source_named(variant_id, source)
            case ev.CopyMade(variant_id, level, size, took_s):
                self.residences.files.made(variant_id, level, size, took_s)
            case ev.CopyFailed(variant_id, level, reason, remote):
                self.residences.files.failed(variant_id, level, reason, remote=remote)
            case ev.CopyGone(variant_id, level):
                self.residences.files.gone(variant_id, level)
        self._settle()

    # --- the manager's side

    def _manager_found(self, event: ev.ManagerFound) -> None:
        if event.epoch < self.epoch:
            return
        self.epoch = event.epoch
        self.wants_version = 0
        self.orphaned_until_s = None
        if self.drain_until_s is not None:  # it may never have heard
            self._out.append(SendLeaving(max(0.0, self.drain_until_s - self._now), self.drain_reason))
        else:
            self.residences.files.ask_again()

    def _manager_lost(self) -> None:
        for lease in list(self.leases.values()):
            self._drop(lease)
        self.jobs.clear()
        if self.orphaned_until_s is None:
            self.orphaned_until_s = self._now + self.orphan_timeout_s

    def _wants_changed(self, event: ev.WantsChanged) -> None:
        if event.epoch < self.epoch or event.version <= self.wants_version:
            return
        self.wants_version = event.version
        self.residences.want(event.wants)
        self._settle()
        for variant in {variant.variant_id: variant for slot in self.slots.values() for variant in slot.wants}:
            self._feed_all(variant)

    def _granted(self, event: ev.LeaseGranted) -> None:
        lease = Granted(event.lease_id, event.job_id, event.isolated, IndexSet(event.spans), event.avoid)
        self.leases[event.lease_id] = lease
        if event.epoch < self.epoch or self.drain_until_s is not None or event.job_id not in self.jobs:
            self._return(lease, lease.queue.spans())
            return
        self._feed_all(self.jobs[event.job_id].variant_id)

    def _revoked(self, event: ev.LeaseRevoked) -> None:
        lease = self.leases.get(event.lease_id)
        if lease is None or event.epoch < self.epoch:
            self._out.append(SendReturned(event.lease_id, ()))
            return
        rows = len(lease.queue) if event.rows is None else event.rows
        self._return(lease, lease.queue.take(rows, last=True))

    def _forgotten(self, job_id: JobId) -> None:
        self.jobs.pop(job_id, None)
        for lease in [lease for lease in self.leases.values() if lease.job_id == job_id]:
            self._drop(lease)

    def _return(self, lease: Granted, spans: list[Span]) -> None:
        lease.queue.discard(spans)
        self._out.append(SendReturned(lease.lease_id, tuple(spans)))
        self._out.append(DropRows(lease.lease_id, tuple(spans)))
        self._retire(lease)

    def _drop(self, lease: Granted) -> None:
        self._out.append(DropRows(lease.lease_id, tuple(lease.queue.spans())))
        lease.queue = IndexSet()
        self._retire(lease)

    def _retire(self, lease: Granted) -> None:
        """A lease with nothing left to feed needs no more remembering: replicas know what they hold."""
        if not lease.queue:
            self.leases.pop(lease.lease_id, None)

    # --- replicas

    def _live(self, event: ev.ReplicaLive) -> None:
        replica = self.replicas.get(event.replica_id)
        if replica is not None and self.residences.live(
            replica, event.wanted, event.memory_bytes, can_sleep=event.can_sleep
        ):
            self._feed(replica)
            self._settle()

    def _progressed(self, replica: Held, started: int, wanted: int) -> None:
        replica.begun = started
        replica.progress_at_s = self._now
        if wanted and wanted != replica.wanted and replica.state is ReplicaState.LIVE:
            replica.wanted = wanted
            self._out.append(SendResident(replica.replica_id))
            self._feed(replica)

    def _finished(self, event: ev.RowsFinished) -> None:
        replica = self.replicas.get(event.replica_id)
        if replica is None:
            return
        self.slots[replica.device_id].deaths = 0
        replica.begun = event.started
        replica.progress_at_s = self._now
        rows = replica.rows.get(event.lease_id)
        if rows is not None:
            rows.discard(event.spans)
            self._out.append(DropRows(event.lease_id, event.spans))
            if not rows:
                del replica.rows[event.lease_id], replica.timeout_s[event.lease_id]
        grown = self.residences.measure(replica, event.memory_bytes, event.attachment_bytes)
        if event.wanted != replica.wanted or grown:
            replica.wanted = event.wanted
            self._out.append(SendResident(replica.replica_id))
        if replica.state is ReplicaState.LIVE:
            self._feed(replica)
            if not replica.rows and not self.residences.wanted_live(replica):
                self._settle()
        self._leave_if_drained()

    def _failed(self, event: ev.ReplicaFailed) -> None:
        replica = self.replicas.get(event.replica_id)
        if replica is not None:
            replica.refusal = (event.kind, event.reason)

    def _exited(self, event: ev.ReplicaExited) -> None:
        replica = self.replicas.pop(event.replica_id, None)
        if replica is None:
            return
        slot = self.slots[replica.device_id]
        was = replica.state
        replica.state = step(REPLICA, was, ReplicaState.GONE)
        variant_id = replica.variant.variant_id
        for lease_id, rows in replica.rows.items():
            self._out.append(DropRows(lease_id, tuple(rows.spans())))
        if was is ReplicaState.STOPPING and not replica.rows:
            self._out.append(SendStopped(replica.device_id, variant_id, replica.replica_id))
        elif was is ReplicaState.STARTING:
            kind, reason = replica.refusal or ("load_crashed", replica.killed_because or event.reason)
            slot.refused.add(variant_id)
            self._out.append(SendLoadFailed(replica.device_id, variant_id, replica.replica_id, kind, reason))
        else:
            held = {lease_id: rows.spans() for lease_id, rows in replica.rows.items()}
            slot.deaths += 1
            delay_s = 0.0 if slot.deaths <= 1 else min(RESTART_S_MAX, 0.1 * 2.0 ** min(slot.deaths, 16))
            slot.restart_at_s = self._now + delay_s
            kind, reason = replica.refusal or ("killed_replica", event.reason)
            if replica.killed_because:
                kind, reason = "timed_out" if replica.hung else "killed_replica", replica.killed_because
            died = SendDied(replica.device_id, variant_id, replica.replica_id, held, replica.started, reason, kind)
            self._out.append(died)
        self._settle()
        self._feed_all(variant_id)  # what was to avoid another device may have nowhere else to go now
        self._leave_if_drained()

    def _settle(self) -> None:
        if self.drain_until_s is None:
            self.residences.settle()

    # --- rows to replicas

    def _feed_all(self, variant_id: VariantId) -> None:
        for replica in self.replicas.values():
            if replica.variant.variant_id == variant_id and replica.state is ReplicaState.LIVE:
                self._feed(replica)

    def _feed(self, replica: Held) -> None:
        """Fill a replica up to what it wants, jobs in the order of their leases and each job's first rows first; an
        isolated lease only into an empty replica."""
        if not replica.rows:
            replica.alone = False
        if self.drain_until_s is not None or replica.wanted <= 0 or replica.alone or replica.changing:
            return
        if replica.killed_because or not self.residences.wanted_live(replica):
            return  # its room is wanted; the manager asks for its rows back
        count = replica.count
        room = replica.wanted - count
        if count and room < max(1, replica.wanted // 8):
            return
        for lease in self._in_turn(replica.variant.variant_id):
            if room <= 0:
                return
            if lease.isolated:
                if replica.device_id in lease.avoid and self._others_serve(replica, lease.avoid):
                    continue
                if replica.rows:
                    return
                replica.alone = True
                self._hand(replica, lease, len(lease.queue))
                return
            room -= self._hand(replica, lease, room)

    def _in_turn(self, variant_id: VariantId) -> list[Granted]:
        """Leases of a variant in the order to serve them. The lease with a job's first rows takes the turn of its
        oldest one: rows that came back from a worker that was lost don't wait behind later ones."""
        jobs = {job_id for job_id, job in self.jobs.items() if job.variant_id == variant_id}
        turns = [lease for lease in self.leases.values() if lease.job_id in jobs and lease.queue]
        shared = [lease for lease in turns if not lease.isolated]
        if len(shared) < 2:
            return turns
        by_rows: dict[JobId, list[Granted]] = {}
        for lease in sorted(shared, key=lambda lease: next(iter(lease.queue))[0], reverse=True):
            by_rows.setdefault(lease.job_id, []).append(lease)
        return [lease if lease.isolated else by_rows[lease.job_id].pop() for lease in turns]

    def _others_serve(self, replica: Held, avoid: tuple[DeviceId, ...]) -> bool:
        """Whether the variant is, or is about to be, served on a device that need not be avoided."""
        variant_id = replica.variant.variant_id
        others = (slot for device_id, slot in self.slots.items() if device_id not in avoid)
        return any(
            variant_id not in slot.refused and any(variant.variant_id == variant_id for variant in slot.wants)
            for slot in others
        )

    def _hand(self, replica: Held, lease: Granted, rows: int) -> int:
        spans = lease.queue.take(rows)
        if not replica.rows:
            replica.progress_at_s = self._now
        replica.rows.setdefault(lease.lease_id, IndexSet()).update(spans)
        replica.timeout_s[lease.lease_id] = self.jobs[lease.job_id].request_timeout_s
        self._out.append(FeedRows(replica.replica_id, lease.lease_id, lease.job_id, tuple(spans)))
        self._retire(lease)
        return span_count(spans)

    # --- leaving

    def _drain(self, event: ev.DrainAsked) -> None:
        if self.drain_until_s is not None:
            self.drain_until_s = min(self.drain_until_s, self._now + event.grace_s)
            return
        self.drain_until_s = self._now + event.grace_s
        self.drain_reason = event.reason
        self._out.append(SendLeaving(event.grace_s, event.reason))
        for lease in list(self.leases.values()):
            self._return(lease, lease.queue.spans())
        self._leave_if_drained()

    def _leave_if_drained(self) -> None:
        if self.drain_until_s is not None and not any(replica.rows for replica in self.replicas.values()):
            self._exit("it drained")

    def _exit(self, reason: str) -> None:
        if not self.exiting:
            self.exiting = True
            self._out.append(Exit(reason))

    def _tick(self) -> None:
        if self.drain_until_s is not None and self._now >= self.drain_until_s:
            self._exit("its grace time is over")
            return
        if self.orphaned_until_s is not None and self._now >= self.orphaned_until_s:
            self._exit(f"no manager for {self.orphan_timeout_s:.0f} s")
            return
        self.residences.tick()
        self._settle()

    def _slept(self, seconds: float) -> None:
        """Nothing was heard of replicas and managers because nobody listened. A drain ends when it ends."""
        self.residences.slept_through(seconds)
        if self.orphaned_until_s is not None:
            self.orphaned_until_s += seconds

    # --- what must hold

    def check(self) -> None:
        """Assert every invariant of this worker's belief."""
        self.residences.check()
        for lease in self.leases.values():
            assert lease.queue, f"{lease.lease_id} has nothing to feed and is remembered"
        held: dict[LeaseId, IndexSet] = {}
        for replica in self.replicas.values():
            assert not replica.alone or len(replica.rows) <= 1, f"{replica.replica_id} runs suspects beside other rows"
            for lease_id, rows in replica.rows.items():
                for start, stop in rows:
                    assert held.setdefault(lease_id, IndexSet()).add(start, stop) == stop - start, "a row was fed twice"
                    queue = self.leases[lease_id].queue if lease_id in self.leases else IndexSet()
                    assert not queue.within(start, stop), f"{lease_id}: a row is queued and fed"
