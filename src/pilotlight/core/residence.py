"""What a worker holds, and how near: replicas on its devices, copies of files in its memory and on its disk.

The half of the worker's machine (`agent`) that starts, stops, puts to sleep and wakes replicas, and stages and parks
the files that they are built from, within the memory there is. It knows replicas' rows only by whether there are any.
A copy is asked for before a replica is started, so that all replicas of a variant share one read of its files; how a
copy comes to be is in `files`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pilotlight.core.decisions import (
    AgentDecision,
    DropCopy,
    SendLoadFailed,
    SendResident,
    SleepReplica,
    StartReplica,
    StopReplica,
    WakeReplica,
)
from pilotlight.core.errors import Crowded, NoRoom
from pilotlight.core.files import LOAD_S_MAX, CopyHeld, Files
from pilotlight.core.model import Device, DeviceId, LeaseId, ReplicaId, Variant, VariantId
from pilotlight.core.ranges import IndexSet
from pilotlight.core.transitions import REPLICA, Level, ReplicaState, step

STOP_GRACE_S = 3.0
RESTART_S_MAX = 5.0
SLEEP_S_MAX = 120.0
"""Falling asleep or waking is a copy between memories; what takes longer hangs."""
MEASURES_MAX = 256


@dataclass(slots=True)
class Held:
    """A replica of this worker, and the rows it holds, by lease."""

    replica_id: ReplicaId
    device_id: DeviceId
    variant: Variant
    origin: str = "cold"
    state: ReplicaState = ReplicaState.STARTING
    wanted: int = 0
    memory_bytes: int = 0
    attachment_bytes: int = 0
    can_sleep: bool = False
    changing: bool = False
    """It was told to sleep or to wake, and has not said that it did."""
    rows: dict[LeaseId, IndexSet] = field(default_factory=dict[LeaseId, IndexSet])
    timeout_s: dict[LeaseId, float] = field(default_factory=dict[LeaseId, float])
    """How long it may hold rows of a lease without a sign of progress."""
    progress_at_s: float = 0.0
    begun: int | None = None
    """How many of its rows it had begun by its own last word; None: it has not said yet."""
    alone: bool = False
    """What it holds must have nothing beside it."""
    load_until_s: float = math.inf
    kill_at_s: float | None = None
    refusal: tuple[str, str] | None = None
    killed_because: str = ""
    hung: bool = False

    @property
    def count(self) -> int:
        """Rows that it holds."""
        return sum(len(rows) for rows in self.rows.values())

    @property
    def started(self) -> int:
        """Rows that it holds and has begun, as far as it said."""
        return self.count if self.begun is None else min(self.count, self.begun)

    @property
    def hangs_at_s(self) -> float:
        """When it counts as hanging: the most patient of its rows decides, because a hang blames all."""
        return self.progress_at_s + max(self.timeout_s.values(), default=math.inf) if self.rows else math.inf

    @property
    def due_s(self) -> float:
        """When it is to be ended if nothing is heard of it; inf: never."""
        loads_s = self.load_until_s if self.state is ReplicaState.STARTING else math.inf
        ends_s = math.inf if self.kill_at_s is None else self.kill_at_s
        return min(loads_s, ends_s, math.inf if self.killed_because else self.hangs_at_s)


@dataclass(slots=True)
class Slot:
    """A device and what is wanted of it. `refused`: variants not to be tried again before new wants come."""

    device: Device
    wants: tuple[Variant, ...] = ()
    refused: set[VariantId] = field(default_factory=set[VariantId])
    deaths: int = 0
    restart_at_s: float = 0.0
    """Nothing is started before; 0 once that is over."""


class Residences:
    """All that one worker holds. `begin` opens each step of the machine that owns it."""

    def __init__(self, worker_id: str, devices: Iterable[Device], memory_bytes: int) -> None:
        self.slots = {device.device_id: Slot(device) for device in devices}
        self.replicas: dict[ReplicaId, Held] = {}
        self.files = Files()
        self.copies = self.files.copies
        self.park_wants: tuple[Variant, ...] = ()
        self.measured_bytes: dict[VariantId, int] = {}
        """What live replicas of a variant held last."""
        self._worker_id = worker_id
        self._memory_bytes = memory_bytes
        self._made = 0
        self._out: list[AgentDecision] = []
        self._now = 0.0

    def begin(self, out: list[AgentDecision], now: float) -> None:
        """A step begins: the list that its decisions go to."""
        self._out = out
        self._now = now
        self.files.begin(out, now)

    # --- what the manager wants

    def want(self, wants: Iterable[tuple[DeviceId, Variant, Level]]) -> None:
        """New wants; what failed before may be tried again."""
        listed = list(wants)
        for slot in self.slots.values():
            here = slot.device.device_id
            slot.wants = tuple(v for device_id, v, level in listed if level is Level.LIVE and device_id == here)
            slot.refused.clear()
        self.park_wants = tuple(v for _, v, level in listed if level is Level.PARKED)
        for key in [key for key, copy in self.copies.items() if copy.state == "failed"]:
            del self.copies[key]

    def wanted_live(self, replica: Held) -> bool:
        """Whether the manager wants a replica's variant live on its device."""
        return any(v.variant_id == replica.variant.variant_id for v in self.slots[replica.device_id].wants)

    def settle(self) -> None:
        """Stop, or put to sleep, what is not wanted; copy and start what is wanted and fits."""
        for slot in self.slots.values():
            here = self._on(slot)
            for replica in here.values():
                if not replica.rows and not self.wanted_live(replica):
                    self._send_off(replica)
            if self._now >= slot.restart_at_s:
                slot.restart_at_s = 0.0
            while sum(self._bring_up(slot, variant, here) for variant in slot.wants):
                pass  # what starts takes room for which others wait until their files are here
        for variant in self.park_wants:
            if self._copy(variant, Level.STAGED) and not self._sleeps(variant.variant_id):
                self._copy(variant, Level.PARKED)
        self.files.wait_for(self._wanted())
        self._drop_copies()

    def _on(self, slot: Slot) -> dict[VariantId, Held]:
        return {r.variant.variant_id: r for r in self.replicas.values() if r.device_id == slot.device.device_id}

    # --- replicas

    def _bring_up(self, slot: Slot, variant: Variant, here: dict[VariantId, Held]) -> bool:
        """Come nearer to a live replica. Returns whether one was started."""
        known = here.get(variant.variant_id)
        if known is not None:
            if known.state is ReplicaState.ASLEEP and not known.changing and self._has_room(slot, variant, here):
                self._wake(known)
            return False
        if variant.variant_id in slot.refused or slot.restart_at_s:
            return False
        if not self._has_room(slot, variant, here) or not self._copy(variant, Level.STAGED):
            return False
        if not self._copy(variant, Level.PARKED):
            return False
        here[variant.variant_id] = self._start(slot, variant)
        return True

    def _has_room(self, slot: Slot, variant: Variant, here: dict[VariantId, Held]) -> bool:
        """Whether the device has room for one more live variant. Where it never will, says so to the manager."""
        others = {variant_id: r for variant_id, r in here.items() if variant_id != variant.variant_id}
        need = self._need(variant)
        free = slot.device.memory_bytes - sum(self._taken(r) for r in others.values())
        parked = self._parked_beside({*others, variant.variant_id}) if slot.device.is_host else {}
        if need <= free - sum(parked.values()):
            return True
        if need <= free:
            return self._make_room(parked, need - (free - sum(parked.values())))
        for replica in others.values():
            if replica.state is ReplicaState.ASLEEP and not self.wanted_live(replica):
                self.stop(replica)
        if any(r.state is ReplicaState.STOPPING or r.changing or not self.wanted_live(r) for r in others.values()):
            return False  # room comes when these have ended or sleep, and each of that settles again
        slot.refused.add(variant.variant_id)
        kind = Crowded.kind if others else NoRoom.kind
        reason = f"it needs about {need / 1e9:.1f} GB and {slot.device.kind} has {max(free, 0) / 1e9:.1f} GB free"
        self._out.append(SendLoadFailed(slot.device.device_id, variant.variant_id, "", kind, reason))
        return False

    def _parked_beside(self, here: set[VariantId]) -> dict[VariantId, int]:
        """Bytes of parked copies of other variants than these; a replica that maps a copy holds no more for it."""
        return {
            variant_id: copy.bytes or self._declared(variant_id)
            for (variant_id, level), copy in self.copies.items()
            if level is Level.PARKED and copy.state != "failed" and variant_id not in here
        }

    def _make_room(self, parked: dict[VariantId, int], missing: int) -> bool:
        """Drop the least wanted of these copies until enough is free; False: that takes a moment."""
        order = [v.variant_id for v in self.park_wants]
        for variant_id in sorted(parked, key=lambda v: order.index(v) if v in order else len(order), reverse=True):
            if missing <= 0:
                break
            copy = self.copies[variant_id, Level.PARKED]
            if copy.state == "made":
                self._drop(variant_id, copy)
            missing -= parked[variant_id]
        return False

    def _need(self, variant: Variant) -> int:
        """Device memory of a live replica: measured if one was live here, else as declared."""
        return self.measured_bytes.get(variant.variant_id) or variant.memory_bytes

    def _taken(self, replica: Held) -> int:
        asleep = replica.state is ReplicaState.ASLEEP and not replica.changing
        return replica.memory_bytes if asleep else max(replica.memory_bytes, self._need(replica.variant))

    def _start(self, slot: Slot, variant: Variant) -> Held:
        self._made += 1
        origin = self.origin(variant)
        replica = Held(f"{self._worker_id}.{self._made}", slot.device.device_id, variant, origin)
        replica.load_until_s = self._now + LOAD_S_MAX
        self.replicas[replica.replica_id] = replica
        self._out.append(StartReplica(replica.replica_id, slot.device.device_id, variant.variant_id, origin))
        self._out.append(SendResident(replica.replica_id))
        return replica

    def _wake(self, replica: Held) -> None:
        replica.changing, replica.origin = True, "asleep"
        replica.kill_at_s = self._now + SLEEP_S_MAX
        self._out.append(WakeReplica(replica.replica_id))

    def _send_off(self, replica: Held) -> None:
        """A replica without rows that is not wanted live: it sleeps if its variant is to stay near, else it ends."""
        keep = any(v.variant_id == replica.variant.variant_id for v in self.park_wants)
        if replica.changing or (replica.state is ReplicaState.ASLEEP and keep):
            return
        if replica.state is ReplicaState.LIVE and keep and replica.can_sleep and self._may_sleep(replica):
            replica.changing = True
            replica.kill_at_s = self._now + SLEEP_S_MAX
            self._out.append(SleepReplica(replica.replica_id))
            return
        self.stop(replica)

    def stop(self, replica: Held) -> None:
        """Ask a replica to end; it is killed when it does not."""
        if replica.state in {ReplicaState.STARTING, ReplicaState.LIVE, ReplicaState.ASLEEP}:
            replica.state = step(REPLICA, replica.state, ReplicaState.STOPPING)
            replica.kill_at_s = self._now + STOP_GRACE_S
            self._out.append(StopReplica(replica.replica_id))

    def live(self, replica: Held, wanted: int, memory_bytes: int, *, can_sleep: bool) -> bool:
        """A replica says that it is live. False where it was not asked for any more."""
        if replica.state not in {ReplicaState.STARTING, ReplicaState.ASLEEP}:
            return False
        replica.state = step(REPLICA, replica.state, ReplicaState.LIVE)
        replica.changing, replica.kill_at_s = False, None
        replica.wanted, replica.can_sleep = wanted, can_sleep
        self.measure(replica, memory_bytes, 0)
        self._out.append(SendResident(replica.replica_id))
        return True

    def slept(self, replica: Held, memory_bytes: int) -> None:
        """A replica says that it sleeps, and what it still holds of its device."""
        if replica.state is ReplicaState.LIVE and replica.changing:
            replica.state = step(REPLICA, replica.state, ReplicaState.ASLEEP)
            replica.changing, replica.kill_at_s = False, None
            replica.memory_bytes, replica.attachment_bytes = memory_bytes, 0
            self._out.append(SendResident(replica.replica_id))

    def measure(self, replica: Held, memory_bytes: int, attachment_bytes: int) -> bool:
        """What a live replica holds now; True where that is worth a report."""
        if not memory_bytes:
            return False
        known = replica.memory_bytes, replica.attachment_bytes
        replica.memory_bytes, replica.attachment_bytes = memory_bytes, attachment_bytes
        while len(self.measured_bytes) >= MEASURES_MAX:
            del self.measured_bytes[next(iter(self.measured_bytes))]
        self.measured_bytes[replica.variant.variant_id] = memory_bytes
        return any(abs(new - old) * 16 > old for new, old in zip((memory_bytes, attachment_bytes), known, strict=True))

    def kill(self, replica: Held, because: str) -> None:
        """End a replica at once, whatever it holds; its death is told with this reason."""
        replica.killed_because = replica.killed_because or because
        replica.kill_at_s = self._now + STOP_GRACE_S  # once more, should it survive
        self._out.append(StopReplica(replica.replica_id, kill=True))

    def slept_through(self, seconds: float) -> None:
        """The agent did not run for so long: what replicas did and copies became is not heard yet."""
        for replica in self.replicas.values():
            replica.progress_at_s += seconds
            replica.load_until_s += seconds
            if replica.kill_at_s is not None:
                replica.kill_at_s += seconds
        for copy in self.copies.values():
            if copy.state == "making":
                copy.until_s += seconds

    def tick(self) -> None:
        """End what takes too long: loads, requests, ends, falling asleep, waking, copies."""
        for replica in self.replicas.values():
            if replica.state is ReplicaState.STARTING and self._now >= replica.load_until_s:
                replica.load_until_s = math.inf
                replica.refusal = ("load_timed_out", f"it was not loaded after {LOAD_S_MAX:.0f} s")
                self.kill(replica, "")
            elif self._now >= replica.hangs_at_s and not replica.killed_because:
                replica.hung, silent_s = True, self._now - replica.progress_at_s
                self.kill(replica, f"it hung: no progress for {silent_s:.0f} s (request_timeout_s)")
            elif replica.kill_at_s is not None and self._now >= replica.kill_at_s:
                self.kill(replica, "it hung while falling asleep or waking" if replica.changing else "")
        self.files.tick()

    @property
    def due_s(self) -> float:
        """When a tick has something to do if nothing happens before; inf: never."""
        due_s = self.files.due_s
        for replica in self.replicas.values():
            due_s = min(due_s, replica.due_s)
        for slot in self.slots.values():
            if slot.restart_at_s:
                due_s = min(due_s, slot.restart_at_s)
        return due_s

    # --- copies of files

    def origin(self, variant: Variant) -> str:
        """The nearest place that a replica could be built from now."""
        for level in (Level.PARKED, Level.STAGED):
            copy = self.copies.get((variant.variant_id, level))
            if copy is not None and copy.state == "made":
                return level.value
        return "cold"

    def made_copies(self) -> Iterator[tuple[VariantId, Level, CopyHeld]]:
        """Copies that are there, for an inventory."""
        return ((v, level, copy) for (v, level), copy in self.copies.items() if copy.state == "made")

    def _copy(self, variant: Variant, level: Level) -> bool:
        """Whether there is nothing (more) to wait for: the copy is there, or can't or need not be. Else it is asked
        for."""
        if not variant.has_files or (level is Level.PARKED and not self._may_keep(variant)):
            return True
        copy = self.copies.get((variant.variant_id, level))
        if copy is not None:
            return copy.state in {"made", "failed"}
        self.files.begin_copy(variant.variant_id, level)
        return False

    def _may_keep(self, variant: Variant) -> bool:
        """Whether the worker's memory has room to hold a variant beside what it holds already."""
        copy = self.copies.get((variant.variant_id, Level.PARKED))
        if copy is not None:
            return copy.state != "dropping"
        hosted = self._hosted()
        kept = sum(hosted.values()) + sum(self._parked_beside(set(hosted)).values()) + self._asleep_bytes()
        more = 0 if variant.variant_id in hosted else variant.memory_bytes
        return kept + more <= self._memory_bytes

    def _may_sleep(self, replica: Held) -> bool:
        """Whether the worker's memory has room for what a replica remembers in its sleep."""
        if self.slots[replica.device_id].device.is_host:
            return True  # what it gives back is this very memory
        hosted = self._hosted()
        kept = sum(size for v, size in hosted.items() if v != replica.variant.variant_id) + self._asleep_bytes()
        kept += sum(self._parked_beside({*hosted, replica.variant.variant_id}).values())
        return kept + self._need(replica.variant) <= self._memory_bytes

    def _hosted(self) -> dict[VariantId, int]:
        """Bytes of the worker's memory that host devices hold or are about to, by variant."""
        hosted = {r.variant.variant_id: self._taken(r) for r in self.replicas.values() if self._on_host(r)}
        for slot in self.slots.values():
            for variant in slot.wants if slot.device.is_host else ():
                if variant.variant_id not in slot.refused:
                    hosted.setdefault(variant.variant_id, self._need(variant))
        return hosted

    def _asleep_bytes(self) -> int:
        """What sleepers remember: all of a device's memory, or on a host what they say that they still hold."""
        total = 0
        for replica in self.replicas.values():
            if self.slots[replica.device_id].device.is_host:
                total += replica.memory_bytes if replica.state is ReplicaState.ASLEEP else 0
            elif replica.state is ReplicaState.ASLEEP or self._falls_asleep(replica):
                total += self._need(replica.variant)
        return total

    @staticmethod
    def _falls_asleep(replica: Held) -> bool:
        return replica.changing and replica.state is ReplicaState.LIVE

    def _sleeps(self, variant_id: VariantId) -> bool:
        """Whether a replica remembers a variant in its sleep, or is about to."""
        replicas = (r for r in self.replicas.values() if r.variant.variant_id == variant_id)
        return any(r.state is ReplicaState.ASLEEP or self._falls_asleep(r) for r in replicas)

    def _on_host(self, replica: Held) -> bool:
        return self.slots[replica.device_id].device.is_host and replica.state is not ReplicaState.ASLEEP

    def _declared(self, variant_id: VariantId) -> int:
        return max((v.memory_bytes for v in self._wanted() if v.variant_id == variant_id), default=0)

    def _wanted(self) -> Iterator[Variant]:
        for slot in self.slots.values():
            yield from slot.wants
        yield from self.park_wants

    def _drop_copies(self) -> None:
        """Let go of parked copies that nothing wants and no replica is being built from."""
        live = {v.variant_id for slot in self.slots.values() for v in slot.wants}
        wanted = live | {v.variant_id for v in self.park_wants if not self._sleeps(v.variant_id)}
        wanted |= {r.variant.variant_id for r in self.replicas.values() if r.state is ReplicaState.STARTING}
        for (variant_id, level), copy in self.copies.items():
            if level is Level.PARKED and copy.state == "made" and variant_id not in wanted:
                self._drop(variant_id, copy)

    def _drop(self, variant_id: VariantId, parked: CopyHeld) -> None:
        parked.state = "dropping"
        self._out.append(DropCopy(variant_id))

    # --- what must hold

    def check(self) -> None:
        """Assert every invariant of what is held."""
        for slot in self.slots.values():
            on = [r for r in self.replicas.values() if r.device_id == slot.device.device_id]
            variants = [r.variant.variant_id for r in on]
            assert len(variants) == len(set(variants)), f"two replicas of one variant on {slot.device.device_id}"
        for replica in self.replicas.values():
            assert replica.state is not ReplicaState.GONE
            idle = replica.state in {ReplicaState.STARTING, ReplicaState.ASLEEP} or replica.changing
            assert not (idle and replica.rows), f"{replica.replica_id} is {replica.state.value} and has rows"
            assert not replica.changing or replica.kill_at_s is not None, f"{replica.replica_id} may change for ever"
            ends = replica.state is ReplicaState.STOPPING
            assert not ends or replica.kill_at_s is not None, f"{replica.replica_id} may take for ever to end"
            loads = replica.state is ReplicaState.STARTING and replica.kill_at_s is None
            assert not loads or replica.load_until_s < math.inf, f"{replica.replica_id} may load for ever"
            assert replica.timeout_s.keys() == replica.rows.keys(), f"{replica.replica_id} forgot a deadline"
        self.files.check()
