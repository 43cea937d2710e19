from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pilotlight.cli import main
from pilotlight.core.decisions import ManagerDecision
from pilotlight.core.errors import ConfigError
from pilotlight.core.events import ManagerEvent
from pilotlight.io import eventfile
from pilotlight.manager.eventlog import EventLog
from pilotlight.sim.calibrate import Calibrated, calibrated
from pilotlight.sim.cluster import Cluster
from pilotlight.sim.measured import measure
from pilotlight.sim.nearness import compare, play
from pilotlight.sim.rates import fit, measured_cells
from pilotlight.sim.scenario import read, to_toml
from pilotlight.sim.spec import Kind, Model, Origin, Pace, Work

MODEL = Model("tiny", memory_bytes=600_000_000, file_bytes=500_000_000, import_s=3.0, start_s=0.2, warm_s=0.5)
FAST = Kind("fast", memory_bytes=8_000_000_000)
SLOW = Kind("slow", speed=0.4, memory_bytes=8_000_000_000)
ORIGIN = Origin(bytes_per_s=4e8, per_reader=2e8, latency_s=0.0)
PACE = Pace(step_s=0.4, tick_s=0.1)
ERROR_MAX = 0.03


def logged(folder: Path, live: Callable[[Cluster], None], *, until_s: float = 3600.0) -> Cluster:
    """Simulate a world, and keep the log that its manager would keep."""
    cluster = Cluster({"tiny": MODEL}, origin=ORIGIN, pace=PACE)
    log = EventLog(folder, epoch=1, pool="simulated")
    began_s, handle = log._began_s, cluster.scheduler.handle

    def handled(event: ManagerEvent, now: float) -> list[ManagerDecision]:
        decisions = handle(event, now)
        log.record(event, decisions, began_s + now)
        return decisions

    cluster.scheduler.handle = handled  # type: ignore[method-assign]
    live(cluster)
    assert cluster.run(until_s)
    log.flush(began_s + cluster.clock.now)
    log.close()
    cluster.close()
    return cluster


def from_log(folder: Path) -> Calibrated:
    return calibrated(measure(eventfile.read(folder)), "again")


def near(folder: Path) -> None:
    compared = compare(from_log(folder))
    for each in compared:
        assert each.error is not None
        assert abs(each.error) < ERROR_MAX, compared


def two_of_a_kind(cluster: Cluster) -> None:
    cluster.arrive(FAST)
    cluster.arrive(FAST)
    cluster.submit(Work(8000, "tiny", row_s=0.01))


def mixed_with_losses(cluster: Cluster) -> None:
    for kind in (FAST, SLOW, FAST):
        cluster.arrive(kind)
    cluster.submit(Work(20_000, "tiny", row_s=0.01))
    cluster.clock.at(20.0, lambda: cluster.depart("worker-1"))
    cluster.clock.at(25.0, lambda: cluster.arrive(FAST))
    cluster.clock.at(40.0, lambda: cluster.depart("worker-2", 5.0))


def two_jobs(cluster: Cluster) -> None:
    cluster.arrive(FAST)
    cluster.arrive(SLOW)
    cluster.submit(Work(6000, "tiny", row_s=0.01))
    cluster.clock.at(15.0, lambda: cluster.submit(Work(2000, "tiny", row_s=0.02, weight=2.0)))
    cluster.clock.run(lambda: len(cluster.outputs) == 2)


def two_models_on_one_device(cluster: Cluster) -> None:
    cluster.models["other"] = dataclasses.replace(MODEL, variant_id="other", file_bytes=300_000_000)
    cluster.arrive(FAST)
    cluster.submit(Work(3000, "tiny", row_s=0.01))
    cluster.submit(Work(2000, "other", row_s=0.02))


def narrow_host(cluster: Cluster) -> None:
    kind = dataclasses.replace(FAST, abreast=1.0)
    cluster.arrive(kind, "narrow")
    cluster.arrive(kind, "narrow")
    cluster.submit(Work(8000, "tiny", row_s=0.01))
    cluster.clock.at(40.0, lambda: cluster.depart("worker-2"))


def no_model_at_all(cluster: Cluster) -> None:
    cluster.models["tiny"] = dataclasses.replace(MODEL, memory_bytes=0, file_bytes=0)
    cluster.arrive(dataclasses.replace(FAST, memory_bytes=1_000_000))
    cluster.submit(Work(500, "tiny", row_s=0.01))


def killed_replicas(cluster: Cluster) -> None:
    two_of_a_kind(cluster)
    for at_s in (15.0, 30.0):
        cluster.clock.at(at_s, lambda: cluster.kill_a_replica("worker-2"))


@pytest.mark.parametrize(
    "live",
    [
        two_of_a_kind,
        mixed_with_losses,
        two_jobs,
        two_models_on_one_device,
        narrow_host,
        killed_replicas,
        no_model_at_all,
    ],
    ids=lambda live: live.__name__,
)
def test_a_world_made_of_a_log_takes_as_long(tmp_path: Path, live: Callable[[Cluster], None]) -> None:
    logged(tmp_path, live)
    near(tmp_path)


def test_what_the_world_was_made_of_is_found_again(tmp_path: Path) -> None:
    logged(tmp_path, mixed_with_losses)
    found = from_log(tmp_path)
    scenario = found.scenario
    (model,) = scenario.models.values()
    assert model.file_bytes == MODEL.file_bytes
    assert model.memory_bytes == MODEL.memory_bytes
    assert model.import_s == pytest.approx(MODEL.import_s)
    assert model.start_s == pytest.approx(MODEL.start_s, abs=0.05)
    assert model.warm_s == pytest.approx(MODEL.warm_s, rel=0.1)
    (job,) = scenario.jobs
    assert job.rows == 20_000
    assert job.row_s == pytest.approx(0.01, rel=0.05)
    assert scenario.origin.per_reader == pytest.approx(ORIGIN.bytes_per_s / 3, rel=0.1)
    speeds = sorted(kind.speed for kind in scenario.kinds.values())
    assert speeds == [pytest.approx(0.4, rel=0.05), 1.0]
    assert scenario.pace.step_s == pytest.approx(PACE.step_s, rel=0.05)
    lost, leaves = (supply for supply in scenario.workers if supply.until_s is not None)
    assert (lost.until_s, lost.notice_s) == (pytest.approx(20.0, abs=0.1), 0.0)
    assert (leaves.until_s, leaves.notice_s) == (pytest.approx(45.0, abs=0.1), 5.0)
    assert not found.notes


def test_a_replica_that_died_dies_again(tmp_path: Path) -> None:
    logged(tmp_path, killed_replicas)
    found = from_log(tmp_path)
    deaths = [supply.deaths_s for supply in found.scenario.workers]
    assert deaths == [(), (pytest.approx(15.0, abs=0.1), pytest.approx(30.0, abs=0.1))]
    assert sum(play(found).meter.loads.values()) == 4


def test_how_much_a_host_can_do_at_once_is_found_where_it_varied(tmp_path: Path) -> None:
    logged(tmp_path, narrow_host)
    run = measure(eventfile.read(tmp_path))
    assert {cell.busy for cell in measured_cells(run)} >= {1, 2}
    assert fit(run).abreast["narrow"] == pytest.approx(1.0, abs=0.15)


def test_a_job_that_always_shared_a_replica_took_what_the_other_left(tmp_path: Path) -> None:
    logged(tmp_path, two_jobs)
    row_s = fit(measure(eventfile.read(tmp_path))).row_s
    assert row_s["job-2"] / row_s["job-1"] == pytest.approx(2.0, rel=0.05)


def test_a_scenario_file_plays_as_what_it_was_written_from(tmp_path: Path) -> None:
    logged(tmp_path, mixed_with_losses)
    found = from_log(tmp_path)
    path = tmp_path / "again.toml"
    path.write_text(to_toml(found.scenario))
    again = dataclasses.replace(found, scenario=read(path))
    ends = [play(each).outputs["job-1"].ended_s for each in (found, again)]
    assert ends[0] == ends[1]


# --- logs that say too little


def line(**fields: object) -> str:
    return json.dumps(fields) + "\n"


HEADER = line(log=1, pilotlight="0.0.1", epoch=1, began=1e9)
SUBMITTED = line(
    n=1,
    t=0.0,
    event={"JobSubmitted": {"job_id": "job-1", "name": "a", "variant": {"variant_id": "v-1", "name": "v"}}},
)
ENDED = line(
    n=3,
    t=2.0,
    event={"Tick": {}},
    do=[{"EndJob": {"job_id": "job-1", "state": "completed", "kind": "", "message": ""}}],
)
READ = line(n=2, t=0.1, event={"RowsRead": {"job_id": "job-1", "start": 0, "stop": 10, "exhausted": True}})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is empty"),
        ("{]\n" * 3, "no line of it can be read"),
        (HEADER, "no job of the run was completed"),
        (HEADER + SUBMITTED, "no job of the run was completed"),
        (HEADER + SUBMITTED + READ + ENDED, "which workers did the rows"),
    ],
    ids=["empty", "garbage", "no job", "job not ended", "no rows"],
)
def test_a_log_that_says_too_little_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    (tmp_path / eventfile.NAME).write_text(text)
    with pytest.raises(ConfigError, match=told):
        from_log(tmp_path)
    assert main.invoke(["calibrate", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert str(tmp_path) in error
    assert error.count("\n") == 1


def test_an_old_log_without_stages_causes_and_notices_will_do(tmp_path: Path) -> None:
    logged(tmp_path, mixed_with_losses)
    path = tmp_path / eventfile.NAME
    old: list[str] = []
    for text in path.read_text().splitlines():
        record = json.loads(text)
        record.pop("because", None)
        for event in record.get("event", {}).values():
            event.pop("grace_s", None)
            event.get("fact", {}).pop("stages", None)
        old.append(json.dumps(record) + "\n")
    path.write_text("".join(old))
    compared = compare(from_log(tmp_path))
    assert all(each.error is not None and abs(each.error) < 0.1 for each in compared), compared


# --- the command


def test_the_command_writes_a_scenario_and_says_how_near_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged(tmp_path, two_of_a_kind)
    out = tmp_path / "scenario.toml"
    assert main.invoke(["calibrate", str(tmp_path), "-o", str(out), "--check"]) == 0
    said = capsys.readouterr()
    assert "real" in said.out
    assert "simulated" in said.out
    assert " %" in said.out
    assert read(out) == dataclasses.replace(from_log(tmp_path).scenario, title=read(out).title, folder=str(tmp_path))
    assert main.invoke(["calibrate", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("title = ")
    assert "error" in said.err


def test_a_time_that_is_far_off_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged(tmp_path, two_of_a_kind)
    monkeypatch.setattr("pilotlight.cli.calibrate.ERROR_MAX", 0.0)
    assert main.invoke(["calibrate", str(tmp_path), "--check"]) == 3
    assert main.invoke(["calibrate", str(tmp_path)]) == 0
    assert capsys.readouterr().out


def test_a_run_is_named_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main.invoke(["calibrate", str(tmp_path), "--pool", "p"]) == 2
    assert main.invoke(["calibrate", str(tmp_path)]) == 2
    assert main.invoke(["calibrate", str(tmp_path / "none.jsonl")]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "give one of them" in first
    assert "has no event log" in second
    assert "no report" in third
