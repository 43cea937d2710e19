"""How a job gets hold of its output: begin, go on, begin again, take error rows up again, or find it done.

Everything is decided under the folder's lock, and nothing that an earlier epoch left is removed before the new epoch's
journal says, durably, what replaces it. So whatever step this stops at, the next opening finds the old facts or the
new ones. What does not live here: writing rows (`workfolder.py`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

import msgspec

from pilotlight.core.errors import ConfigError, OutputExists
from pilotlight.core.ranges import IndexSet
from pilotlight.io.bases import BaseFile
from pilotlight.io.blocks import BlockIndex, add_counts, void_rows
from pilotlight.io.compression import form_of_name
from pilotlight.io.files import Files
from pilotlight.io.journal import (
    Base,
    Begin,
    Epoch,
    Facts,
    Journal,
    Ordered,
    Retry,
    journal_name,
    journal_of_name,
    read_journal,
)
from pilotlight.io.lock import FolderLock
from pilotlight.io.report import read_report, report_path, unpack_crcs
from pilotlight.io.segments import read_segment, scan_blocks, segment_of_name
from pilotlight.wire import PathOutput

_OURS = re.compile(r"(?:segment|ordered|base|journal|report)-(\d+)[-.].*")
_ENDINGS = {"plain": ".jsonl", "gzip": ".jsonl.gz", "zstd": ".jsonl.zst"}
_AFRESH = "use --overwrite to start afresh, or choose another output"


@dataclass(slots=True)
class Opened:
    """A folder that is ours now, with what is known about the job."""

    lock: FolderLock
    journal: Journal
    facts: Facts
    bases: list[BaseFile]
    index: BlockIndex
    resumed: bool


@dataclass(slots=True)
class Finished:
    """The output is there, complete, and made by this very request."""

    report: dict[str, Any]


def folder_path(output: str) -> str:
    """`answers.jsonl` -> `answers.jsonl.pilotlight`."""
    return output + ".pilotlight"


def pending_report_name(epoch: int) -> str:
    """The report, until the output is in its place."""
    return f"report-{epoch}.json"


def epoch_of_name(name: str) -> int | None:
    """The epoch whose file that is; None for all others."""
    found = _OURS.fullmatch(name)
    return int(found[1]) if found else None


def open_output(
    output: PathOutput, identity: dict[str, Any], files: Files, stale_after_s: float, range_rows: int
) -> Opened | Finished:
    """See `JobFolder.open`. Raises OSError, and what that says."""
    opening = _Opening(output, identity, files, range_rows)
    if not os.path.isdir(opening.folder):
        verdict, report = opening.judge_output()
        if verdict == "finished":
            return Finished(report)
    return opening.run(stale_after_s)


class _Opening:
    def __init__(self, output: PathOutput, identity: dict[str, Any], files: Files, range_rows: int) -> None:
        self.out = os.path.realpath(output.path)
        self.folder = folder_path(self.out)
        self._wish = output
        # As it will come back from the journal, so that it compares equal.
        self._identity = msgspec.json.decode(msgspec.json.encode(identity), type=dict[str, Any])
        self._files = files
        self._range_rows = range_rows
        parent = os.path.dirname(self.out)
        if not os.path.isdir(parent):
            raise ConfigError(f"there is no folder {parent} for the output: create it first")
        if os.path.exists(self.out) and not os.path.isfile(self.out):
            raise ConfigError(f"{output.path} is not a regular file: choose another output")

    def judge_output(self) -> tuple[Literal["absent", "finished", "reopen"], dict[str, Any]]:
        """What to do about the output where no folder tells. Raises `OutputExists`."""
        if not os.path.exists(self.out) or self._wish.overwrite:
            return "absent", {}
        report = read_report(self.out)
        theirs: Any = report.get("identity") if report else None
        if report is None or not isinstance(theirs, dict):
            raise OutputExists(f"{self.out} is there, and no report tells what made it: {_AFRESH}")
        if theirs != self._identity:
            self._refuse("was made", cast("dict[str, Any]", theirs))
        if report.get("bytes") != os.path.getsize(self.out):
            raise OutputExists(f"{self.out} was changed since it was made: {_AFRESH}")
        kinds = self._wish.retry_errors
        errors: dict[str, int] = report.get("errors") or {}
        if kinds is not None and _has(errors, kinds):
            return "reopen", report
        return "finished", report

    def run(self, stale_after_s: float) -> Opened | Finished:
        lock = FolderLock(self.folder, self.out, self._files, stale_after_s)
        try:
            opened = self._run(lock)
        except BaseException:
            self._leave(lock)
            raise
        if isinstance(opened, Finished):
            self._leave(lock)
        return opened

    def _leave(self, lock: FolderLock) -> None:
        lock.release()
        self._files.rmdir(self.folder)

    def _run(self, lock: FolderLock) -> Opened | Finished:
        names = os.listdir(self.folder)
        epoch = 1 + max((epoch_of_name(name) or 0 for name in names), default=0)
        facts = self._last_facts(names)
        if facts and facts.finishing and self._is_in_place(facts):
            self._complete_finish(facts.epoch)
            facts = None
        if facts and self._may_resume(facts):
            return self._begin_epoch(lock, epoch, facts, resumed=True)
        if facts:
            verdict, report = "absent", {}
        else:
            verdict, report = self.judge_output()
        if verdict == "finished":
            return Finished(report)
        replaces = os.path.exists(self.out)
        facts = Facts(Begin(epoch, self._identity, self._wish.overwrite, replaces))
        if verdict == "reopen":
            self._reopen(facts, report)
        return self._begin_epoch(lock, epoch, facts, resumed=verdict == "reopen")

    def _last_facts(self, names: list[str]) -> Facts | None:
        epochs = sorted(epoch for name in names if (epoch := journal_of_name(name)) is not None)
        for epoch in reversed(epochs):
            if facts := read_journal(os.path.join(self.folder, journal_name(epoch))):
                return facts
        return None

    def _is_in_place(self, facts: Facts) -> bool:
        assert facts.finishing
        if os.path.exists(os.path.join(self.folder, facts.ordered.file)) or not os.path.exists(self.out):
            return False
        return os.path.getsize(self.out) == facts.finishing.bytes

    def _complete_finish(self, epoch: int) -> None:
        """Do what a finish had left to do when it died."""
        report = self._path(pending_report_name(epoch))
        if os.path.exists(report):
            self._files.replace(report, report_path(self.out))
        self._files.sync_folder(os.path.dirname(self.out))
        ours = sorted((at, name) for name in os.listdir(self.folder) if (at := epoch_of_name(name)) is not None)
        last = journal_name(epoch)
        for _, name in ours:
            if name != last:
                self._files.unlink(self._path(name))
        self._files.unlink(self._path(last))

    def _may_resume(self, facts: Facts) -> bool:
        """Whether to go on; False: begin afresh. Raises `OutputExists`."""
        begin = facts.begin
        same = begin.identity == self._identity
        if self._wish.overwrite:
            # The same command goes on where it was, also one that says --overwrite; but one that says it for the
            # first time, or after another input was met, means it.
            return same and begin.overwrite and not facts.input_differs
        if not same:
            self._refuse("was begun", begin.identity)
        if os.path.exists(self.out) and not begin.replaces:
            raise OutputExists(f"{self.out} has appeared since the job that writes it began: {_AFRESH}")
        return True

    def _refuse(self, how: str, theirs: dict[str, Any]) -> NoReturn:
        raise OutputExists(f"{self.out} {how} by another request ({_difference(theirs, self._identity)}): {_AFRESH}")

    def _reopen(self, facts: Facts, report: dict[str, Any]) -> None:
        kinds = self._wish.retry_errors or []
        rows: int = report["rows"]
        facts.rows_total = rows
        facts.inputs = {block[0]: block for block in unpack_crcs(report.get("input_crc32", ""), rows)}
        facts.bases = [Base("", 0, rows, report["bytes"], kinds)]
        facts.retries = [Retry(facts.begin.epoch, kinds)]
        facts.ordered = Ordered("", counters=report.get("counters") or {})

    def _begin_epoch(self, lock: FolderLock, epoch: int, facts: Facts, *, resumed: bool) -> Opened:
        journal = Journal(self.folder, epoch, self._files)
        bases: list[BaseFile] = []
        try:
            self._carry_over(facts, epoch, lock.predecessor_alive)
            bases = [BaseFile(self._path(base.file), base) for base in facts.bases]
            index, void = self._index(facts, bases)
            facts.attempts = {at: n for at, n in facts.attempts.items() if at not in index.done and at not in void}
            facts.finishing = None
            facts.epoch = epoch
            journal.append([*facts.records(), Epoch(epoch)])
            journal.sync()
            self._files.sync_folder(self.folder)
            self._files.sync_folder(os.path.dirname(self.out))
            lock.sign(epoch)
            lock.check()
            self._sweep(facts, epoch)
        except BaseException:
            journal.close()
            for base in bases:
                base.close()
            raise
        return Opened(lock, journal, facts, bases, index, resumed)

    def _carry_over(self, facts: Facts, epoch: int, predecessor_alive: bool) -> None:
        """Make the ordered part this epoch's own, or a base where its error rows are to be done again."""
        ending = _ENDINGS[form_of_name(self.out)]
        fresh = f"ordered-{epoch}{ending}"
        old = facts.ordered
        if old.file and (not os.path.exists(self._path(old.file)) or os.path.getsize(self._path(old.file)) < old.bytes):
            old = Ordered("")  # what is lost is done again
        kinds = self._wish.retry_errors
        again = kinds is not None and not any(set(kinds) == set(retry.kinds) for retry in facts.retries)
        if kinds is not None and again:
            facts.retries.append(Retry(epoch, kinds))
            facts.bases = [_widened(base, kinds, old.rows) for base in facts.bases if base.stop > old.rows]
        as_base = kinds is not None and again and old.rows > 0
        if old.rows and predecessor_alive:
            name = f"base-{epoch}{ending}" if as_base else fresh
            self._files.copy(self._path(old.file), self._path(name), old.bytes)
            old = msgspec.structs.replace(old, file=name)
        if kinds is not None and as_base:
            facts.bases.insert(0, Base(old.file, 0, old.rows, old.bytes, kinds))
        if as_base or not old.rows:
            old = Ordered(fresh, counters=old.counters)
        facts.ordered = old

    def _index(self, facts: Facts, bases: list[BaseFile]) -> tuple[BlockIndex, IndexSet]:
        """What is done, and what was but is to be done again."""
        index = BlockIndex(self._range_rows)
        void = IndexSet()
        rows = facts.ordered.rows
        index.done.add(0, rows)
        index.errors.update(facts.ordered.errors)
        index.counters.update(facts.ordered.counters)
        for base in bases:
            if base.base.stop <= rows:
                continue
            base.scan()
            void.update(base.void)
            for start, stop in base.kept(rows, base.base.stop):
                index.done.add(start, stop)
            for kind, error_rows in base.errors.items():
                if count := sum(b - a for a, b in error_rows.within(rows, base.base.stop)):
                    add_counts(index.errors, {kind: count})
        segments = sorted((at, name) for name in os.listdir(self.folder) if (at := segment_of_name(name)))
        for (epoch, _), name in segments:
            if epoch < facts.begin.epoch:
                continue
            kinds = [retry.kinds for retry in facts.retries if retry.epoch > epoch]
            number = index.segment(self._path(name))
            # A killed predecessor left rows that no one has made durable; ours to promise now.
            self._make_durable(self._path(name))
            for place, header in scan_blocks(read_segment(self._path(name))):
                block_void = IndexSet()
                if kinds and header.errors:
                    for each in kinds:
                        block_void.update(void_rows(header, each))
                    void.update(block_void)
                index.add(number, place, header, block_void)
        return index, void

    def _make_durable(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._files.datasync(fd)
        finally:
            os.close(fd)

    def _sweep(self, facts: Facts, epoch: int) -> None:
        """Remove what no fact speaks of any more."""
        spoken_of = {journal_name(epoch), facts.ordered.file, *(base.file for base in facts.bases)}
        for name in os.listdir(self.folder):
            of = epoch_of_name(name)
            if of is None or name in spoken_of:
                continue
            if segment_of_name(name) and of >= facts.begin.epoch:
                continue
            self._files.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name) if name else self.out


def _widened(base: Base, kinds: list[str], start: int) -> Base:
    both = sorted({*base.kinds, *kinds}) if base.kinds and kinds else []
    return msgspec.structs.replace(base, start=max(base.start, start), kinds=both)


def _has(errors: dict[str, int], kinds: list[str]) -> bool:
    return any(count and (not kinds or kind in kinds) for kind, count in errors.items())


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    names = [*theirs, *(name for name in ours if name not in theirs)]
    return "; ".join(
        f"{name}: {_short(theirs.get(name))} -> {_short(ours.get(name))}"
        for name in names
        if theirs.get(name) != ours.get(name)
    )


def _short(value: Any) -> str:
    text = "none" if value is None else msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."
