"""The virtual world against cases worked out by hand: how long things take, and that what is lost comes back."""

from __future__ import annotations

import dataclasses

import pytest

from pilotlight.core.allocation import Options
from pilotlight.core.transitions import JobState
from pilotlight.sim.cluster import Cluster
from pilotlight.sim.spec import Kind, Model, Origin, Pace, Work

MODEL = Model("m", memory_bytes=4, file_bytes=1000, import_s=5.0, start_s=1.0, warm_s=2.0)
KIND = Kind(
    memory_bytes=10,
    host_bytes=0,
    disk_bytes_per_s=500.0,
    link_bytes_per_s=1000.0,
    to_device_bytes_per_s=1000.0,
)
ORIGIN = Origin(bytes_per_s=100.0, per_reader=100.0, latency_s=0.0)
LOAD_S = 10.0 + 1.0 + 2.0 + 1.0 + 2.0
"""From the origin to the disk, while libraries are imported; fork, from the disk, to the device, warm."""


def world(**more: object) -> Cluster:
    return Cluster({"m": MODEL}, origin=ORIGIN, checking=True, **more)  # type: ignore[arg-type]


def exact(cluster: Cluster, job_id: str = "job-1") -> None:
    output = cluster.outputs[job_id]
    assert output.ended is JobState.COMPLETED, cluster.notes[-5:]
    assert output.done.spans() == [(0, output.work.rows)]


def test_one_worker_takes_a_load_and_its_work() -> None:
    cluster = world()
    cluster.arrive(KIND)
    cluster.submit(Work(1000, "m", row_s=0.1))
    assert cluster.run(1e4)
    exact(cluster)
    assert cluster.clock.now == pytest.approx(LOAD_S + 100.0, abs=1.0)
    cluster.close()
    assert cluster.meter.useful_s == pytest.approx(100.0)
    assert cluster.meter.loads == {"staged": 1}
    assert cluster.meter.bytes == {"origin": 1000, "disk": 1000}
    assert cluster.meter.rows_lost == cluster.meter.rows_repeated == 0


def test_a_slower_device_takes_longer_and_gets_less() -> None:
    cluster = world()
    cluster.arrive(KIND)
    cluster.arrive(Kind("slow", 0.25, memory_bytes=10, host_bytes=0))
    cluster.submit(Work(4000, "m", row_s=0.1))
    assert cluster.run(1e4)
    exact(cluster)
    rows = {name: sum(p.answered for p in machine.processes.values()) for name, machine in cluster.machines.items()}
    assert rows["worker-1"] == pytest.approx(4 * rows["worker-2"], rel=0.1)


def test_two_models_on_a_device_share_its_time() -> None:
    cluster = Cluster({"m": MODEL, "n": dataclasses.replace(MODEL, variant_id="n")}, origin=ORIGIN, checking=True)
    cluster.arrive(KIND)
    cluster.submit(Work(1000, "m", row_s=0.1))
    cluster.submit(Work(1000, "n", row_s=0.1))
    assert cluster.run(1e4)
    exact(cluster)
    exact(cluster, "job-2")
    cluster.close()
    assert cluster.meter.useful_s <= cluster.meter.available_s
    assert cluster.clock.now > LOAD_S + 195.0


def test_a_killed_worker_loses_what_it_had_begun_and_nothing_else() -> None:
    cluster = world(pace=Pace(step_s=1.0))
    first, _ = cluster.arrive(KIND), cluster.arrive(KIND)
    cluster.submit(Work(1000, "m", row_s=0.1))
    cluster.clock.at(60.0, lambda: cluster.depart(first))
    assert cluster.run(1e4)
    exact(cluster)
    assert 1 <= cluster.meter.rows_lost <= 10
    assert cluster.outputs["job-1"].attempts == {}


def test_a_warned_worker_loses_nothing() -> None:
    cluster = world(pace=Pace(step_s=1.0))
    first, _ = cluster.arrive(KIND), cluster.arrive(KIND)
    cluster.submit(Work(1000, "m", row_s=0.1))
    cluster.clock.at(60.0, lambda: cluster.depart(first, grace_s=5.0))
    assert cluster.run(1e4)
    exact(cluster)
    assert cluster.meter.rows_lost == 0


def test_what_a_disk_holds_outlives_the_worker() -> None:
    cluster = world()
    cluster.arrive(KIND, host="node")
    cluster.submit(Work(1000, "m", row_s=0.1))
    cluster.clock.at(60.0, lambda: cluster.depart("worker-1"))
    cluster.clock.at(70.0, lambda: cluster.arrive(KIND, host="node"))
    assert cluster.run(1e4)
    exact(cluster)
    assert cluster.meter.bytes == {"origin": 1000, "disk": 2000}


@pytest.mark.parametrize("at_s", [5.0, 20.0, 21.5, 60.3])
def test_a_manager_that_dies_finds_everything_again(at_s: float) -> None:
    cluster = world()
    for _ in range(2):
        cluster.arrive(KIND)
    cluster.submit(Work(1000, "m", row_s=0.1))
    cluster.clock.at(at_s, lambda: cluster.crash_manager(3.0))
    assert cluster.run(1e4)
    exact(cluster)
    assert cluster.epoch == 2
    assert sum(cluster.meter.loads.values()) == 2  # both are still warm


def test_a_cut_connection_brings_results_twice_and_rows_once() -> None:
    cluster = world(pace=Pace(step_s=0.2, message_s=0.3))
    cluster.arrive(KIND)
    cluster.submit(Work(1000, "m", row_s=0.1))
    for second in range(30, 100, 7):
        cluster.clock.at(float(second), lambda: cluster.cut("worker-1"))
    assert cluster.run(1e4)
    exact(cluster)


def test_a_worker_without_power_is_missed_after_a_while() -> None:
    cluster = world(options=Options(silence_s=10.0))
    first, _ = cluster.arrive(KIND), cluster.arrive(KIND)
    cluster.submit(Work(1000, "m", row_s=0.1))
    cluster.clock.at(60.0, lambda: cluster.vanish(first))
    assert cluster.run(1e4)
    exact(cluster)
    assert any("silent" in text for _, _, text in cluster.notes)


def test_poison_becomes_one_error_row() -> None:
    cluster = world()
    cluster.arrive(KIND)
    cluster.arrive(KIND)
    cluster.submit(Work(200, "m", row_s=0.1, poison=frozenset({77})))
    assert cluster.run(1e4)
    exact(cluster)
    assert cluster.outputs["job-1"].errors == {77: "killed_replica"}
