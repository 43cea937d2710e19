"""A pool that stays, under work and under random kills, for as long as you like.

    python -m tests.faults.soak --minutes 60 --seed 7

Several jobs at once (echo, Python functions, the bundled model; small and larger, of different weights), clients that
are killed or leave their jobs to the pool, replicas, servers, workers and managers killed at random: all from one seed.
It fails, and says the seed, when an answer is not exact, a job does not end, something grows between quiet moments, or
something is left after `pilotlight down`. The seed draws the same jobs and the same kinds of kills; when exactly they
strike is the machine's business.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass

from tests.faults.harness import Playground, playground
from tests.faults.soak_growth import Picture, look
from tests.faults.soak_jobs import POOL, Job, Maker, Wrong

WORKERS = 2
AT_ONCE = 3
JOB_S_MAX = 420.0
"""No job is so large that it may take longer, however often it is struck."""
TIDY_S_MAX = 30.0
KILLS = {"replica": 5, "server": 1, "worker": 4, "guardian": 1, "manager": 2, "client": 4}
WORKER_REST_S = 12.0
"""Workers that never live long enough to load a model would finish nothing: between two kills of workers (or of the
manager) is at least so long."""


@dataclass
class Pace:
    """How long it takes, and how often something is killed."""

    minutes: float
    kill_s_min: float = 1.0
    kill_s_max: float = 8.0


class Soak:
    """One run. Call `run` once."""

    def __init__(self, ground: Playground, seed: int, pace: Pace) -> None:
        self._ground = ground
        self._choice = random.Random(seed)
        self._maker = Maker(ground, random.Random(seed + 1))
        self._pace = pace
        self._jobs: list[Job] = []
        self._killed: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._rows = 0
        self._kill_at_s = self._worker_after_s = 0.0
        self._began_s = time.monotonic()

    def run(self) -> None:
        """Raises `Wrong` at the first thing that is not as it must be."""
        self._maker.learn()
        self._up()
        self._work(self._pace.minutes * 60 * 0.25)
        before = self._quiet()
        started = self._killed.total()
        self._say(f"warm: {before}")
        self._work(self._pace.minutes * 60 * 0.75)
        after = self._quiet()
        self._say(f"end: {after}")
        if grown := after.grown_since(before, 3 * (self._killed.total() - started) + 3 * self._done.total()):
            raise Wrong(f"grown between two quiet moments: {'; '.join(grown)}")
        self._down()

    # --- phases

    def _work(self, seconds: float) -> None:
        """Keep several jobs running and strike."""
        until_s = time.monotonic() + seconds
        said_s = time.monotonic()
        while time.monotonic() < until_s:
            while len(self._jobs) < AT_ONCE:
                job = self._maker.make()
                self._maker.start(job)
                self._jobs.append(job)
            self._look_after_jobs()
            if time.monotonic() >= self._kill_at_s:
                self._strike()
            if time.monotonic() - said_s >= 60:
                said_s += 60
                self._say(str(look(self._ground)))
            time.sleep(0.05)

    def _quiet(self) -> Picture:
        """Let all jobs end, strike nobody, and take a picture when workers have settled."""
        while self._jobs:
            self._look_after_jobs()
            time.sleep(0.05)
        self._settled()
        return look(self._ground)

    def _settled(self) -> None:
        """Every worker is there, and no replica is on its way."""
        deadline_s = time.monotonic() + 60
        steady, last = 0, ""
        while steady < 20:
            roles = {role: len(pids) for role, pids in self._ground.by_role().items()}
            now = str(sorted(roles.items()))
            right = roles.get("worker") == WORKERS and roles.get("manager") == 1 and not roles.get("client")
            steady = steady + 1 if now == last and right else 0
            last = now
            if time.monotonic() > deadline_s:
                raise Wrong(f"without work the pool does not come to rest: {roles}\n{self._ground.logs()}")
            time.sleep(0.1)

    def _up(self) -> None:
        code, said = self._ground.run("up", "--pool", POOL, "--workers", str(WORKERS), timeout_s=90)
        if code:
            raise Wrong(f"`up` ended with {code}: {said}")

    def _down(self) -> None:
        code, said = self._ground.run("down", "--pool", POOL, timeout_s=90)
        if code:
            raise Wrong(f"`down` ended with {code}: {said}")
        self._ground.assert_clean()

    # --- jobs

    def _look_after_jobs(self) -> None:
        for job in list(self._jobs):
            if time.monotonic() - job.began_s > JOB_S_MAX:
                raise Wrong(f"{job} is not done after {JOB_S_MAX:.0f} s; it said last:\n{job.said[-2000:]}")
            client = job.client
            if client is not None:
                if client.poll() is None:
                    continue
                said = client.communicate()[0]
                job.said, job.client = said, None
                if client.returncode == 2 and "is up" not in said and "not up" not in said:
                    raise Wrong(f"{job} was refused: {said}")
            if job.out.exists():
                if self._is_tidy(job):
                    self._finish(job)
            elif not job.detached or self._is_forgotten(job):
                self._maker.start(job)

    def _is_tidy(self, job: Job) -> bool:
        """Whether its working folder is gone, which the manager removes last: the next manager, if that one was
        killed in between."""
        job.made_s = job.made_s or time.monotonic()
        if not job.work_folder.exists():
            return True
        if time.monotonic() - job.made_s > TIDY_S_MAX:
            raise Wrong(f"{job} is done and its working folder stays")
        return False

    def _is_forgotten(self, job: Job) -> bool:
        """A detached job whose client was killed before the pool took it has to be handed in again. Handing in a job
        that runs attaches to it, so doing so now and then does no harm."""
        return time.monotonic() - job.began_s > 10.0 * job.starts

    def _finish(self, job: Job) -> None:
        self._maker.judge(job)
        self._maker.remove(job)
        self._jobs.remove(job)
        self._done[job.kind] += 1
        self._rows += job.rows

    # --- faults

    def _strike(self) -> None:
        now_s = time.monotonic()
        self._kill_at_s = now_s + self._choice.uniform(self._pace.kill_s_min, self._pace.kill_s_max)
        role = self._choice.choices(list(KILLS), list(KILLS.values()))[0]
        pause_s, whole = self._choice.uniform(0.0, 3.0), self._choice.random() < 0.5
        if role in {"worker", "guardian", "manager", "server"}:
            if now_s < self._worker_after_s:
                return
            self._worker_after_s = now_s + WORKER_REST_S
        struck = bool(self._kill_group() if role == "worker" and whole else self._ground.kill(role, self._choice))
        self._killed[role] += struck
        if role == "manager" and struck:
            time.sleep(pause_s)
            self._up()

    def _kill_group(self) -> bool:
        """All processes of a worker's group at once, as a batch system does."""
        pids = sorted(self._ground.by_role().get("worker", []))
        if not pids:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._choice.choice(pids), signal.SIGKILL)
        return True

    def _say(self, text: str) -> None:
        minutes = (time.monotonic() - self._began_s) / 60
        jobs = ", ".join(f"{count} {kind}" for kind, count in sorted(self._done.items()))
        kills = ", ".join(f"{count} {role}s" for role, count in sorted(self._killed.items()))
        done = f"{self._done.total()} jobs right ({jobs or 'none'}), {self._rows:,} rows; killed {kills or 'nobody'}"
        print(f"{minutes:5.1f} min: {done}; {text}", flush=True)


def soak(seed: int, pace: Pace) -> None:
    """Raises `Wrong`, or whatever else went wrong, with the seed and the logs' ends."""
    with playground() as ground:
        try:
            Soak(ground, seed, pace).run()
        except BaseException as error:
            print(f"seed {seed}: {error}\n{ground.logs()}", file=sys.stderr)
            raise


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="A lasting pool under work and random kills.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    try:
        soak(seed, Pace(arguments.minutes))
    except Wrong as error:
        raise SystemExit(f"seed {seed}: {error}") from None
    print(f"seed {seed}: all was as it must be")


if __name__ == "__main__":
    main()
