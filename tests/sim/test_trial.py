"""Policies and the bound against cases worked out by hand; scenarios that come along; recorded spot markets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pilotlight.sim import scenario as sc
from pilotlight.sim.scenario import Policy, Scenario, Supply
from pilotlight.sim.spec import Kind, Model, Origin, Pace, Work
from pilotlight.sim.trial import OURS, Outcome, bound_s, one_by_one, run

LOAD_S = 5.0 + 1.0 + 10.0 + 1.0 + 2.0
"""Import, start, from the origin, to the device, warm."""
RELOAD_S = 5.0 + 1.0 + 2.0 + 1.0 + 2.0
"""The same from the disk."""
BOUND_S = 5.0 + 1.0 + 1.0 + 2.0
"""A first load at best: the import, while files come from a peer; start, to the device, warm."""

KIND = Kind("k", memory_bytes=10, disk_bytes_per_s=500.0, link_bytes_per_s=1000.0, to_device_bytes_per_s=1000.0)
WORLD = Scenario(
    title="small",
    models={"m": Model("m", memory_bytes=4, file_bytes=1000, import_s=5.0, start_s=1.0, warm_s=2.0)},
    kinds={"k": KIND, "slow": dataclasses.replace(KIND, name="slow", speed=0.5)},
    jobs=(Work(1000, "m", row_s=0.1),),
    workers=(Supply("k", 1),),
    origin=Origin(bytes_per_s=100.0, per_reader=100.0, latency_s=0.0),
    pace=Pace(step_s=1.0),
    give_up_s=100_000.0,
)
TRACES = sorted((Path(__file__).parents[3] / "shared" / "data" / "spot-traces").glob("*.json"))


def with_workers(*workers: Supply) -> Scenario:
    return dataclasses.replace(WORLD, workers=workers)


@pytest.mark.parametrize(
    ("policy", "batch", "end_s", "loads"),
    [
        ("naive", 100, 10 * LOAD_S + 100.0, {"origin": 10}),
        ("naive", 1000, LOAD_S + 100.0, {"origin": 1}),
        ("naive", 7500, LOAD_S + 100.0, {"origin": 1}),
        ("files", 100, LOAD_S + 9 * RELOAD_S + 100.0, {"origin": 1, "disk": 9}),
        ("shards", 0, LOAD_S + 100.0, {"origin": 1}),
    ],
)
def test_one_worker_pays_a_load_per_batch(policy: str, batch: int, end_s: float, loads: dict[str, int]) -> None:
    outcome = run(WORLD, policy, batch)
    assert outcome.end_s == pytest.approx(end_s)
    assert outcome.meter.loads == loads
    assert outcome.meter.bytes["origin"] == 1000 * loads["origin"]
    assert outcome.meter.useful_s == pytest.approx(100.0)
    assert outcome.meter.device_s == pytest.approx(end_s)
    assert outcome.meter.rows == 1000
    assert outcome.bound_s == pytest.approx(BOUND_S + 100.0)
    assert outcome.efficiency == pytest.approx((BOUND_S + 100.0) / end_s)


PREEMPTED = with_workers(Supply("k", changes=((0.0, 1), (25.0, -1), (26.0, 1))))
"""The first worker is preempted six seconds after its first load, and the next one comes a second later."""


def test_a_preempted_batch_begins_again() -> None:
    outcome = run(PREEMPTED, "naive", 100)
    assert outcome.end_s == pytest.approx(26.0 + 10 * LOAD_S + 100.0)
    assert outcome.meter.lost_s == pytest.approx(6.0)


def test_a_preempted_shard_goes_on_where_it_was() -> None:
    outcome = run(PREEMPTED, "shards")
    assert outcome.end_s == pytest.approx(26.0 + LOAD_S + 94.0, abs=0.2)
    assert outcome.meter.rows_lost <= 1


def test_nobody_helps_with_a_slow_workers_shard() -> None:
    outcome = run(with_workers(Supply("k", 1), Supply("slow", 1)), "shards")
    assert outcome.end_s == pytest.approx(5.0 + 1.0 + 20.0 + 1.0 + 4.0 + 500 * 0.1 / 0.5)


def test_a_preempted_workers_shard_goes_to_whoever_is_free() -> None:
    outcome = run(with_workers(Supply("k", 1), Supply("k", changes=((0.0, 1), (10.0, -1)))), "shards")
    assert outcome.meter.loads == {"origin": 1}
    assert outcome.end_s == pytest.approx(5.0 + 1.0 + 12.0 + 3.0 + 100.0)  # half of the origin for 4 s


def test_a_job_that_comes_later_is_counted_from_then_on() -> None:
    later = dataclasses.replace(WORLD, jobs=(Work(100, "m", row_s=0.1), Work(100, "m", row_s=0.1, at_s=500.0)))
    assert bound_s(later) == pytest.approx(510.0)
    assert run(later, "shards").end_s == pytest.approx(510.0)


def test_a_life_shorter_than_a_load_is_worth_nothing() -> None:
    assert bound_s(with_workers(Supply("k", changes=((0.0, 1), (BOUND_S - 1.0, -1))))) == float("inf")
    both = with_workers(Supply("k", 1), Supply("slow", changes=((0.0, 1), (BOUND_S - 1.0, -1))))
    assert bound_s(both) == pytest.approx(BOUND_S + 100.0)


def test_what_cannot_end_gives_up() -> None:
    outcome = run(dataclasses.replace(WORLD, give_up_s=50.0), "shards")
    assert outcome.end_s == float("inf")
    assert 0 < outcome.meter.rows < 1000


def test_spread_requests_take_as_long_together_under_any_policy() -> None:
    spread = dataclasses.replace(WORLD, jobs=(Work(1000, "m", row_s=0.1, sigma=0.8),))
    seconds = sum(map(spread.jobs[0].seconds, range(1000)))
    assert run(spread, "shards").end_s == pytest.approx(LOAD_S + seconds)
    assert run(spread, "naive", 1000).end_s == pytest.approx(LOAD_S + seconds)
    assert bound_s(spread) == pytest.approx(BOUND_S + seconds)


# --- ours


MANY = with_workers(Supply("k", 6, life_s=120.0, away_s=10.0), Supply("slow", 4, life_s=120.0, away_s=10.0))
MANY = dataclasses.replace(MANY, jobs=(Work(20_000, "m", row_s=0.1),), pace=Pace(step_s=3.0, tick_s=1.0))


def facts(outcome: Outcome) -> tuple[object, ...]:
    meter = outcome.meter
    return outcome.end_s, meter.loads, meter.bytes, meter.lost_s, meter.curve, meter.present


@pytest.mark.parametrize("policy", ["naive", "files", "shards", OURS])
def test_a_seed_is_the_same_world_again(policy: str) -> None:
    batch = 100 if policy in {"naive", "files"} else 0
    assert facts(run(MANY, policy, batch)) == facts(run(MANY, policy, batch))
    other = dataclasses.replace(MANY, seed=2)
    assert facts(run(MANY, policy, batch)) != facts(run(other, policy, batch))


def test_switches_are_real() -> None:
    steps = one_by_one(dataclasses.replace(MANY, policy=Policy(prefix_share=0.5)))
    assert [name for name, _ in steps] == [
        "pervasive, nothing on", "and peers", "and parking", "and hedging", "and prefix reuse"
    ]  # fmt: skip
    bare, peers, parking, hedging, prefix = (run(world, OURS) for _, world in steps)
    assert "peer" not in bare.meter.bytes
    assert "peer" in peers.meter.bytes
    assert "parked" not in peers.meter.loads
    assert "parked" in parking.meter.loads
    assert hedging.end_s <= parking.end_s
    assert prefix.end_s < 0.75 * hedging.end_s


@pytest.mark.parametrize("name", ["paper-20", "paper-186", "spot"])
def test_ours_is_within_a_tenth_of_the_bound(name: str) -> None:
    settings = {"jobs.sigma": "0", "pace.step_s": "10", "pace.tick_s": "2", "pace.heard_s": "5"}
    settings |= {"jobs.rows": "200_000"} if name == "spot" else {"jobs.rows": "100_000", "pace.step_s": "5"}
    outcome = run(sc.read(sc.find(name), settings), OURS)
    assert 0.9 <= outcome.efficiency <= 1.001


def test_every_scenario_that_comes_along_reads() -> None:
    assert {"paper-20", "paper-186", "spot", "slurm-backfill", "day-10000"} <= set(sc.shipped())


@pytest.mark.skipif(not TRACES, reason="the recorded markets (../shared/data) are not here")
@pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.stem)
def test_ours_is_within_a_tenth_of_the_bound_on_a_recorded_market(trace: Path) -> None:
    most = max(json.loads(trace.read_text())["data"])
    supply = Supply("v100", trace=str(trace), trace_from_s=3 * 86_400.0, notice_s=120.0)
    settings = {
        "jobs.sigma": "0",
        "jobs.rows": str(12_000 * most),
        "pace.step_s": "20",
        "pace.tick_s": "4",
        "pace.heard_s": "5",
    }
    world = dataclasses.replace(sc.read(sc.find("spot"), settings), workers=(supply,))
    assert 0.9 <= run(world, OURS).efficiency <= 1.001


def busy(*jobs: Work, **pace: float) -> Scenario:
    """Workers that come and go while they work, one row in ten seconds on two kinds of device."""
    return dataclasses.replace(
        WORLD,
        jobs=jobs,
        workers=(
            Supply("k", 10, every_s=3.0, life_s=600.0, away_s=60.0, keeps_disk=True),
            Supply("slow", 10, every_s=2.0, life_s=600.0, away_s=60.0, keeps_disk=True),
        ),
        origin=Origin(),
        pace=Pace(step_s=1.0, **pace),
    )


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_steps_that_are_reported_together_are_as_good_as_single_ones(sigma: float) -> None:
    job = Work(100_000, "m", row_s=0.1, sigma=sigma)
    each, together = run(busy(job), OURS), run(busy(job, report_s=120.0), OURS)
    assert together.end_s == pytest.approx(each.end_s, rel=0.01)
    assert together.meter.lost > 10
    assert together.meter.lost_s < 2.0 * together.meter.lost
    assert together.meter.useful_s == pytest.approx(each.meter.useful_s)
    assert len(together.meter.curve) < len(each.meter.curve) / 3


def test_a_row_that_kills_takes_no_more_with_it_where_steps_are_reported_together() -> None:
    job = Work(
        20_000, "m", row_s=0.1, poison=frozenset({7_000, 15_000}), hangs=frozenset({11_111}), request_timeout_s=20
    )
    each, together = run(busy(job), OURS), run(busy(job, report_s=120.0), OURS)
    assert together.meter.rows == each.meter.rows == 20_000
    assert together.end_s < each.end_s + 120.0, "not even one report's time is lost"
    assert together.meter.lost_s < 2 * each.meter.lost_s


def test_replicas_that_share_a_device_go_on_step_by_step() -> None:
    two = dataclasses.replace(
        busy(Work(6_000, "m", row_s=0.1), Work(3_000, "n", row_s=0.1, at_s=40.0)),
        models={**WORLD.models, "n": dataclasses.replace(WORLD.models["m"], variant_id="n")},
        workers=(Supply("k", 1),),
    )
    each = run(two, OURS)
    together = run(dataclasses.replace(two, pace=dataclasses.replace(two.pace, report_s=120.0)), OURS)
    assert together.end_s == pytest.approx(each.end_s, rel=0.02)
