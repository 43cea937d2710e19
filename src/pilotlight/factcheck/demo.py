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
from pilotlight.client.llm import LLM
from pilotlight.client.pool import Pool
from pilotlight.factcheck import bundled
from pilotlight.factcheck.command import run_claims

KILL_AT = 0.4
WATCH_S = 0.1


class Killer:
    """Kills one worker, once, when enough is done that it holds work."""

    def __init__(self) -> None:
        self.killed = ""

    def step(self, fold: Fold, display: Display) -> None:
        """See `follow.Step`."""
        if self.killed or (fold.fraction or 0.0) < KILL_AT:
            return
        busy = [worker for worker in fold.workers if worker.state == "live" and worker.rows_leased and worker.pid]
        if len(busy) < 2:
            return
        victim = busy[-1]
        self.killed = victim.worker
        display.note(
            f"demo: killing {victim.worker} (process {victim.pid}) with SIGKILL now, at {100 * (fold.fraction or 0):.0f} %: "
            f"as a preempted machine would go",
            "warning",
        )
        os.kill(victim.pid, signal.SIGKILL)


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="File of verdicts to write (replaced).")] = Path(
        "pilotlight-demo.jsonl"
    ),
    passes: Annotated[int, Parameter(help="How often the 3,000 bundled claims are verified.")] = 5,
    workers: Annotated[int, Parameter(help="Local workers.")] = 2,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], help="Show why.", negative="")] = False,
) -> int:
    """See it work: verify the bundled claims with the bundled tiny model, and lose a worker on the way."""
    checks.check_output(output, [])
    checks.check_numbers(limit=None, workers=workers, max_attempts=max(passes, 0))
    claims, model = bundled.claims_file(), bundled.model_folder()
    killer = Killer()
    print(f"Verifying {3000 * passes:,} claims with the bundled model on {workers} local workers.", flush=True)
    ending = run_claims(
        claims,
        output,
        LLM(model),
        Pool(workers, watch_s=WATCH_S),
        passes=passes,
        verbose=verbose,
        step=killer.step,
        options={"overwrite": True},
    )
    if ending.exit_code == 0 and not killer.killed:
        print("(This machine was done before a worker could be killed; --passes 50 gives it time.)")
    return ending.exit_code
