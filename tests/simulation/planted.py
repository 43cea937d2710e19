"""Mistakes planted into the core's own source, one at a time: what a simulation that bites must find."""

from __future__ import annotations
import __future__

import contextlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from pilotlight.core import agent, allocation, blame, decisions, fetches, files, residence, scheduler, silence, state
from pilotlight.core.policy import sharing

ANNOTATIONS = __future__.annotations.compiler_flag


@dataclass(frozen=True)
class Planted:
    """A text that occurs once in the source of `owner.name`, and what stands there instead."""

    what: str
    owner: type | ModuleType
    name: str
    old: str
    new: str


@contextlib.contextmanager
def planted(mistake: Planted) -> Iterator[None]:
    """The core with a mistake."""
    right = vars(mistake.owner)[mistake.name]
    function = (
        right.__func__ if isinstance(right, staticmethod) else right.fget if isinstance(right, property) else right
    )
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(mistake.old) == 1, f"{mistake.what}: the core has changed, plant it anew"
    names = {**function.__globals__, "do": decisions}
    code = compile(source.replace(mistake.old, mistake.new), f"<{mistake.what}>", "exec", ANNOTATIONS)
    exec(code, names)
    setattr(mistake.owner, mistake.name, names[function.__name__])
    try:
        yield
    finally:
        setattr(mistake.owner, mistake.name, right)


MISTAKES = [
    Planted(
        "rows of a lease that ended are lost",
        state.State,
        "give_back",
        "job.pending.update(freed.spans())",
        "pass",
    ),
    Planted(
        "rows that a restarted manager finds done are run again",
        scheduler,
        "job_from",
        "done = IndexSet(event.done)",
        "done = IndexSet()",
    ),
    Planted(
        "a replica is evicted while it has rows",
        residence.Residences,
        "settle",
        "if not replica.rows and not self.wanted_live(replica)",
        "if not self.wanted_live(replica)",
    ),
    Planted(
        "a device that may be tried again is not among what is due",
        residence.Residences,
        "due_s",
        "if slot.restart_at_s:",
        "if False:",
    ),
    Planted(
        "a replica may take for ever to end",
        residence.Residences,
        "stop",
        "replica.kill_at_s = self._now + STOP_GRACE_S",
        "pass",
    ),
    Planted(
        "a preemption is charged to the rows that it ended",
        scheduler.Scheduler,
        "_forget_worker",
        "self.state.void(lease)",
        "self._out.append(do.RecordAttempts(lease.job_id, tuple((i, 1) for i in lease.open.indices()))); "
        "self.state.void(lease)",
    ),
    Planted(
        "a row is charged for what ran beside it",
        blame.Blame,
        "replica_died",
        "charge=alone and",
        "charge=len(rows) == 1 and",
    ),
    Planted(
        "wants of an earlier manager are obeyed",
        agent.Agent,
        "_wants_changed",
        "event.epoch < self.epoch or ",
        "",
    ),
    Planted(
        "rows are given back to an earlier manager",
        agent.Agent,
        "_revoked",
        " or event.epoch < self.epoch",
        "",
    ),
    Planted(
        "rows are taken from an earlier manager",
        agent.Agent,
        "_granted",
        "event.epoch < self.epoch or ",
        "",
    ),
    Planted(
        "the job that is furthest ahead is served first",
        sharing,
        "divide",
        "job = min(hungry",
        "job = max(hungry",
    ),
    Planted(
        "a sign of life counts for nothing",
        scheduler.Scheduler,
        "_heard",
        "worker.deadline_s = self._now + self.options.silence_s",
        "pass",
    ),
    Planted(
        "a manager that slept drops all workers",
        scheduler.Scheduler,
        "_slept",
        "worker.deadline_s += seconds",
        "pass",
    ),
    Planted(
        "a worker that is back keeps its leases of before",
        scheduler.Scheduler,
        "_worker_joined",
        "self._forget_worker(self.state.workers[event.worker_id])",
        "pass",
    ),
    Planted(
        "suspects are handed out and kept",
        allocation.Allocation,
        "_isolate",
        "del job.suspects[at]",
        "pass",
    ),
    Planted(
        "suspects wait for each other's workers",
        allocation.Allocation,
        "_other_can",
        "self._others_serve(other, self._avoid(other, job, rows), job)",
        "self._others_serve(other, (), job)",
    ),
    Planted(
        "a job that is stopped never ends",
        scheduler.Scheduler,
        "_end_if_over",
        "elif job.state is JobState.DRAINING",
        "elif False",
    ),
    Planted(
        "a row that two workers have and one of them did stays with the other",
        state.State,
        "finish_rows",
        "if job.hedged.discard(spans):",
        "if False:",
    ),
    Planted(
        "a late result leaves its row in the queue",
        state.State,
        "finish_rows",
        "job.pending.discard(spans) + ",
        "",
    ),
    Planted(
        "rows that are given back are run all the same",
        agent.Agent,
        "_return",
        "lease.queue.discard(spans)",
        "lease.queue.update(spans)",
    ),
    Planted(
        "a revocation is not answered",
        agent.Agent,
        "_revoked",
        "self._return(lease, lease.queue.take(rows, last=True))",
        "pass",
    ),
    Planted(
        "a revocation of what has ended is not answered",
        agent.Agent,
        "_revoked",
        "self._out.append(SendReturned(event.lease_id, ()))",
        "pass",
    ),
    Planted(
        "a copy may take for ever",
        files.Files,
        "_make",
        "self._now + LOAD_S_MAX",
        'float("inf")',
    ),
    Planted(
        "a copy that failed is waited for",
        files.Files,
        "failed",
        "del self.copies[variant_id, level]",
        "pass",
    ),
    Planted(
        "all read the origin at once",
        fetches,
        "choose",
        'return "" if readers < ORIGIN_READERS else None',
        'return ""',
    ),
    Planted(
        "a peer serves as many as ask",
        fetches.Fetches,
        "_regroup",
        "uploads = len(spread.uploads.get(source, ()))",
        "uploads = 0",
    ),
    Planted(
        "who falls silent is believed in for ever",
        silence.Silence,
        "overdue",
        "while self._due and",
        "while False and",
    ),
]
