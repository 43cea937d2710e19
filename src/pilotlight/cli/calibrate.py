"""`pilotlight calibrate`: a scenario for the simulator from a real run, and how near the simulated time comes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pilotlight.cli.finding import find_run
from pilotlight.core.errors import ConfigError
from pilotlight.core.story.words import duration_text
from pilotlight.io import eventfile
from pilotlight.sim.calibrate import Calibrated, calibrated
from pilotlight.sim.measured import measure
from pilotlight.sim.nearness import ERROR_MAX, Compared, compare
from pilotlight.sim.scenario import to_toml

OFF = 3
"""Exit code where a simulated time is too far from the real one."""


def calibrate(
    run: Annotated[Path | None, Parameter(help="The run's log folder, or the output that it wrote.")] = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Scenario file to write (TOML).")] = None,
    pool: Annotated[str | None, Parameter(help="Of the lasting pool of this name.")] = None,
    check: Annotated[bool, Parameter(help="Exit with 3 where a time is off by more than 10 %.", negative="")] = False,
) -> int:
    """Make a scenario for the simulator of a real run, and say how near the simulated time comes.

    Without RUN: of what ran last. Without --output, the scenario goes to the terminal.
    """
    if run is not None and pool is not None:
        raise ConfigError("RUN and --pool each name a run: give one of them")
    is_folder = run is not None and run.is_dir()
    folder = find_run(None if is_folder else run, run if is_folder else None, pool)
    try:
        found = calibrated(measure(eventfile.read(folder)), f"The run of {folder.name}")
    except OSError as error:
        raise ConfigError(f"the event log in {folder} can't be read: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"the event log in {folder} can't be calibrated from: {error}") from error
    text = to_toml(found.scenario, found.comments)
    told = report(found, compared := compare(found))
    if output is None:
        print(text)
        print(told, file=sys.stderr)
    else:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{output} can't be written: {error.strerror}") from error
        print(told, f"scenario  {output}", sep="\n")
    return OFF if check and any(each.error is None or abs(each.error) > ERROR_MAX for each in compared) else 0


def report(found: Calibrated, compared: list[Compared]) -> str:
    """Times side by side, a line each, and what the scenario leaves out."""
    width = max(len("job"), *(len(each.name) for each in compared))
    lines = [f"{'job':{width}}  {'rows':>12}  {'real':>12}  {'simulated':>12}  error"]
    for each in compared:
        simulated = "not ended" if each.simulated_s is None else duration_text(each.simulated_s)
        error = "" if each.error is None else f"{100 * each.error:+.1f} %"
        lines.append(
            f"{each.name:{width}}  {each.rows:>12,}  {duration_text(each.real_s):>12}  {simulated:>12}  {error:>7}"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])
