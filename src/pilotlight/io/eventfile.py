"""A run's event log as lines of JSON: what a line holds, and how the files of a folder become records again.

`events.jsonl` begins with a header; then each line is a step of the manager's machine: what happened, what was decided,
and which earlier step led to it. A long run's older half is `events.1.jsonl`. `manager/eventlog.py` writes them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import msgspec

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.story.records import Began, Gap, Named, Record, Step

NAME = "events.jsonl"
OLDER_NAME = "events.1.jsonl"
FORMAT = 1


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """First line of each file. `log`: the format's number. `began`: Unix time at which `t` was 0. `again`: the same
    manager goes on in a new file, and what still stands is repeated below."""

    log: int
    pilotlight: str = ""
    pool: str = ""
    epoch: int = 0
    began: float = 0.0
    again: bool = False


def files(folder: Path) -> list[Path]:
    """The log's files in a folder, oldest first; none if there is no log."""
    return [path for path in (folder / OLDER_NAME, folder / NAME) if path.is_file()]


def read(folder: Path) -> Iterator[Record]:
    """All records of a folder's log, in order. Lines that can't be read become `Gap`s; a torn last one is left out.

    Raises `OSError` where a file can't be read.
    """
    reader = _Reader()
    for path in files(folder):
        with path.open("rb") as file:
            for line in file:
                yield from reader.take(line)


class _Reader:
    """Times of all managers become seconds since the first one began."""

    def __init__(self) -> None:
        self._first_began_s: float | None = None
        self._offset_s = 0.0
        self._at_s = 0.0
        self._epoch: int | None = None
        self._first_n = 0
        """Of this manager's steps, the first that is not a repeated one."""
        self._repeated: set[bytes] = set()

    def take(self, line: bytes) -> list[Record]:
        if not line.endswith(b"\n") or line == b"\n":
            return []
        try:
            read = _decoder().decode(line)
        except msgspec.MsgspecError:
            return [Gap(self._at_s, 1, "a line of the log can't be read")]
        if read.log:
            return self._header(read)
        self._at_s = read.t + self._offset_s
        if read.lost:
            return [Gap(self._at_s, read.lost, read.why)]
        if read.names:
            return [Named(self._at_s, read.names)]
        if read.event is None:
            return []
        if read.again:
            if line in self._repeated or 0 < self._first_n <= read.n:
                return []  # the older file has it
            self._repeated.add(line)
        else:
            self._first_n = self._first_n or read.n
        since_s = read.t if read.since is None else read.since
        decisions = tuple(_only_one(decision) for decision in read.do)
        return [
            Step(read.n, self._at_s, _only_one(read.event), decisions, read.because, since_s=since_s + self._offset_s)
        ]

    def _header(self, read: Any) -> list[Record]:
        if self._epoch == read.epoch and read.again:
            return []
        if self._first_began_s is None:
            self._first_began_s = read.began
        self._epoch = read.epoch
        self._offset_s = max(read.began - self._first_began_s, self._at_s)  # a clock may have been set back
        self._first_n = 0
        self._repeated.clear()
        self._at_s = self._offset_s
        return [Began(self._at_s, read.epoch, read.pilotlight, read.pool, read.began, again=read.again)]


def _only_one(read: Any) -> Any:
    """The one field that is set of a struct which has a field per type."""
    for name in read.__struct_fields__:
        found = getattr(read, name)
        if found is not msgspec.UNSET:
            return found
    raise AssertionError("a line names no event")


@functools.cache
def _decoder() -> msgspec.json.Decoder[Any]:
    """Made when needed: the manager, which only writes, does not pay for it."""
    event, decision = _tagged("Event", ev.ManagerEvent), _tagged("Decision", do.ManagerDecision)
    fields: list[tuple[str, Any, Any]] = [
        ("log", int, 0),
        ("pilotlight", str, ""),
        ("pool", str, ""),
        ("epoch", int, 0),
        ("began", float, 0.0),
        ("again", bool, False),
        ("lost", int, 0),
        ("why", str, ""),
        ("n", int, 0),
        ("t", float, 0.0),
        ("since", float | None, None),
        ("because", int | None, None),
        ("names", dict[str, str], msgspec.field(default_factory=dict)),
        ("event", event | None, None),
        ("do", list[decision], msgspec.field(default_factory=list)),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Line", fields))


def _tagged(name: str, union: Any) -> Any:
    """A struct with one optional field per type of a union, named like the type."""
    types = cast("tuple[type, ...]", get_args(union))
    return msgspec.defstruct(
        name, [(kind.__name__, kind | msgspec.UnsetType, msgspec.UNSET) for kind in types], forbid_unknown_fields=True
    )
