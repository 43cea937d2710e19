"""The end of a job: idle workers take back what slower ones have not started, then repeat the oldest rows."""

from __future__ import annotations

from pilotlight.core.model import Lease, Worker
from pilotlight.core.ranges import Span
from pilotlight.core.state import State
from pilotlight.core.transitions import LeaseState


def steal_from(state: State, thief: Worker, variant_id: str) -> tuple[Lease, int] | None:
    """The lease to ask for unstarted rows, and how many: half of the largest one elsewhere."""
    best: Lease | None = None
    for job in state.jobs_of(variant_id):
        for lease_id in job.leases:
            lease = state.leases[lease_id]
            if lease.worker_id == thief.worker_id or lease.isolated or lease.all_started:
                continue
            if (
                lease.state is LeaseState.OPEN
                and len(lease.open) > 1
                and (best is None or len(lease.open) > len(best.open))
            ):
                best = lease
    return None if best is None else (best, len(best.open) // 2)


def hedge_from(
    state: State, idle: Worker, variant_id: str, rows: int, now: float, hedge_after_s: float
) -> tuple[Lease, list[Span]] | None:
    """The oldest rows elsewhere that have been silent for `hedge_after_s`, to run a second time here."""
    best: Lease | None = None
    for job in state.jobs_of(variant_id):
        if not job.may_hedge:
            continue
        for lease_id in job.leases:
            lease = state.leases[lease_id]
            silent_s = now - max(lease.granted_at_s, lease.last_result_at_s)
            if lease.worker_id == idle.worker_id or lease.isolated or lease.hedge or silent_s < hedge_after_s:
                continue
            once = lease.open.copy()
            once.discard(job.hedged.spans())
            if once and (best is None or lease.granted_at_s < best.granted_at_s):
                best = lease
    if best is None:
        return None
    once = best.open.copy()
    once.discard(state.jobs[best.job_id].hedged.spans())
    return best, once.take(rows)
