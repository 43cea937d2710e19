"""One error tree. Every leaf says whose fault it is, and so whether trying again can help.

Preemption is not in it: it is not an error. A broken invariant is not in it either: that is an `assert`.
`exit_code` is what a command ends with; `retry` is the scheduler's verdict.
"""

from __future__ import annotations

from enum import Enum


class Retry(Enum):
    """What may help after an error."""

    NEVER = "the same request fails again"
    ELSEWHERE = "another device may do better"
    LATER = "the same place may do better after a wait"


class PilotlightError(Exception):
    """Base of all errors that a user may see; its text is one sentence that says what to do."""

    kind = "error"
    retry = Retry.NEVER
    exit_code = 1


class ConfigError(PilotlightError):
    """What was asked for makes no sense, or can't be had: nothing was started."""

    kind = "config"
    exit_code = 2


class MissingExtra(ConfigError):
    """An optional dependency is not installed; the text names the extra."""

    kind = "missing_extra"


class NotWanted(ConfigError):
    """A worker is of no use to the pool that it dialled; the text says why, and the remedy."""

    kind = "not_wanted"


class ModelNotFound(ConfigError):
    """The model's folder or hub id can't be read; the text has the command that would fetch it."""

    kind = "model_not_found"


class InputError(ConfigError):
    """The input can't be opened or read."""

    kind = "input"


class InputChanged(InputError):
    """A resumed job's input is not the one it began with."""

    kind = "input_changed"


class OutputBusy(ConfigError):
    """Another command writes this output."""

    kind = "output_busy"


class OutputExists(ConfigError):
    """The output is there, and made by another request."""

    kind = "output_exists"


class OutputError(PilotlightError):
    """The output can't be written (full disk, folder gone). What was written stays; the same command goes on."""

    kind = "output"
    retry = Retry.LATER
    exit_code = 1


class Superseded(OutputError):
    """A newer manager took this output over; this one must not touch it again."""

    kind = "superseded"
    retry = Retry.NEVER


class LoadError(PilotlightError):
    """A context can't be built on a device."""

    kind = "load_failed"
    retry = Retry.ELSEWHERE


class NoRoom(LoadError):
    """A context needs more memory than a device has."""

    kind = "no_room"
    retry = Retry.NEVER


class Crowded(LoadError):
    """A context finds no room beside what a device holds now."""

    kind = "crowded"
    retry = Retry.LATER


class RequestError(PilotlightError):
    """One row's own fault; becomes its error row."""

    kind = "bad_row"
    exit_code = 3


class LinkClosed(PilotlightError):
    """The other end of a connection is gone."""

    kind = "link_closed"
    retry = Retry.LATER


class JoinRefused(ConfigError):
    """A pool on another machine does not let this worker or client in, or what is there is not the pool."""

    kind = "join_refused"


class JobFailed(PilotlightError):
    """A job ended without an answer to every row."""

    kind = "job_failed"


class JobCancelled(PilotlightError):
    """A job was cancelled before it was done."""

    kind = "cancelled"


def verdict(kind: str) -> Retry:
    """What may help after an error of this kind, as another process reported it; elsewhere, if the kind is unknown."""
    leaves: list[type[PilotlightError]] = [PilotlightError]
    for leaf in leaves:
        if leaf.kind == kind:
            return leaf.retry
        leaves += leaf.__subclasses__()
    return Retry.ELSEWHERE
