"""Scenario files: what is read, what is written, and the sentence that each mistake gives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pilotlight.core.errors import ConfigError
from pilotlight.sim import scenario as sc
from pilotlight.sim.availability import lives
from pilotlight.sim.spec import Kind, Model, Work

SMALL = """
title = "two workers"
[origin]
bytes_per_s = "2GB/s"
[models.small]
file_bytes = "3.4GB"
import_s = "6s"
[kinds.a10]
speed = 1
[kinds.titan]
speed = 0.5
memory_bytes = "12GiB"
[[jobs]]
model = "small"
rows = 1_000
row_s = 0.25
[[jobs]]
model = "small"
rows = 10
at_s = "10m"
[[workers]]
kind = "a10"
count = 1
[[workers]]
kind = "titan"
count = 1
life_s = "30m"
changes = [["1m", 2], [90, -1]]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "world.toml"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str = SMALL, **settings: str) -> sc.Scenario:
    return sc.read(write(folder, text), {key.replace("__", "."): value for key, value in settings.items()})


def test_a_file_says_what_a_world_is_made_of(tmp_path: Path) -> None:
    world = read(tmp_path)
    assert world.origin.bytes_per_s == 2e9
    assert world.models == {"small": Model("small", file_bytes=3_400_000_000, import_s=6.0)}
    assert world.kinds["titan"] == Kind("titan", speed=0.5, memory_bytes=12 * 2**30)
    assert world.jobs[1] == Work(10, "small", at_s=600.0)
    assert world.workers[1].life_s == 1800.0
    assert world.workers[1].changes == ((60.0, 2), (90.0, -1))


def test_what_is_written_reads_as_what_it_was_written_from(tmp_path: Path) -> None:
    world = read(tmp_path)
    world = dataclasses.replace(
        world, workers=(*world.workers, sc.Supply(nodes="n.csv", gpus={"A 10": "a10", "X": "titan"}))
    )
    text = sc.to_toml(world, {"models.small.file_bytes": "assumed"})
    assert 'file_bytes = "3.4GB"  # assumed' in text
    assert sc.read(write(tmp_path, text)) == world


def test_keys_can_be_set_otherwise(tmp_path: Path) -> None:
    world = read(
        tmp_path, jobs__rows="7", models__small__file_bytes="1GB", kinds__a10__speed="2", policy__hedging="false"
    )
    assert [job.rows for job in world.jobs] == [7, 7]
    assert world.models["small"].file_bytes == 10**9
    assert world.kinds["a10"].speed == 2.0
    assert not world.policy.hedging
    assert [job.rows for job in read(tmp_path, jobs__2__rows="7").jobs] == [1000, 7]


@pytest.mark.parametrize(("workers", "counts"), [("10", [5, 5]), ("3", [2, 1]), ("1", [1, 0])])
def test_workers_keep_their_proportions(tmp_path: Path, workers: str, counts: list[int]) -> None:
    assert [supply.count for supply in read(tmp_path, workers=workers).workers] == counts


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("speed = 1\n", "sped = 1\n", "a10 in kinds of FILE has no key 'sped': did you mean speed?"),
        ('"3.4GB"', '"3.4 pounds"', "file_bytes of small in models of FILE must be a size such as 2GB or 512MiB"),
        ('"30m"', '"soon"', "life_s of workers of FILE (entry 2) must be a time such as 90s, 10m or 1h"),
        ("row_s = 0.25", "row_s = -1", "row_s of jobs of FILE (entry 1) must not be negative"),
        ("rows = 1_000", "rows = -5", "rows of jobs of FILE (entry 1) must not be negative"),
        ("speed = 0.5", "speed = inf", "speed of titan in kinds of FILE must be more than 0, and finite"),
        ('"2GB/s"', "0", "bytes_per_s of origin of FILE must be more than 0, and finite"),
        ("rows = 1_000", "rows = 1.5", "rows of jobs of FILE (entry 1) must be a whole number, not 1.5"),
        ("rows = 1_000\n", "", "jobs of FILE (entry 1) lacks rows"),
        ('title = "two workers"', "title = 2", "title of FILE must be a text, not 2"),
        ('model = "small"\nrows = 10', 'model = "big"\nrows = 10', "job 2 names model 'big'; known are small"),
        ('kind = "titan"', 'kind = "titanic"', "workers 2 name kind 'titanic'; known are a10, titan"),
        ('[["1m", 2], [90, -1]]', "[[1, 2, 3]]", "changes of workers of FILE (entry 2) must be a list of 2"),
        ("[origin]", "[origin", "is not a TOML file"),
        ("speed = 0.5", "speed = true", "speed of titan in kinds of FILE must be a number, not True"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in SMALL
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, SMALL.replace(old, new, 1))
    text = str(raised.value)
    assert str(tmp_path / "world.toml") in text
    assert told.replace("FILE", str(tmp_path / "world.toml")) in text
    assert "\n" not in text


def test_a_setting_that_names_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no key 'sped'"):
        read(tmp_path, kinds__a10__sped="2")
    with pytest.raises(ConfigError, match=r"jobs\.5 is no table"):
        read(tmp_path, jobs__5__rows="2")
    with pytest.raises(ConfigError, match="a number of workers is expected"):
        read(tmp_path, workers="many")


def test_a_scenario_is_found_by_path_or_name(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    assert sc.find(str(path)) == path
    with pytest.raises(ConfigError, match="is neither a scenario's file nor one of"):
        sc.find("nowhere")


# --- who is there when


def test_slots_open_one_by_one_and_preempted_workers_come_back(tmp_path: Path) -> None:
    world = read(tmp_path)
    world = dataclasses.replace(
        world,
        give_up_s=36_000.0,
        workers=(sc.Supply("a10", 3, every_s=10.0, life_s=600.0, away_s=60.0, keeps_disk=True),),
    )
    lived = list(lives(world))
    assert lived == list(lives(world))
    assert lived != list(lives(dataclasses.replace(world, seed=2)))
    assert [life.start_s for life in lived] == sorted(life.start_s for life in lived)
    assert {life.host: life.start_s for life in reversed(lived)} == {"1-1": 0.0, "1-2": 10.0, "1-3": 20.0}
    assert 500 < sum(life.stop_s - life.start_s for life in lived) / len(lived) < 700


def count_at(lived: list[tuple[float, float]], when_s: float) -> int:
    return sum(start <= when_s < stop for start, stop in lived)


def test_changes_add_up(tmp_path: Path) -> None:
    world = dataclasses.replace(read(tmp_path), workers=(sc.Supply("a10", changes=((0.0, 4), (60.0, -3), (90.0, 1))),))
    lived = [(life.start_s, life.stop_s) for life in lives(world)]
    assert [count_at(lived, at_s) for at_s in (0.0, 59.0, 60.0, 90.0, 1e9)] == [4, 4, 1, 2, 2]


def test_a_trace_gives_numbers_over_time_and_begins_again(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text(json.dumps({"metadata": {"gap_seconds": 100}, "data": [0, 2, 1, 3]}))
    supply = sc.Supply("a10", trace="trace.json", trace_from_s=100.0, scale=2.0)
    world = dataclasses.replace(read(tmp_path), give_up_s=800.0, workers=(supply,))
    lived = [(life.start_s, life.stop_s) for life in lives(world)]
    assert [count_at(lived, 100.0 * n + 50) for n in range(8)] == [4, 2, 6, 0, 4, 2, 6, 0]


def test_a_node_list_gives_machines_with_as_many_devices(tmp_path: Path) -> None:
    lines = ["gpu_model,gpu_capacity_num,cpu_num,node_name", "A10,1,8,0", "H800,8,8,1", "A10,4,8,2", "B,1,8,3"]
    (tmp_path / "nodes.csv").write_text("\n".join(lines))
    supply = sc.Supply(nodes="nodes.csv", gpus={"A10": "a10", "B": "titan"})
    world = dataclasses.replace(read(tmp_path), workers=(supply,))
    assert [(life.kind.name, life.kind.devices) for life in lives(world)] == [("a10", 1), ("a10", 4), ("titan", 1)]
    world = dataclasses.replace(world, workers=(dataclasses.replace(supply, count=2),))
    assert len(list(lives(world))) == 2


@pytest.mark.parametrize(
    ("supply", "told"),
    [
        (sc.Supply("a10", trace="none.json"), "can't be read: No such file"),
        (sc.Supply("a10", trace="world.toml"), "can't be understood"),
        (sc.Supply(nodes="world.toml", gpus={"A10": "a10"}), "is no node list"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, supply: sc.Supply, told: str) -> None:
    world = dataclasses.replace(read(tmp_path), workers=(supply,))
    with pytest.raises(ConfigError, match=told):
        list(lives(world))


def test_workers_of_a_named_host_share_it_and_their_replicas_die_when_said(tmp_path: Path) -> None:
    text = SMALL + '[[workers]]\nkind = "titan"\ncount = 2\nuntil_s = 50\nhost = "one"\ndeaths_s = [10, "1m"]\n'
    lived = [life for life in lives(read(tmp_path, text)) if life.host == "one"]
    assert [(life.stop_s, life.deaths_s) for life in lived] == [(50.0, (10.0,))] * 2
