"""Who is to blame when a replica dies or can't load: the rows, the device, or its kind.

Part of the manager's machine: `scheduler` hands it these two events and acts on what it says. Changes belief about rows
(suspects, attempts) and devices (deaths, rests, refusals); the rules themselves are in `policy/retry.py`.
"""

from __future__ import annotations

from pilotlight.core import events as ev
from pilotlight.core.decisions import ManagerDecision, Note, RecordAttempts, WriteFailure
from pilotlight.core.model import DeviceBelief, DeviceId, Job, VariantId, Worker
from pilotlight.core.policy import fit, placement, retry
from pilotlight.core.ranges import IndexSet, span_count
from pilotlight.core.state import State
from pilotlight.core.transitions import ReplicaState

PATIENCE_S = 30.0
"""How long after the last worker came another one, which may be larger, is waited for before jobs are given up."""


OUT_OF_MEMORY = "out_of_memory"


class Blame:
    """Shares `state` with the scheduler that owns it; `begin` opens each of its steps."""

    def __init__(self, state: State, workers_expected: int) -> None:
        self._state = state
        self._workers_expected = workers_expected
        self._out: list[ManagerDecision] = []
        self._now = 0.0

    def begin(self, out: list[ManagerDecision], now: float) -> None:
        """A step begins: the list that its decisions go to."""
        self._out = out
        self._now = now

    def replica_died(self, event: ev.ReplicaDied) -> None:
        """A replica ended, perhaps with rows in it."""
        worker = self._state.workers.get(event.worker_id)
        if worker is None or event.device_id not in worker.devices:
            return
        self._state.troubled[worker.worker_id] = None
        belief = worker.devices[event.device_id]
        belief.replicas.pop(event.variant_id, None)
        self._state.replicas_lost += 1
        held: list[tuple[Job, IndexSet]] = []
        for lease_id, spans in event.rows.items():
            lease = self._state.leases.get(lease_id)
            if lease is None or lease.worker_id != event.worker_id:
                continue
            rows = IndexSet()
            for start, stop in spans:
                rows.update(lease.open.within(start, stop))
            job = self._state.jobs[lease.job_id]
            self._state.shrink(lease, rows.spans())
            rows.discard(self._state.unhedge(job, rows.spans()))
            if rows:
                held.append((job, rows))
        total = sum(len(rows) for _, rows in held)
        # what ended it may be a row of a job that is over, of an earlier manager's lease, or one that is run twice
        alone = sum(map(span_count, event.rows.values())) == 1
        lost = min(total, event.started)
        self._state.rows_lost += lost
        name = self._state.name_of(event.variant_id)
        text = f"{worker.worker_id}'s replica of {name} died ({event.reason}); {lost} requests had started"
        proved = event.variant_id in self._state.proved
        culprit = retry.is_culprit(belief, held)
        trusted = proved and event.kind == ev.KILLED and retry.are_trusted(belief, held)
        self._out.append(Note("warning", text, worker.worker_id, again=total if trusted else 0))
        if not held and event.variant_id not in belief.worked_on:
            belief.vain_deaths[event.variant_id] = belief.vain_deaths.get(event.variant_id, 0) + 1
        if held:
            retry.remember(belief, (event.worker_id, event.device_id), event.variant_id, held, proved=proved)
        for job, rows in held:
            if trusted:
                job.pending.update(rows.spans())
            else:
                self._blame_rows(belief, job, rows, event, alone=alone, charge=alone and (proved or belief.worked))
        if retry.is_hopeless(belief, event.variant_id):
            self._refund(belief)
            reason = f"its replicas die whatever they run: {event.reason}"
            self._refuse(worker, event.device_id, event.variant_id, reason)
        if total and culprit:
            rest_s = retry.quarantine(belief, self._now)
            if belief.quarantines == 1:
                self._refund(belief)
            belief.charges.clear()
            text = f"{worker.worker_id}/{event.device_id} rests for {rest_s:.0f} s: its replicas die whatever they run"
            subject, device_id = worker.worker_id, event.device_id
            self._out.append(Note("warning", text, subject, rest_device=device_id, rest_s=rest_s))

    def _refund(self, belief: DeviceBelief) -> None:
        for job_id, index in retry.refund(belief, self._state.jobs):
            self._out.append(RecordAttempts(job_id, ((index, self._state.jobs[job_id].attempts[index]),)))

    def _blame_rows(
        self, belief: DeviceBelief, job: Job, rows: IndexSet, event: ev.ReplicaDied, *, alone: bool, charge: bool
    ) -> None:
        if len(rows) > 1:
            job.suspects.extend(retry.halves(rows))
            return
        job.suspects.insert(0, rows)  # behind all others, whose results may speak for the device
        index = next(rows.indices())
        if alone and event.kind == OUT_OF_MEMORY:
            job.outgrown_bytes[index] = max(job.outgrown_bytes.get(index, 0), belief.device.memory_bytes)
            largest = fit.largest_bytes(self._state.live_workers(), job.variant_id, self._now)
            charge = charge and belief.device.memory_bytes >= largest
        if not charge:
            return
        job.attempts[index] = job.attempts.get(index, 0) + 1
        belief.charges.append((job.job_id, index))
        self._out.append(RecordAttempts(job.job_id, ((index, job.attempts[index]),)))
        if job.attempts[index] < job.attempts_max:
            return
        job.suspects.pop(0)
        job.failing.add(index, index + 1)
        times = f"{job.attempts[index]} times, alone each time; the last time" if job.attempts[index] > 1 else "alone"
        text = f"the request ended its replica {times}: {event.reason}"
        self._out.append(WriteFailure(job.job_id, index, event.kind, text))

    def load_failed(self, event: ev.LoadFailed) -> None:
        """A device could not load a variant."""
        worker = self._state.workers.get(event.worker_id)
        if worker is None or event.device_id not in worker.devices:
            return
        self._state.troubled[worker.worker_id] = None
        belief = worker.devices[event.device_id]
        known = belief.replicas.get(event.variant_id)
        if known is not None and known.state is ReplicaState.STARTING:  # one that sleeps is refused room, and stays
            del belief.replicas[event.variant_id]
        if event.crowded:
            belief.retry_at_s[event.variant_id] = self._now + retry.CROWDED_S
        elif event.permanent:
            self._refuse(worker, event.device_id, event.variant_id, event.reason)
        else:
            self._load_failure(worker, event.device_id, event.variant_id, event.reason)

    def _refuse(self, worker: Worker, device_id: DeviceId, variant_id: VariantId, reason: str) -> None:
        """A device is given up for a variant."""
        worker.devices[device_id].load_failures[variant_id] = placement.LOAD_TRIES_MAX
        self._load_failure(worker, device_id, variant_id, reason)

    def _load_failure(self, worker: Worker, device_id: DeviceId, variant_id: VariantId, reason: str) -> None:
        belief = worker.devices[device_id]
        failures = belief.load_failures.get(variant_id, 0) + 1
        belief.load_failures[variant_id] = failures
        belief.retry_at_s[variant_id] = self._now + retry.load_retry_s(failures)
        name = self._state.name_of(variant_id)
        self._note("warning", f"{worker.worker_id}/{device_id} can't hold {name}: {reason}", worker.worker_id)
        if failures >= placement.LOAD_TRIES_MAX:
            self._state.refusals.setdefault((variant_id, belief.device.kind), {})[worker.worker_id] = reason

    def held_nowhere(self, variant_id: VariantId) -> str:
        """Why no device can hold a variant; empty while one may, or a worker that is expected may bring one."""
        # who has no workers of its own waits for others that may dial in and lack nothing
        lacking = fit.lacking(self._state, variant_id) if self._workers_expected else []
        if not lacking and not any(refused == variant_id for refused, _ in self._state.refusals):
            return ""
        if not placement.failed_everywhere(self._state, variant_id) or self._held_elsewhere(variant_id):
            return ""
        joined = [worker.joined_at_s for worker in self._state.workers.values()]
        if len(joined) < self._workers_expected and self._now - max(joined) < PATIENCE_S:
            return ""
        why = placement.explain_no_fit(self._state, variant_id) or "; ".join(
            part for part in (self._refusals(variant_id), *lacking) if part
        )
        return f"{self._state.name_of(variant_id)} can't be held by any worker: {why}"

    def _held_elsewhere(self, variant_id: VariantId) -> bool:
        """Whether the variant had results on a kind of device that is away now, and may come back."""
        return bool(self._state.proved_on.get(variant_id, set()) - self._state.census.workers_with.keys())

    def _refusals(self, variant_id: VariantId) -> str:
        """Why each kind of device could not hold a variant."""
        said = {kind: list(why.values())[-1] for (v, kind), why in self._state.refusals.items() if v == variant_id}
        if len(said) == 1:
            return next(iter(said.values()))
        return "; ".join(f"{kind}: {reason}" for kind, reason in said.items())

    def _note(self, level: str, text: str, subject: str) -> None:
        self._out.append(Note(level, text, subject))
