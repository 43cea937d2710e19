"""Options for pools over several machines that make no sense, and names that stand for pools."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilotlight.cli.main import invoke
from pilotlight.client import places
from pilotlight.core.errors import ConfigError
from pilotlight.poolfile import pool_folder, pools_folder


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("up --workers 0", "--workers must be 1 or more, not 0"),
        ("up --advertise h", "--advertise would have no effect without --listen"),
        ("up --listen a:b", "'a:b' is no address: write HOST:PORT"),
        ("up --listen :0 --advertise x:y", "'x:y' is no address"),
        ("worker --pool none.json", "the pool file none.json can't be read: No such file or directory"),
        ("worker --pool none.json --name worker-3", "worker-3 is what pools call workers of their own"),
        ("worker --pool none.json --name a/b", "'a/b' can't name a worker"),
        ("up --pool client.json", "client.json leads to a pool but can't start one"),
        ("jobs --pool none.json", "the pool file none.json can't be read: No such file or directory"),
        ("jobs --pool ./none", "pool ./none is not up; start it first: pilotlight up --pool ./none"),
    ],
)
def test_what_can_not_be(
    line: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PILOTLIGHT_STATE_DIR", str(tmp_path / "state"))
    assert invoke(line.split()) == 2
    assert sentence in capsys.readouterr().err


def test_what_names_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pool_folder("a") == pools_folder() / "a"
    assert pool_folder("./a") == tmp_path / "a"
    assert pool_folder(str(tmp_path / "b")) == tmp_path / "b"
    assert places.file_of("a/client.json") == Path("a/client.json")
    assert places.file_of("a") is None
    with pytest.raises(ConfigError, match="can't name a pool"):
        pool_folder("a b")
