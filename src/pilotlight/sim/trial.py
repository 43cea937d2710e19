"""A scenario's run under one policy, and what came of it, beside the bound that no policy can beat."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass
from time import perf_counter

from pilotlight.core.allocation import Options
from pilotlight.core.transitions import JobState
from pilotlight.sim.availability import Life, come, lives
from pilotlight.sim.baselines import Baseline
from pilotlight.sim.cluster import Cluster
from pilotlight.sim.meter import Meter
from pilotlight.sim.scenario import Policy, Scenario
from pilotlight.sim.spec import Kind, Model, Work

OURS = "pervasive"
POLICIES = ("naive", "files", "shards", OURS)
BATCHED = frozenset({"naive", "files"})
COLLECT_AFTER = (50_000, 20, 100)
"""Objects made, and collections of younger generations, before each generation is collected."""
BATCHES = (1, 100, 1000, 3000, 7500)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run. batch: rows of one, 0 where there is none to choose. end_s: when the last job ended, inf:
    it had not when the scenario gave up. bound_s: when it could have at best. wall_s: what simulating it took."""

    policy: str
    batch: int
    end_s: float
    bound_s: float
    meter: Meter
    wall_s: float
    label: str = ""
    """What it is called, where that is not its policy."""

    @property
    def name(self) -> str:
        """`naive, batches of 100`, or the policy alone."""
        if self.label:
            return self.label
        return f"{self.policy}, batches of {self.batch:,}" if self.batch else self.policy

    @property
    def efficiency(self) -> float:
        """The bound's time over the time that it took."""
        return self.bound_s / self.end_s

    @property
    def used(self) -> float:
        """The part of what was there, first loads as they were taken off, that went into results."""
        left_s = self.meter.available_s - self.meter.first_load_s
        return self.meter.useful_s / left_s if left_s > 0 else 0.0


def run(scenario: Scenario, policy: str, batch: int = 0) -> Outcome:
    """Simulate a scenario under a policy; `batch` for those that have one."""
    began_s = perf_counter()
    if policy == OURS:
        scenario = _switched(scenario)
        end_s, meter = _pervasive(scenario)
    else:
        world = Baseline(scenario, batch=batch, keeps_files=policy != "naive")
        end_s, meter = (world.clock.now if world.run() else float("inf")), world.meter
    return Outcome(policy, batch, end_s, bound_s(scenario), meter, perf_counter() - began_s)


def run_all(scenario: Scenario, policies: list[str], batches: tuple[int, ...] = BATCHES) -> list[Outcome]:
    """Each policy, those with batches at each size."""
    return [run(scenario, policy, batch) for policy, batch in ways(policies, batches)]


def ways(policies: list[str], batches: tuple[int, ...]) -> list[tuple[str, int]]:
    """Each policy with each size of its batches; 0 where it has none."""
    return [(policy, batch) for policy in policies for batch in (batches if policy in BATCHED else (0,))]


def one_by_one(scenario: Scenario) -> list[tuple[str, Scenario]]:
    """The scenario with all that our policy adds switched off, then on again one by one, each with its name."""
    target = scenario.policy
    policy = dataclasses.replace(target, peers=False, parking=False, hedging=False, prefix_share=0.0)
    steps: list[tuple[str, Policy]] = [(f"{OURS}, nothing on", policy)]
    for name, change in (
        ("and peers", {"peers": target.peers}),
        ("and parking", {"parking": target.parking}),
        ("and hedging", {"hedging": target.hedging}),
        ("and prefix reuse", {"prefix_share": target.prefix_share}),
    ):
        if (changed := dataclasses.replace(policy, **change)) != policy:  # type: ignore[arg-type]
            policy = changed
            steps.append((name, policy))
    return [(name, dataclasses.replace(scenario, policy=each)) for name, each in steps]


def _switched(scenario: Scenario) -> Scenario:
    """With our policies on or off, as the scenario says."""
    policy = scenario.policy
    factor = 1.0 - policy.prefix_share
    hedges = policy.hedging
    jobs = tuple(
        dataclasses.replace(work, row_s=work.row_s * factor, may_hedge=work.may_hedge and hedges)
        for work in scenario.jobs
    )
    pace = dataclasses.replace(scenario.pace, peers=scenario.pace.peers and policy.peers)
    return dataclasses.replace(scenario, jobs=jobs, pace=pace)


def _pervasive(scenario: Scenario) -> tuple[float, Meter]:
    cluster = play(scenario, scenario.give_up_s)
    outputs = cluster.outputs.values()
    ended = len(outputs) == len(scenario.jobs) and all(output.ended is JobState.COMPLETED for output in outputs)
    return (cluster.clock.now if ended else float("inf")), cluster.meter


def play(scenario: Scenario, until_s: float) -> Cluster:
    """The real core in a scenario's world, after all its jobs have ended, or at a moment."""
    cluster, jobs = pervasive(scenario), len(scenario.jobs)
    with _few_collections():
        cluster.clock.run(lambda: len(cluster.outputs) == jobs and cluster.all_ended(), until_s)
    cluster.close()
    return cluster


@contextlib.contextmanager
def _few_collections() -> Generator[None]:
    """Look for unreachable cycles seldom: a world is a million objects that stay, and looking at them all costs a
    quarter of the time."""
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def pervasive(scenario: Scenario) -> Cluster:
    """The real core in a scenario's world, before anything has happened."""
    policy = scenario.policy
    options = Options(
        silence_s=policy.silence_s,
        horizon_s=policy.horizon_s,
        hedge_after_s=policy.hedge_after_s if policy.hedging else float("inf"),
        keep_alive_s=policy.keep_alive_s,
    )
    cluster = Cluster(scenario.models, options=options, pace=scenario.pace, origin=scenario.origin, seed=scenario.seed)
    clock = cluster.clock

    def submits(work: Work) -> Callable[[], object]:
        return lambda: cluster.submit(work)

    for work in scenario.jobs:
        clock.at(work.at_s, submits(work))

    def begin(life: Life) -> None:
        kind = life.kind if policy.parking else dataclasses.replace(life.kind, host_bytes=0)
        name = cluster.arrive(kind, life.host)
        if life.stop_s < float("inf"):
            warned_s = max(clock.now, life.stop_s - life.notice_s)
            clock.at(warned_s, lambda: cluster.depart(name, life.stop_s - warned_s))
        for at_s in life.deaths_s:
            clock.at(at_s, lambda: cluster.kill_a_replica(name))

    come(clock, scenario, begin)
    return cluster


# --- the bound


def bound_s(scenario: Scenario) -> float:
    """When all jobs could have ended at best: work flows like water at the speed of all who are there, each from the
    end of its first load on, and nothing is ever lost.

    A first load is the smallest that the scenario has, read alone from the fastest place that could have it (the disk
    where a worker of that host was before; a peer's network card, or the origin) while libraries are imported.
    inf: they can't end before the scenario gives up.
    """
    changes: list[tuple[float, int, float, float]] = [
        (work.at_s, n, 0.0, work.total_s(0, work.rows)) for n, work in enumerate(scenario.jobs)
    ]
    heapq.heapify(changes)
    jobs, speed, work_s, now = len(changes), 0.0, 0.0, 0.0
    hosts: set[str] = set()
    made = jobs
    coming = lives(scenario)
    life = next(coming, None)
    while True:
        while life is not None and (not changes or life.start_s <= changes[0][0]):
            there_s = life.start_s + min(
                load_s(scenario, life.kind, model, staged=life.host in hosts) for model in scenario.models.values()
            )
            hosts.add(life.host)
            if there_s < life.stop_s:
                rate = life.kind.speed * life.kind.devices
                for at_s, more in ((there_s, rate), (life.stop_s, -rate)):
                    made += 1
                    heapq.heappush(changes, (at_s, made, more, 0.0))
            life = next(coming, None)
        if not changes:
            return float("inf")
        at_s, _, more, added_s = heapq.heappop(changes)
        if jobs == 0 and speed > 1e-9 and now + work_s / speed <= at_s:
            end_s = now + work_s / speed
            return end_s if end_s <= scenario.give_up_s else float("inf")
        if at_s == float("inf"):
            return float("inf")
        work_s = max(0.0, work_s - speed * (at_s - now)) + added_s
        now, speed, jobs = at_s, speed + more, jobs - (added_s > 0)


def load_s(scenario: Scenario, kind: Kind, model: Model, *, staged: bool) -> float:
    """What a load takes at least, in seconds."""
    origin = scenario.origin
    fastest = max(min(origin.per_reader, origin.bytes_per_s), kind.link_bytes_per_s)
    rate = kind.disk_bytes_per_s if staged else fastest
    fetch_s = model.file_bytes / rate
    return (
        max(model.import_s, fetch_s)
        + model.start_s
        + model.file_bytes / kind.to_device_bytes_per_s
        + model.warm_s / kind.speed
    )
