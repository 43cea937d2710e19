"""A pool that stays, from Python: found by name, shared by processes, left up by who leaves it."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

import pilotlight as pl
from pilotlight.client import folders, lasting, launch
from pilotlight.client.feed import Window
from pilotlight.client.jobs import Job
from pilotlight.client.lasting import Wishes
from pilotlight.client.pool import Pool
from pilotlight.core.errors import LinkClosed, MissingExtra
from pilotlight.messages import Ask
from pilotlight.poolfile import SOCKET_PATH_BYTES_MAX, is_up, pool_folder, read_spec
from pilotlight.wire import Operation, PoolSpec, WorkerShape
from pilotlight.worker import build

from .conftest import COMMAND, up

MODEL = pl.LLM("some/model")
SHORT_S = 30.0


def test_a_pool_that_is_not_up_is_said_with_what_to_type() -> None:
    with pytest.raises(pl.ConfigError, match=r"pool default is not up; start it first: pilotlight up$"):
        Pool.connect()
    with pytest.raises(pl.ConfigError, match="pilotlight up --pool other"):
        Pool.connect("other")
    with pytest.raises(pl.ConfigError, match="can't name a pool"):
        Pool.connect("an other")


def test_leaving_leaves_it_up(lasting_pool: int) -> None:
    for _ in range(2):
        with Pool.connect() as pool:
            assert pool.name == "default"
            assert [result.text for result in pool.generate(MODEL, ["a", "b"])] == ["a!", "b!"]
    assert is_up(pool_folder())
    assert len(pool_jobs()) == 2


def pool_jobs() -> list[pl.JobView]:
    with Pool.connect() as pool:
        return pool.jobs()


def test_a_detached_job_is_found_by_another_and_ended(lasting_pool: int, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "x"}\n')
    hang = pl.LLM("hang")
    with Pool.connect() as pool:
        job = pool.run_files(hang, Operation(kind="generate"), [source], output, detach=True, weight=2.5)
        with pytest.raises(TimeoutError):
            job.wait(0.1)
        (view,) = pool.jobs()
        assert (view.job, view.detached, view.weight, view.output) == (job.id, True, 2.5, str(output))
    with pytest.raises(pl.JobCancelled, match="closed"):
        job.wait()
    with Pool.connect() as pool:
        attached = pool.attach(str(output))
        assert "drain=False" in pool.cancel(job.id, drain=False)
        with pytest.raises(pl.JobCancelled):
            attached.wait(SHORT_S)
        assert attached.ended is not None
        with pytest.raises(pl.ConfigError, match="no job nothing"):
            pool.attach("nothing").wait(SHORT_S)
        with pytest.raises(pl.ConfigError, match="no job nothing"):
            pool.cancel("nothing")


def test_equal_calls_share_a_job_and_both_hear_its_end(lasting_pool: int, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "x"}\n')
    with Pool.connect() as pool:
        first, second = (
            pool.run_files(pl.LLM("hang"), Operation(kind="generate"), [source], tmp_path / "out.jsonl")
            for _ in range(2)
        )
        with pytest.raises(TimeoutError):
            second.wait(0.1)
        assert first.id == second.id
        first.cancel()
        for job in (first, second):
            with pytest.raises(pl.JobCancelled):
                job.wait(SHORT_S)


def test_contexts_are_pinned_and_let_go(lasting_pool: int) -> None:
    with Pool.connect() as pool:
        assert pool.contexts() == []
        assert pool.pin(MODEL) == "some/model: True"
        assert [(view.name, view.pinned) for view in pool.contexts()] == [("some/model", True)]
        assert pool.unpin(MODEL) == "some/model: False"
        assert pool.evict(MODEL, disk=True) == "some/model, disk=True"
        with pytest.raises(pl.ConfigError, match="no context some/model"):
            pool.evict("some/model")


def test_a_lost_manager_ends_what_waits_for_it_and_the_next_one_is_found(lasting_pool: int) -> None:
    pool = Pool.connect()
    pool.start()
    job = pool.generate(pl.LLM("hang"), ["x"])
    os.kill(lasting_pool, signal.SIGKILL)
    with pytest.raises(LinkClosed, match="manager is gone"):
        list(job)
    assert pool.lost
    with pytest.raises(LinkClosed):
        pool.jobs()
    with up():
        pool.reconnect()
        assert not pool.lost
        assert [result.text for result in pool.generate(MODEL, ["a"])] == ["a!"]
    pool.close()


@pytest.mark.parametrize("how", [{"weight": 0}, {"weight": float("nan")}, {"request_timeout_s": -1.0}])
def test_shares_and_patience_are_checked(how: dict[str, Any]) -> None:
    with Pool(1, manager_command=COMMAND) as pool, pytest.raises(pl.ConfigError, match="must be above 0"):
        pool.generate(MODEL, ["x"], **how)


def test_only_a_pool_that_stays_can_be_left_a_job(tmp_path: Path) -> None:
    with Pool(1, manager_command=COMMAND) as pool, pytest.raises(pl.ConfigError, match="can be detached"):
        pool.run_files(MODEL, Operation(kind="generate"), [tmp_path / "in"], tmp_path / "out", detach=True)


def test_workers_of_ones_own_can_be_slower_or_smaller() -> None:
    shapes = [WorkerShape(speed=0.5), pl.WorkerShape(memory_bytes=10**9)]
    with Pool(worker_shapes=shapes, manager_command=COMMAND) as pool:
        assert pool._own is not None
        spec = read_spec(pool._own.folder)
    assert (spec.workers, spec.shapes) == (2, shapes)
    with pytest.raises(pl.ConfigError, match="2 workers are described and only 1 wanted"):
        Pool(1, worker_shapes=shapes)


def test_wishes_are_compared_with_what_there_is() -> None:
    spec = PoolSpec(workers=2, log_dir="x", shapes=[WorkerShape(speed=0.5)])
    assert Wishes().differences(spec) == []
    assert Wishes(workers=2, shapes=(WorkerShape(speed=0.5),), keep_alive_s=600.0).differences(spec) == []
    assert Wishes(workers=3, keep_alive_s=-1.0).differences(spec) == ["--workers", "--keep-alive"]
    assert Wishes(keep_alive_s=-1.0, cache_bytes=5).over(spec).keep_alive_s == -1.0


def test_sockets_of_a_pool_in_a_deep_folder_are_elsewhere(private_folders: Path, tmp_path: Path) -> None:
    assert folders.socket_folder(Path("/short")) == ""
    deep = tmp_path / ("x" * SOCKET_PATH_BYTES_MAX)
    folder = Path(folders.socket_folder(deep))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folders.socket_folder(deep) == str(folder)
    folder.chmod(0o755)
    with pytest.raises(pl.ConfigError, match="not a private folder"):
        folders.socket_folder(deep)
    folder.rmdir()


def test_no_home_is_made_for_who_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("PILOTLIGHT_STATE_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    with pytest.raises(pl.ConfigError, match=r"does not exist.*set PILOTLIGHT_STATE_DIR"):
        lasting.bring_up("default", Wishes())
    monkeypatch.delenv("PILOTLIGHT_LOG_DIR")
    with pytest.raises(pl.ConfigError, match="set PILOTLIGHT_LOG_DIR"):
        Pool(1, manager_command=COMMAND).start()
    assert not (tmp_path / "nobody").exists()


def test_contexts_that_other_processes_would_not_find_are_warned_of(lasting_pool: int) -> None:
    @pl.context
    def built(given: memoryview) -> int:
        return len(given)

    def added(state: int, row: int) -> int:
        return state + row

    odd = built(memoryview(b"abc"))
    with Pool.connect() as pool:
        with pytest.warns(UserWarning, match="holds builtins.memoryview, which may look different"):
            assert [result.value for result in pool.map(added, [1], context=odd)] == [4]
        with pytest.warns(UserWarning, match="holds builtins.memoryview, which may look different"):
            pool.pin(odd)


def test_an_end_that_was_interrupted_is_finished_before_a_pool_is_brought_up(
    lasting_pool: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pool_folder() / lasting.ENDED).touch()
    started: list[bool] = []
    monkeypatch.setattr(launch, "start_manager", lambda folder, *_args, **_how: started.append(is_up(folder)))
    assert lasting.bring_up("default", Wishes(workers=3)).how == "started"
    assert started == [False]
    assert lasting.shall_be_up(pool_folder())


def test_nothing_begins_on_a_session_that_was_closed(lasting_pool: int) -> None:
    with Pool.connect() as pool:
        session = pool._opened()
    with pytest.raises(pl.JobCancelled, match="the pool was closed"):
        session.ask(lambda ticket: Ask(ticket=ticket, what="jobs"))
    with pytest.raises(pl.JobCancelled, match="the pool was closed"):
        session.attach(Job(send=lambda _: None, reader=None, ordered=True, window=Window()), "job-1")


def test_only_a_pool_of_ones_own_needs_a_runtime_here(lasting_pool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.REQUIRES, "transformers", ("no_such_library",))
    with Pool.connect() as pool:
        assert [result.text for result in pool.generate(MODEL, ["a"])] == ["a!"]
    refused = pytest.raises(MissingExtra, match=r"no_such_library can't be found: pip install 'pilotlight")
    with Pool(manager_command=COMMAND) as own, refused:
        own.generate(MODEL, ["a"])
