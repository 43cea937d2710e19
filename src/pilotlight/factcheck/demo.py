"""`pilotlight demo`: the bundled claims on two local workers, one of which is killed on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pilotlight.client import checks
from pilotlight.client.console.display import Display
from pilotlight.client.console.fold import Fold
from pilotlight.client.console.follow import say
from pilotlight.client.console.options import WORKER, RunOptions
from pilotlight.client.llm import LLM
from pilotlight.core.errors import ConfigError
from pilotlight.factcheck import bundled
from pilotlight.factcheck.command import run_claims

KILL_AT = 0.4
WATCH_S = 0.1
CLAIMS = 3000


class Killer:
    """Kills one worker, once, when two hold work and enough of `rows_total` is done."""

    def __init__(self, rows_total: int) -> None:
        self._rows_total = rows_total
        self.killed = ""

    def step(self, fold: Fold, display: Display) -> None:
        """See `follow.Step`."""
        done = fold.view.rows_done / self._rows_total if fold.view else 0.0
        if self.killed or done < KILL_AT:
            return
        busy = [worker for worker in fold.workers if worker.state == "live" and worker.rows_leased and worker.pid]
        if len(busy) < 2:
            return
        victim = busy[-1]
        self.killed = victim.worker
        display.note(
            f"demo: killing {victim.worker} (process {victim.pid}) with SIGKILL now, at {100 * done:.0f} %, "
            f"as a preempted machine would go",
            "warning",
        )
        os.kill(victim.pid, signal.SIGKILL)


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="File of verdicts to write (replaced).")] = Path(
        "pilotlight-demo.jsonl"
    ),
    passes: Annotated[int, Parameter(help="How often the 3,000 bundled claims are verified.")] = 4,
    workers: Annotated[int, Parameter(help="Local workers.")] = 2,
    worker: Annotated[tuple[str, ...], WORKER] = (),
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], help="Show why.", negative="")] = False,
) -> int:
    """See it work: verify the bundled claims with the bundled tiny model, and lose a worker on the way.

    It has workers of its own, also while a pool is up: one of them is killed.
    """
    checks.check_output(output, [])
    if passes < 1:
        raise ConfigError(f"--passes must be 1 or more, not {passes}")
    if workers < 2:
        raise ConfigError(f"--workers must be 2 or more, not {workers}: one is killed, and another goes on meanwhile")
    claims, model = bundled.claims_file(), bundled.model_folder()
    rows = CLAIMS * passes
    killer = Killer(rows)
    say(f"Verifying {rows:,} claims with the bundled model on {workers} local workers.")
    ending = run_claims(
        claims,
        output,
        LLM(model),
        RunOptions(workers=workers, worker=worker, no_pool=True, overwrite=True, verbose=verbose),
        passes=passes,
        watch_s=WATCH_S,
        step=killer.step,
        planned=lambda: {killer.killed} - {""},
    )
    if ending.exit_code == 0 and not killer.killed:
        say("(This machine was done before a worker could be killed; --passes 50 gives it time.)")
    return ending.exit_code
