"""`pilotlight explain`: what happened to a worker, context, job, lease or row, and why, from a run's event log."""

from __future__ import annotations

import difflib
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from pilotlight.cli.finding import find_run
from pilotlight.core.errors import ConfigError
from pilotlight.core.story.cast import Cast
from pilotlight.core.story.records import Began, Story
from pilotlight.core.story.subjects import Subject, find, known_names
from pilotlight.core.story.telling import overview, survey, tell
from pilotlight.io import eventfile
from pilotlight.io.report import read_report

NEAR_MAX = 4
HINT_NAMES_MAX = 3


def explain(
    *subjects: str,
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="Of the run that wrote this output (unset: the last run)."),
    ] = None,
    run: Annotated[Path | None, Parameter(help="Of the run with this log folder.")] = None,
    pool: Annotated[str | None, Parameter(help="Of the lasting pool of this name.")] = None,
    json: Annotated[bool, Parameter(help="One JSON object per story.", negative="")] = False,
) -> int:
    """Tell what happened to something in a run, and why.

    SUBJECTS are a worker (worker-1), a device (worker-1/cpu), a context by its name or id, a job (job-1), a lease
    (lease-1.7), or a row by its index, which is 0 for the first (row 12, or job-1:12 where there are several jobs).
    Without one: the whole run, in brief. What ran last, in a pool of its own or in a lasting one, is told of unless an
    option says otherwise.
    """
    if sum(given is not None for given in (output, run, pool)) > 1:
        raise ConfigError("--output, --run and --pool each name a run: give one of them")
    folder = find_run(output, run, pool)
    names, job_id = names_in(subjects), _job_of(output)
    try:
        if names:
            cast = survey(eventfile.read(folder))
            found = [subject for name in names for subject in _find(cast, name, folder, job_id)]
            stories = [tell(eventfile.read(folder), subject) for subject in found]
        else:
            stories = overview(eventfile.read(folder))
    except OSError as error:
        raise ConfigError(f"the event log in {folder} can't be read: {error.strerror}") from error
    if json:
        told = [{"log": str(folder), "title": story.title, "lines": story.lines} for story in stories]
        print(*(msgspec.json.encode(each).decode() for each in told), sep="\n")
        return 0
    print(_headline(folder))
    for story in stories:
        print(*["", *_told(story)], sep="\n")
    if not names:
        print("", _hint(survey(eventfile.read(folder))), sep="\n")
    return 0


# --- which subject


def _job_of(output: Path | None) -> str:
    """The job that wrote an output, as its report says; empty where none is asked for."""
    report = read_report(str(output)) if output is not None else None
    return str(report.get("job", "")) if report is not None else ""


def names_in(words: tuple[str, ...]) -> list[str]:
    """`row 12` is one name in two words, and `row 12 of job-1` one in four."""
    names: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in {"row", "job", "lease", "worker", "context"} and rest:
            value = rest.pop(0)
            if word == "row" and len(rest) > 1 and rest[0] == "of":
                word, value, rest = "", f"{rest[1]}:{value}", rest[2:]
            elif word != "row":
                word = ""
            names.append(f"{word} {value}".strip())
        else:
            names.append(word)
    return names


def _find(cast: Cast, name: str, folder: Path, job_id: str) -> list[Subject]:
    found = find(cast, name, of_job=job_id)
    if found:
        return found
    near = difflib.get_close_matches(name, known_names(cast), NEAR_MAX)
    hint = f"near it are {', '.join(near)}" if near else "`pilotlight explain` alone lists what there is"
    raise ConfigError(f"nothing in the run of {folder} is called {name!r}; {hint}")


# --- on the terminal


def _headline(folder: Path) -> str:
    began = next((record for record in eventfile.read(folder) if isinstance(record, Began)), None)
    if began is None:
        return f"{folder}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began.wall_s))
    pool = f"pool {began.pool}, " if began.pool else ""
    return f"{pool}run of {when}, to which all times are relative ({folder})"


def _told(story: Story) -> list[str]:
    lines = [story.title]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in story.lines:
        at = f"{line.at_s:10.3f} s  "
        if width > 2 * len(at):
            lines += textwrap.wrap(line.text, width - 1, initial_indent=at, subsequent_indent=" " * len(at))
        else:
            lines.append(at + line.text)
    return lines


def _hint(cast: Cast) -> str:
    names = [*list(cast.workers)[:HINT_NAMES_MAX], *list(cast.jobs)[:1], *list(cast.variants.values())[:1]]
    names += [*list(cast.leases)[:1], "row 0"]
    return f"more: pilotlight explain SUBJECT, as in {', '.join(names)}"
