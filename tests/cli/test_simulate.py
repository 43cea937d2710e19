"""`pilotlight simulate`: the list, the table, the picture, the page, and what mistakes are told as."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from pilotlight.cli.main import invoke

WORLD = """
title = "four workers"
[models.m]
file_bytes = "1GB"
[kinds.gpu]
speed = 1
[kinds.slow]
speed = 0.5
disk_bytes_per_s = "1GB/s"  # [assumed] a guess
[[jobs]]
model = "m"
rows = 2_000
row_s = 0.2  # [memory] of nobody
[[workers]]
kind = "gpu"
count = 2
[[workers]]
kind = "slow"
count = 2
"""


@pytest.fixture
def world(tmp_path: Path) -> str:
    path = tmp_path / "world.toml"
    path.write_text(WORLD)
    return str(path)


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert invoke(["simulate", *arguments]) == code
    said = capsys.readouterr()
    return said.out if not code else said.err


def test_alone_it_lists_what_comes_along(capsys: pytest.CaptureFixture[str]) -> None:
    assert "paper-186" in told(capsys)


def test_a_table_has_a_line_per_policy_and_batch(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, world, "--compare", "naive,files,shards,pervasive", "--batches", "100,1000")
    lines = [line.split("  ")[0] for line in text.splitlines()]
    batches = [f"{policy}, batches of {rows}" for policy in ("naive", "files") for rows in ("100", "1,000")]
    assert lines[-6:] == [*batches, "shards", "pervasive"]
    assert "2,000 requests in 1 job, at best done after" in text


def test_programs_read_an_object_per_run(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, world, "--json", "--set", "workers=2", "--set", "jobs.rows=500", "--seed", "3")
    shards, ours = map(json.loads, text.splitlines())
    assert (shards["policy"], ours["policy"]) == ("shards", "pervasive")
    assert ours["rows"] == 500
    assert ours["joined"] == 2
    assert ours["bound_s"] <= ours["end_s"]


def test_switches_add_up_to_ours(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, world, "--switches", "--compare", "pervasive")
    assert [name in text for name in ("nothing on", "and peers", "and parking", "and hedging")] == [True] * 4


def test_open_figures_are_halved_and_doubled(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, world, "--sensitivity", "--compare", "shards")
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith(("kinds", "jobs"))}
    assert set(lines) == {"kinds.*.disk_bytes_per_s", "jobs.*.row_s"}
    assert lines["jobs.*.row_s"][1:3] == ["0.2", "memory"]


def test_what_does_not_end_in_time_is_said(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["simulate", world, "--compare", "shards", "--set", "give_up_s=20"]) == 1
    assert "never" in capsys.readouterr().out


def test_pictures_and_pages_are_whole_in_themselves(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, world, "--picture", str(tmp_path / "p.png"), "--html", str(tmp_path / "p.html"))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "p.html").read_text()
    assert "four workers" in page
    assert "<svg" in page
    for part in ("src=", "href=http", 'href="http', "@import"):
        assert part not in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is neither a scenario's file nor one of day-10000"),
        (["WORLD", "--compare", "ours"], "--compare knows naive, files, shards, pervasive, not 'ours'"),
        (["WORLD", "--batches", "0"], "--batches are numbers of rows above 0"),
        (["WORLD", "--set", "rows"], "--set takes KEY=VALUE, not 'rows'"),
        (["WORLD", "--set", "jobs.row=3"], "has no key 'row': did you mean rows?"),
        (["WORLD", "--picture", "p.gif"], "a picture's name ends in .png or .svg"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, world: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, *[world if argument == "WORLD" else argument for argument in arguments], code=2)
    assert said in text
    assert text.count("\n") == 1


def test_without_matplotlib_the_extra_is_named(
    world: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'pilotlight[plot]'" in told(capsys, world, "--picture", "p.png", code=2)


def test_a_page_that_can_not_be_written_is_refused_before_anything_runs(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(capsys, world, "--html", str(tmp_path / "nowhere" / "p.html"), code=2)
    assert "p.html can't be written: the folder" in said
