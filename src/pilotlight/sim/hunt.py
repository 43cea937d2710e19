"""The hunt for bugs: run plans, check everything after every event, and say what went wrong.

A world's life: faults for a while; then all faults end, two good workers join, and every job must come to its end
(liveness), with an exact output and nothing left behind (`judge`).
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from pilotlight.core.transitions import JobState
from pilotlight.sim.cluster import Cluster
from pilotlight.sim.faults import KINDS, befall, heal
from pilotlight.sim.judge import REST_S, judge
from pilotlight.sim.plan import FAULTS_S, Plan, plan

CALM_S = 1200.0
"""So long after the last fault every job has ended; most need seconds. What waits until a load or a copy counts as
hanging (1,800 s) is stuck."""
HANGS = 60
"""So many times a row that hangs may do so before someone is given up: six times on each device of a few workers, where
nothing but that row is there to prove one."""


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
    for kind in what.workers:
        world.arrive(KINDS[kind])
    for work in what.works:
        world.clock.at(work.at_s, lambda work=work: world.submit(work))
    for fault in what.faults:
        world.clock.at(fault.at_s, lambda fault=fault: befall(world, fault))
    world.clock.run(lambda: False, FAULTS_S)
    world.spared = True
    world.clock.run(lambda: not (world.manager_down or world.manager_paused))
    for machine in world.machines.values():
        heal(machine)
    world.arrive(KINDS["big"])
    world.arrive(KINDS["big"])
    patience_s = CALM_S + HANGS * sum(work.request_timeout_s for work in what.works if work.hangs)
    ended = world.clock.run(lambda: not unfinished(world), FAULTS_S + patience_s)
    assert ended, f"these did not end: {unfinished(world)}"
    assert world.clock.run(lambda: _is_calm(world), world.clock.now + CALM_S), "not everybody is back"
    world.clock.run(lambda: False, world.clock.now + REST_S)
    judge(world, what)
    return world


def unfinished(world: Cluster) -> list[str]:
    """Jobs that have not ended, or will go on."""
    return [job_id for job_id, output in world.outputs.items() if output.ended in {None, JobState.SUSPENDED}]


def _is_calm(world: Cluster) -> bool:
    """Whether everybody is there and can talk."""
    if world.manager_down or world.manager_paused or world.scheduler.state.workers.keys() != world.machines.keys():
        return False
    now, links = world.clock.now, world.links
    return all(not m.paused and name in links and links[name].mute_s < now for name, m in world.machines.items())


def failure(what: Plan) -> Failure | None:
    """Run a plan; what went wrong, if anything."""
    try:
        run(what)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename.rsplit('/', 1)[-1]}:{last.name}"
        kind = f"{type(error).__name__} in {where}"
        return Failure(kind, f"{type(error).__name__} in {where}, line {last.lineno}: {error}")
    return None


def digest(seed: int) -> str:
    """A fingerprint of all that happens in a seed's world, to the last bit of every time."""
    seen = hashlib.sha256()
    run(plan(seed), lambda now, line: seen.update(f"{now.hex()} {line}\n".encode()))
    return seen.hexdigest()[:16]
