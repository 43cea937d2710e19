"""The hunt for bugs: run plans, check everything after every event, shorten what fails, and tell it.

A world's life: faults for a minute; then all faults end, two good workers join, and every job must come to its end
(liveness), with an exact output and nothing left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.ranges import span_count
from pilotlight.core.transitions import JobState
from pilotlight.sim.cluster import Cluster
from pilotlight.sim.machine import Machine, variant_of
from pilotlight.sim.plan import FAULTS_S, KINDS, Fault, Plan, plan

CALM_S = 3000.0
"""So long after the last fault every job has ended: a job of 300 s of work on one slow worker, behind others, with a
few rows that hang for their whole timeout three times."""
OWED_ROWS = 600
"""The most that a job is owed: a few leases of the largest worker here, at 2 s and 100 rows/s each."""
REST_S = 30.0
"""So long after the last job nothing is left of any."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong: the kind of it (for telling whether a shorter plan still fails alike), and the words."""

    kind: str
    text: str


def run(what: Plan, watch: Callable[[float, str], None] | None = None) -> Cluster:
    """Run a plan to its end. Raises AssertionError, or whatever the core raises, where something must not be."""
    world = Cluster(
        {model.variant_id: model for model in what.models},
        options=what.options,
        pace=what.pace,
        seed=what.seed,
        checking=True,
    )
    world.meter.watch = watch
    world.on_grant = Fairness(world).granted
    for kind in what.workers:
        world.arrive(KINDS[kind])
    for work in what.works:
        world.clock.at(work.at_s, lambda work=work: world.submit(work))
    for fault in what.faults:
        world.clock.at(fault.at_s, lambda fault=fault: befall(world, fault))
    world.clock.run(lambda: False, FAULTS_S)
    for machine in world.machines.values():
        machine.bad.clear()
        machine.unloadable.clear()
        machine.failing_copies = False
    world.arrive(KINDS["big"])
    world.arrive(KINDS["big"])
    assert world.run(FAULTS_S + CALM_S), f"these did not end: {_unfinished(world)}"
    world.clock.run(lambda: False, world.clock.now + REST_S)
    _judge(world, what)
    return world


class Fairness:
    """No job waits for ever behind another of its variant: what a job is owed (rows that others were granted while it
    had some to hand out, by weight) stays bounded."""

    def __init__(self, world: Cluster) -> None:
        self._world = world
        self._owed: dict[str, float] = {}

    def granted(self, grant: do.GrantRows) -> None:
        """A job was granted rows."""
        jobs = self._world.scheduler.state.jobs
        job = jobs[grant.job_id]
        self._owed[grant.job_id] = 0.0
        for other in self._world.scheduler.state.jobs_of(job.variant_id):
            if other is not job and other.pending and other.state is JobState.RUNNING:
                owed = self._owed.get(other.job_id, 0.0) + span_count(grant.spans) * other.weight / job.weight
                self._owed[other.job_id] = owed
                assert owed <= OWED_ROWS, f"{other.job_id} starves behind {job.job_id}: it is owed {owed:.0f} rows"


def befall(world: Cluster, fault: Fault) -> None:
    """Do a fault to a world, where there is something to do it to."""
    match fault.action:
        case "arrive":
            kind, _, host = fault.detail.partition("@")
            world.arrive(KINDS[kind], host)
        case "pause manager":
            world.pause_manager(fault.seconds)
        case "crash manager":
            world.crash_manager(fault.seconds / 3)
        case "pin" | "unpin" | "evict":
            model = _one(sorted(world.models), fault.pick)
            world.ask(lambda: _residence(world, fault.action, model))
        case "drain job" | "cancel job":
            running = [job_id for job_id, output in world.outputs.items() if output.ended is None]
            if running and fault.pick < 0.5:
                job_id = _one(running, fault.pick * 2)
                world.ask(lambda: world.cancel(job_id, drain=fault.action == "drain job"))
        case _:
            if world.machines:
                _at_worker(world, fault, world.machines[_one(sorted(world.machines), fault.pick)])


def _at_worker(world: Cluster, fault: Fault, machine: Machine) -> None:
    match fault.action:
        case "depart":
            world.depart(machine.name)
        case "warn":
            world.depart(machine.name, grace_s=fault.seconds)
        case "vanish":
            world.vanish(machine.name)
        case "kill replica" if machine.processes:
            machine.kill_replica(_one(sorted(machine.processes), fault.pick))
        case "cut":
            world.cut(machine.name)
        case "pause worker":
            machine.pause(fault.seconds)
        case "bad device":
            machine.bad.add(machine.facts[0].device_id)
        case "unloadable device":
            machine.unloadable.add(machine.facts[0].device_id)
        case "failing copies":
            machine.failing_copies = True
        case "heal":
            machine.bad.clear()
            machine.unloadable.clear()
            machine.failing_copies = False
        case "repeat results":
            world.repeat_results(machine.name)
        case "stale commands":
            world.stale_commands(machine.name)
        case _:
            pass


def _residence(world: Cluster, action: str, model: str) -> None:
    if action == "evict":
        if model in world.scheduler.state.variants and not world.scheduler.state.jobs_of(model):
            world.manager(ev.VariantEvicted(model))
        return
    world.manager(ev.VariantPinned(variant_of(world.models[model]), on=action == "pin"))


def _one(things: list[str], pick: float) -> str:
    return things[int(pick * len(things))]


# --- what must have come of it


def _unfinished(world: Cluster) -> list[str]:
    return [job_id for job_id, output in world.outputs.items() if output.ended is None]


def _judge(world: Cluster, what: Plan) -> None:
    """Outputs are exact, charges just, and nothing is left."""
    deadly = {"bad device", "kill replica"} & {fault.action for fault in what.faults}
    for job_id, output in world.outputs.items():
        work = output.work
        to_blame = work.poison | work.hangs
        assert to_blame or deadly or not output.errors, f"{job_id}: healthy rows became errors: {output.errors}"
        assert to_blame or deadly or not output.attempts, f"{job_id}: rows were charged: {output.attempts}"
        if output.ended is JobState.COMPLETED:
            whole = [(0, work.rows)] if work.rows else []
            assert output.done.spans() == whole, f"{job_id} has holes: {output.done}"
            assert to_blame <= set(output.errors), f"{job_id}: {to_blame - set(output.errors)} were answered"
        elif output.ended is JobState.FAILED:
            assert _may_fail(output.message, what, len(to_blame) == work.rows), f"{job_id} failed: {output.message}"
        else:
            assert output.cancelled, f"{job_id} ended {output.ended} and nobody asked for that"
    state = world.scheduler.state
    assert not state.leases, f"leases outlive all jobs: {list(state.leases)}"
    for machine in world.machines.values():
        assert not machine.agent.leases, f"{machine.name} holds leases of ended jobs: {list(machine.agent.leases)}"


def _may_fail(message: str, what: Plan, only_bad_rows: bool) -> bool:
    """A job may fail where no device can hold its model, or none ever had a result of it."""
    acts = {fault.action for fault in what.faults}
    if "needs about" in message:
        return "small" in message or any(model.declared_bytes is not None for model in what.models)
    if "can't be loaded here" in message:
        return "unloadable device" in acts
    return only_bad_rows or bool({"bad device", "kill replica"} & acts)


# --- failures


def failure(what: Plan) -> Failure | None:
    """Run a plan; what went wrong, if anything."""
    try:
        run(what)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1]
        where = f"{last.filename.rsplit('/', 1)[-1]}:{last.name}"
        kind = f"{type(error).__name__} in {where}"
        return Failure(kind, f"{type(error).__name__} in {where}, line {last.lineno}: {error}")
    return None


def shorten(what: Plan, kind: str, seconds: float = 20.0) -> Plan:
    """A plan with fewer faults, jobs, workers and rows that still fails in the same way; looked for so long."""
    until = time.monotonic() + seconds
    changed = True
    while changed:
        changed = False
        for shorter in _shorter(what):
            if time.monotonic() > until:
                return what
            found = failure(shorter)
            if found is not None and found.kind == kind:
                what, changed = shorter, True
                break
    return what


def _shorter(what: Plan) -> Iterator[Plan]:
    """Plans that lack something, the most first."""
    size = len(what.faults)
    part = size
    while part >= 1:
        for start in range(0, size, part):
            yield dataclasses.replace(what, faults=what.faults[:start] + what.faults[start + part :])
        part //= 2
    for n in range(len(what.works)) if len(what.works) > 1 else ():
        yield dataclasses.replace(what, works=what.works[:n] + what.works[n + 1 :])
    for n in range(len(what.workers)):
        yield dataclasses.replace(what, workers=what.workers[:n] + what.workers[n + 1 :])
    for n, work in enumerate(what.works):
        if work.rows > 1:
            rows = work.rows // 2
            kept = {index for index in work.poison if index < rows}, {index for index in work.hangs if index < rows}
            fewer = dataclasses.replace(work, rows=rows, poison=frozenset(kept[0]), hangs=frozenset(kept[1]))
            yield dataclasses.replace(what, works=(*what.works[:n], fewer, *what.works[n + 1 :]))
    if what.pace.jitter_s:
        yield dataclasses.replace(what, pace=dataclasses.replace(what.pace, jitter_s=0.0))


def story(what: Plan, text: str, lines: int = 25) -> list[str]:
    """The last events of a failing plan that name what its failure names (a job, a worker, a lease), or the last."""
    told: deque[tuple[float, str]] = deque(maxlen=5000)
    with contextlib.suppress(Exception):  # it is known; what led to it is wanted
        run(what, lambda now, line: told.append((now, line)))
    names = set(re.findall(r"\b(?:job|worker|lease)-[\w.]+\b", text))
    concerned = [pair for pair in told if any(re.search(rf"\b{re.escape(name)}\b", pair[1]) for name in names)]
    return [f"{now:10.3f} s  {line}" for now, line in (concerned or list(told))[-lines:]]


def digest(seed: int) -> str:
    """A fingerprint of all that happens in a seed's world, to the last bit of every time."""
    seen = hashlib.sha256()
    run(plan(seed), lambda now, line: seen.update(f"{now.hex()} {line}\n".encode()))
    return seen.hexdigest()[:16]
