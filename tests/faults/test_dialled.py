"""Workers and clients that dial in over TCP: cuts, crashes of the manager, refusals, secrets."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pilotlight.gate import tokens
from pilotlight.gate.invitation import path_of, read_invitation
from pilotlight.manager.__main__ import EXIT_FENCED
from pilotlight.messages import Attach, Snapshot
from tests.faults.dialled import Dialled, Wire, dialled_pool
from tests.faults.harness import Playground
from tests.faults.lasting import WAIT_S, Client, request
from tests.faults.test_lasting import assert_exact, done_rows, live


def joined(client: Client, count: int) -> Snapshot:
    """Wait for so many workers."""
    return client.seen(lambda seen: len(seen.workers) >= count)


def finish(client: Client, job: str) -> None:
    """See a job that was taken up by another manager through to its end, without a load."""
    client.send(Attach(ticket=9, job=job))
    ended = client.end_of(job)
    assert ended.outcome == "completed"
    assert ended.totals.loads == {}
    assert ended.view.rows_resumed > 0


def test_workers_that_dial_in_get_work_and_leave_nothing_behind(ground: Playground) -> None:
    source, out = ground.rows(1000, sleep_s=0.002), ground.folder / "out.jsonl"
    with dialled_pool(ground) as there:
        for name in ("a", "b"):
            there.worker(name)
        with there.pool.client() as client:
            joined(client, 2)
            job = client.submit(request(source, out)).job
            client.seen(lambda seen: set(live(seen).values()) == {"a", "b"})
            assert client.end_of(job).outcome == "completed"
        assert_exact(source, out)
        assert "worker" in ground.by_role()
        assert not (there.pool.folder / "a").exists(), "a dialled worker's scratch folder is its own machine's"
    ground.assert_clean()


def test_a_worker_comes_in_mid_job_and_its_end_costs_no_row(ground: Playground) -> None:
    source, out = ground.rows(3000, sleep_s=0.002), ground.folder / "out.jsonl"
    with dialled_pool(ground) as there, there.pool.client() as client:
        first = there.worker("a")
        job = client.submit(request(source, out)).job
        client.seen(lambda seen: done_rows(seen) > 100)
        there.worker("b")
        client.seen(lambda seen: set(live(seen).values()) == {"a", "b"})
        first.kill()
        client.seen(lambda seen: set(live(seen).values()) == {"b"})
        assert client.end_of(job).outcome == "completed"
        assert_exact(source, out)


def test_a_cut_connection_heals_without_a_reload(ground: Playground) -> None:
    source, out = ground.rows(4000, sleep_s=0.002), ground.folder / "out.jsonl"
    with dialled_pool(ground) as there, there.pool.client() as client:
        wire = Wire(("127.0.0.1", there.port()))
        through = there.copy("worker.json", addresses=[wire.address])
        for name in ("a", "b"):
            there.worker(name, through)
        job = client.submit(request(source, out)).job
        before = live(client.seen(lambda seen: len(live(seen)) == 2))
        for least in range(200, 1200, 200):
            client.seen(lambda seen, least=least: done_rows(seen) > least and len(live(seen)) == 2)
            assert wire.cut() == 2
            client.seen(lambda seen: len(live(seen)) < 2)
        assert live(client.seen(lambda seen: len(live(seen)) == 2)) == before
        assert client.end_of(job).outcome == "completed"
        assert wire.carried == 12
        wire.close()
        assert_exact(source, out)


def test_a_killed_manager_comes_back_to_live_replicas(ground: Playground) -> None:
    source, out = ground.rows(6000, sleep_s=0.002), ground.folder / "out.jsonl"
    with dialled_pool(ground) as there:
        for name in ("a", "b"):
            there.worker(name)
        port = there.port()
        with there.pool.client() as client:
            joined(client, 2)
            job = client.submit(request(source, out), detached=True).job
            before = live(client.seen(lambda seen: len(live(seen)) == 2 and done_rows(seen) > 200))
        for crash in (1, 2):
            there.pool.kill()
            time.sleep(0.5)  # its workers finish what they hold, and keep the results
            there.pool.up()
            assert there.port() == port
            with there.pool.client() as client:
                assert live(client.seen(lambda seen: len(live(seen)) == 2)) == before
                if crash == 2:
                    finish(client, job)
        assert_exact(source, out)


def test_a_worker_that_was_in_comes_back_although_its_token_expired(ground: Playground) -> None:
    with dialled_pool(ground) as there, there.pool.client() as client:
        key = (there.pool.folder / "gate.key").read_bytes()
        wire = Wire(("127.0.0.1", there.port()))
        brief = tokens.token(key, "worker", time.time() + 20)
        through = there.copy("worker.json", addresses=[wire.address], token=brief)
        there.worker("a", through)
        joined(client, 1)
        there.copy("worker.json", addresses=[wire.address], token=tokens.token(key, "worker", 1))
        late = there.worker("b", through)
        said, _ = late.communicate(timeout=WAIT_S)
        assert late.returncode == 2
        assert "has expired" in said
        wire.cut()
        client.seen(lambda seen: not seen.workers)
        joined(client, 1)
        wire.close()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"token": "1.x"}, "token is none of this pool's: copy its pool file here anew"),
        ({"fingerprint": "0" * 64}, "shows another certificate than the pool file names"),
    ],
)
def test_who_is_not_let_in_says_why_and_ends(ground: Playground, changes: dict[str, str], sentence: str) -> None:
    with dialled_pool(ground) as there:
        worker = there.worker("a", there.copy("worker.json", **changes))
        said, _ = worker.communicate(timeout=WAIT_S)
        assert worker.returncode == 2
        assert sentence in said.splitlines()[-1]
    ground.assert_clean()


def test_an_older_manager_ends_when_a_newer_one_serves_the_pool(ground: Playground) -> None:
    source, out = ground.rows(6000, sleep_s=0.002), ground.folder / "out.jsonl"
    with dialled_pool(ground, workers=1) as there:
        there.worker("a")
        with there.pool.client() as client:
            joined(client, 2)
            job = client.submit(request(source, out), detached=True).job
            before = live(client.seen(lambda seen: len(live(seen)) == 2 and done_rows(seen) > 100))
        manager = there.pool.manager
        assert manager is not None
        epoch = there.pool.folder / "epoch"
        epoch.write_text(f"{int(epoch.read_text()) + 5}\n")
        assert manager.wait(WAIT_S) == EXIT_FENCED
        there.pool.up()
        with there.pool.client() as client:
            assert live(client.seen(lambda seen: len(live(seen)) == 2)) == before
            finish(client, job)
        assert_exact(source, out)


ELSEWHERE = ["unshare", "--uts", "sh", "-c", 'hostname other && exec "$@"', "sh"]
"""Runs a command on what it takes for another machine."""
may_rename = pytest.mark.skipif(
    subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this user may not change a hostname in a namespace",
)


def elsewhere(ground: Playground, *arguments: str | Path) -> tuple[int, str]:
    """Run `pilotlight ...` on another machine."""
    done = subprocess.run(
        [*ELSEWHERE, sys.executable, "-m", "pilotlight", *map(str, arguments)],
        cwd=ground.folder,
        env=ground.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    return done.returncode, done.stdout


@may_rename
def test_a_pool_is_used_from_another_machine_and_goes_on_there_when_its_own_is_gone(ground: Playground) -> None:
    pool = ground.folder / "shared"
    listen = ("--listen", "127.0.0.1:0")
    code, said = ground.run("up", "--pool", pool, "--workers", "0", *listen)
    assert code == 0, said
    assert f"pilotlight worker --pool {pool}/worker.json" in said
    worker = ground.start("worker", "--pool", pool / "worker.json", "--name", "a")
    source, out = ground.rows(3000, sleep_s=0.001), ground.folder / "out.jsonl"
    client_file = path_of(pool, "client")
    code, said = elsewhere(ground, "run", source, "--runtime", "echo", "-o", out, "--pool", client_file)
    assert code == 0, said
    assert_exact(source, out)
    for verb in ("jobs", "contexts"):
        for named in (pool, client_file):
            code, said = elsewhere(ground, verb, "--pool", named)
            assert code == 0, said
            assert "echo" in said
    code, said = elsewhere(ground, "run", "in.jsonl", "--runtime", "echo", "-o", out, "--pool", client_file)
    assert code == 2
    assert "in.jsonl is a relative path" in said
    code, said = elsewhere(ground, "run", "/nowhere.jsonl", "--runtime", "echo", "-o", out, "--pool", client_file)
    assert code == 2
    assert "there is no file nowhere.jsonl (that is on" in said
    code, said = elsewhere(ground, "up", "--pool", pool)
    assert code == 0, said
    assert "is up already" in said

    (manager,) = ground.by_role()["manager"]
    psutil.Process(manager).kill()
    psutil.wait_procs([psutil.Process(manager)] if psutil.pid_exists(manager) else [], WAIT_S)
    code, said = elsewhere(ground, "jobs", "--pool", pool)
    assert code == 1, said
    assert f"pilotlight up --pool {pool}" in said
    code, said = elsewhere(ground, "up", "--pool", pool)
    assert code == 0, said
    assert "is up again" in said
    assert read_invitation(client_file, "client").host == "other"
    again = ground.folder / "again.jsonl"
    code, said = ground.run("run", source, "--runtime", "echo", "-o", again, "--pool", pool)
    assert code == 0, said
    assert_exact(source, again)
    assert "echo live" not in said, "the worker's replica outlived its manager"
    code, said = ground.run("down", "--pool", client_file)
    assert code == 0, said
    assert worker.wait(WAIT_S) == 0
    worker.communicate()
    ground.assert_clean()


@may_rename
def test_a_command_on_another_machine_waits_for_the_next_manager(ground: Playground) -> None:
    source, out = ground.rows(4000, sleep_s=0.002), ground.folder / "out.jsonl"
    with dialled_pool(ground) as there:
        there.worker("a")
        client_file = str(path_of(there.pool.folder, "client"))
        arguments = ["run", str(source), "--runtime", "echo", "-o", str(out), "--pool", client_file]
        with subprocess.Popen(
            [*ELSEWHERE, sys.executable, "-m", "pilotlight", *arguments],
            cwd=ground.folder,
            env=ground.environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            with there.pool.client() as client:
                before = live(client.seen(lambda seen: done_rows(seen) > 100))
            there.pool.kill()
            time.sleep(0.5)
            there.pool.up()
            with there.pool.client() as client:
                assert live(client.seen(lambda seen: len(live(seen)) == 1)) == before
            _, said = command.communicate(timeout=WAIT_S)
        assert command.returncode == 0, said
        assert "waiting for the next one" in said
        assert_exact(source, out)


@may_rename
def test_workers_beside_a_manager_that_moved_to_another_machine_go_with_it(ground: Playground) -> None:
    source, out = ground.rows(4000, sleep_s=0.002), ground.folder / "out.jsonl"
    with dialled_pool(ground, workers=1) as there:
        there.worker("a")
        with there.pool.client() as client:
            job = client.submit(request(source, out), detached=True).job
            before = live(client.seen(lambda seen: len(live(seen)) == 2 and done_rows(seen) > 100))
        there.pool.kill()
        there.pool.up(ELSEWHERE)
        with there.pool.client() as client:
            client.seen(lambda seen: before.items() <= live(seen).items())
            client.seen(lambda seen: len(seen.workers) == 3)  # and one beside the manager, as the pool is to have
            client.send(Attach(ticket=9, job=job))
            assert client.end_of(job).outcome == "completed"
        assert_exact(source, out)


def secrets_of(there: Dialled) -> list[bytes]:
    files = [path_of(there.pool.folder, "worker"), path_of(there.pool.folder, "client")]
    shown = [msg.token for msg in (read_invitation(files[0], "worker"), read_invitation(files[1], "client"))]
    key = (there.pool.folder / "gate.key").read_bytes()
    seals = [text.partition(".")[2] for text in shown] + [tokens.ticket(key, "a")]
    return [key, key.hex().encode(), *(seal.encode() for seal in seals)]


def test_no_secret_is_in_arguments_environments_or_logs(ground: Playground) -> None:
    source, out = ground.rows(200), ground.folder / "out.jsonl"
    with dialled_pool(ground, workers=1) as there, there.pool.client() as client:
        worker = there.worker("a")
        turned_away = there.worker("b", there.copy("b.json", fingerprint="0" * 64))
        said = turned_away.communicate(timeout=WAIT_S)[0].encode()
        joined(client, 2)
        assert client.end_of(client.submit(request(source, out)).job).outcome == "completed"
        for process in ground.processes():
            folder = Path(f"/proc/{process.pid}")
            said += (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        worker.send_signal(signal.SIGTERM)
        said += worker.communicate(timeout=WAIT_S)[0].encode()
        for path in [*ground.folder.glob("home/**/*"), *ground.folder.glob("out*/**/*"), out]:
            said += path.read_bytes() if path.is_file() else b""
        assert [secret for secret in secrets_of(there) if secret in said] == []


def test_credentials_for_models_stay_with_the_manager(ground: Playground) -> None:
    source, out = ground.rows(50), ground.folder / "out.jsonl"
    ground.environment |= {"HF_TOKEN": "hf_s3cret", "AWS_SECRET_ACCESS_KEY": "s3cret", "AWS_SESSION_TOKEN": "s3cret"}
    with dialled_pool(ground, workers=1) as there, there.pool.client() as client:
        assert client.end_of(client.submit(request(source, out)).job).outcome == "completed"
        pids = ground.by_role()
        (manager,) = pids["manager"]
        assert b"s3cret" in Path(f"/proc/{manager}/environ").read_bytes()
        for role in ("worker", "server", "replica"):
            assert all(b"s3cret" not in Path(f"/proc/{pid}/environ").read_bytes() for pid in pids[role]), role
