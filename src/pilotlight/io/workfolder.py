"""A job's output while it is being written: the working folder `OUT.pilotlight/`, and OUT at the end.

    lock                    who writes here, and its last sign of life
    journal-<epoch>.jsonl   facts about the job
    segment-<epoch>-<n>.pl  finished rows as they came
    ordered-<epoch>.jsonl   the first rows, in order; becomes OUT

A row is done when its block is in a segment. Whenever the next 65,536 rows are done, they are appended to the
ordered file, that is made durable, the journal says so durably, and only then do they leave the segments. Every
manager epoch writes to files of its own and stops as soon as it sees that it was superseded.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pilotlight.core.errors import InputChanged, OutputError, Superseded
from pilotlight.core.ranges import IndexSet
from pilotlight.io.blocks import add_counts
from pilotlight.io.compression import form_of_name
from pilotlight.io.files import Files, output_error
from pilotlight.io.fingerprint import BLOCK_ROWS, BlockCrc
from pilotlight.io.journal import Attempts, Finishing, Input, InputDiffers, InputEnd, Ordered, Record
from pilotlight.io.opening import Finished, Opened, epoch_of_name, folder_path, open_output, pending_report_name
from pilotlight.io.ordering import OrderedFile, gather
from pilotlight.io.report import encode_report, pack_crcs, report_path, unpack_crcs
from pilotlight.io.segments import SEGMENT_BYTES, BlockHeader, SegmentWriter
from pilotlight.wire import PathOutput, ResultChunk

RANGE_ROWS = 65_536


class JobFolder:
    """A `ports.Sink` into a file, and the memory of the job that fills it.

    One thread calls everything but `sync`, which may be called from another: it fsyncs and puts rows in order, so
    it may take a while. An `OutputError` (but for `Superseded`) leaves everything as it was; the call may be tried
    again, unless an fsync failed: then only opening anew tells what is on disk, and every call raises.

    epoch: unique and growing per output; on disk before `open` returns; 0 if complete.
    done, errors, counters: which rows are done, error rows among them by kind, sums over them. They grow as rows are
        written; the caller must not change them.
    resumed: an earlier run left something. complete: the output is finished and this request made it; nothing may be
        written. attempts: charged so far, of rows that are not done. rows_total: if the input was read to its end.
    report: what `finish` shall put into the report besides what the sink itself has to say.
    """

    def __init__(self, out: str, opened: Opened | Finished, files: Files, segment_bytes: int) -> None:
        """Not for callers: use `open`. Takes ownership of `opened`."""
        self.path = out
        self.folder = folder_path(out)
        self.report: dict[str, Any] = {}
        self._files = files
        self._mutex = threading.Lock()
        """Held for short: segments, index, journal."""
        self._heavy = threading.RLock()
        """Held while ordering: the ordered file."""
        self._broken: OutputError | None = None
        self._renamed = False
        self._opened: Opened | None = None
        self._closed = False
        self.complete = isinstance(opened, Finished)
        if isinstance(opened, Finished):
            report = opened.report
            self.epoch = 0
            self.resumed = True
            self.rows_total: int | None = report["rows"]
            self.done = IndexSet([(0, report["rows"])])
            self.errors: dict[str, int] = report.get("errors") or {}
            self.counters: dict[str, float] = report.get("counters") or {}
            self.attempts: dict[int, int] = {}
            blocks = unpack_crcs(report.get("input_crc32") or "", report["rows"])
            self._inputs: dict[int, BlockCrc] = {block[0]: block for block in blocks}
            return
        facts = opened.facts
        self.epoch = facts.epoch
        self.resumed = opened.resumed
        self.rows_total = facts.rows_total
        self.done = opened.index.done
        self.errors = opened.index.errors
        self.counters = opened.index.counters
        self.attempts = dict(facts.attempts)
        self._inputs = dict(facts.inputs)
        self._opened = opened
        self._lock = opened.lock
        self._journal = opened.journal
        self._index = opened.index
        self._ordered = facts.ordered
        ordered_path = os.path.join(self.folder, facts.ordered.file)
        self._file = OrderedFile(ordered_path, form_of_name(out), facts.ordered.bytes, files)
        self._folder_fd = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        self._writer = SegmentWriter(self.folder, self.epoch, files, segment_bytes)

    @classmethod
    def open(
        cls,
        output: PathOutput,
        identity: dict[str, Any],
        *,
        stale_after_s: float = 30.0,
        files: Files | None = None,
        range_rows: int = RANGE_ROWS,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> JobFolder:
        """Begin a job's output, or go on with it.

        identity: everything that a rerun must ask for equally, as flat names and JSON values. An unfinished folder or a
        finished output of the same identity is taken up; with `retry_errors`, error rows of those kinds count as not
        done (the first time that a folder is opened so: the same command then goes on).

        Raises `OutputExists` (made by another request: names the differences), `OutputBusy` (another command writes it
        and gave a sign of life in the last `stale_after_s`), `ConfigError` (no such folder), `OutputError`.
        """
        files = files or Files()
        files.umask = output.umask
        out = os.path.realpath(output.path)
        try:
            opened = open_output(output, identity, files, stale_after_s, range_rows)
            try:
                return cls(out, opened, files, segment_bytes)
            except BaseException:
                if isinstance(opened, Opened):
                    opened.journal.close()
                    opened.lock.release()
                raise
        except OSError as error:
            raise output_error(out, error) from error

    @property
    def input_blocks(self) -> list[BlockCrc]:
        """The journaled fingerprint of the input: (block, rows, CRC-32), in order."""
        return sorted(self._inputs.values())

    def write(self, chunk: ResultChunk) -> None:
        """See `ports.Sink`. Rows that are done already are passed over."""
        if chunk.count == 0:
            return
        with self._mutex:
            self._check()
            path, place = self._writer.write(chunk)
            header = BlockHeader(chunk.spans, chunk.errors, chunk.counters)
            self._index.add(self._index.segment(path), place, header)

    def sync(self) -> None:
        """See `ports.Sink`; also puts in order what can be."""
        with self._heavy:
            if self._closed:
                return
            self._check()
            self._durable()
            self._order(None)

    def record_input(self, block: int, rows: int, crc: int) -> None:
        """Remember the fingerprint of a block of the input. Raises `InputChanged` if an earlier run read another."""
        known = self._inputs.get(block)
        if known == (block, rows, crc):
            return
        if known is not None:
            self._append(InputDiffers())
            first = block * BLOCK_ROWS
            raise InputChanged(
                f"rows {first} to {first + max(rows, known[1]) - 1} of the input are not those that the job of "
                f"{self.path} began with: give it the same input, or start afresh with --overwrite"
            )
        self._append(Input(block, rows, crc))
        self._inputs[block] = (block, rows, crc)

    def record_input_end(self, rows: int) -> None:
        """Remember how many rows the input has. Raises `InputChanged` if an earlier run found another number."""
        if self.rows_total == rows:
            return
        if self.rows_total is not None:
            self._append(InputDiffers())
            raise InputChanged(
                f"the input has {rows} rows, and had {self.rows_total} when the job of {self.path} began: give it the "
                "same input, or start afresh with --overwrite"
            )
        self._append(InputEnd(rows))
        self.rows_total = rows

    def record_attempts(self, counts: Mapping[int, int]) -> None:
        """Remember how many attempts rows were charged in all."""
        if counts:
            self._append(Attempts(dict(counts)))
            self.attempts.update(counts)

    def beat(self) -> None:
        """Give a sign of life; call it about once a second. Raises `Superseded`."""
        if not self._closed and not self.complete:
            self._lock.beat()

    def finish(self, rows: int) -> None:
        """See `ports.Sink`: OUT is there when this returns, with its report, and the folder is gone."""
        with self._heavy:
            if not self._renamed:
                self._check()
                assert self.done.spans() == ([(0, rows)] if rows else []), "not every row is done"
                self._durable()
                self._order(rows)
                assert self._ordered.rows == rows, "not every row is in order"
                with _AsOutputError(self.folder):
                    self._put_in_place(rows)
            with contextlib.suppress(Superseded), _AsOutputError(self.folder):
                self._clear()
            self.close()

    def close(self) -> None:
        """See `ports.Sink`."""
        with self._heavy:
            if self._closed or self._opened is None:
                return
            self._closed = True
            self._writer.close()
            self._journal.close()
            self._file.close()
            for base in self._opened.bases:
                base.close()
            self._lock.release()
            os.close(self._folder_fd)

    def _check(self) -> None:
        assert not self.complete, "the output is complete"
        if self._closed:
            raise OutputError(f"{self.path} was closed")
        if self._broken:
            raise self._broken
        self._lock.check()

    def _append(self, record: Record) -> None:
        with self._mutex:
            self._check()
            self._journal.append([record])

    def _durable(self) -> None:
        self._or_break(self._journal.sync)
        self._or_break(self._writer.sync)

    def _or_break(self, sync: Callable[[], None]) -> None:
        try:
            sync()
        except OutputError as error:
            # The system reports lost pages once and then takes them for written.
            self._broken = error
            raise

    def _order(self, rows: int | None) -> None:
        """Put in order every complete range that is next; all of them if `rows` says how many there are."""
        step = self._index.range_rows
        while True:
            start = self._ordered.rows
            stop = (start // step + 1) * step
            if rows is not None:
                stop = min(stop, rows)
            with self._mutex:
                ready = start < stop and self.done.covers(start, stop)
            if not ready:
                return
            self._order_range(start, stop)

    def _order_range(self, start: int, stop: int) -> None:
        assert self._opened
        self._lock.check()
        errors, counters = dict(self._ordered.errors), dict(self._ordered.counters)
        try:
            with _AsOutputError(self._file.path):
                for part in gather(self._index, self._opened.bases, start, stop):
                    self._file.append(part.text)
                    add_counts(errors, part.errors)
                    add_counts(counters, part.counters)
                size = self._file.commit()
            record = Ordered(self._ordered.file, stop, size, errors, counters)
            self._append(record)
        except Superseded:
            raise
        except OutputError:
            self._file.cut()
            raise
        self._or_break(self._journal.sync)
        self._file.size = size
        self._ordered = record
        with self._mutex:
            self._index.drop(start)
            dead = self._index.dead_segments(but=self._writer.path)
        with _AsOutputError(self.folder):
            for path in dead:
                self._lock.check()
                self._files.unlink(os.path.basename(path), self._folder_fd)

    def _put_in_place(self, rows: int) -> None:
        if rows == 0 and self._file.size == 0 and self._file.form != "plain":
            # An empty file is no valid gzip or zstd file.
            self._file.append(b"")
            self._file.size = self._file.commit()
            self._ordered = Ordered(self._ordered.file, 0, self._file.size)
            self._append(self._ordered)
        size = self._file.commit()
        assert size == self._ordered.bytes, "the ordered file is not as long as the journal says"
        self._files.write_file(
            os.path.join(self.folder, pending_report_name(self.epoch)), encode_report(self._report(rows, size))
        )
        self._append(Finishing(rows, size))
        self._or_break(self._journal.sync)
        self._files.sync_folder(self.folder)
        self._lock.check()
        self._files.replace(self._ordered.file, self.path, self._folder_fd)
        self._renamed = True

    def _report(self, rows: int, size: int) -> dict[str, Any]:
        assert self._opened
        return {
            **self.report,
            "rows": rows,
            "bytes": size,
            "errors": dict(self.errors),
            "counters": dict(self.counters),
            "identity": self._opened.facts.begin.identity,
            "input_crc32": pack_crcs(self._inputs.values()),
        }

    def _clear(self) -> None:
        """Move the report out and remove the folder, the journal that tells of it last."""
        with contextlib.suppress(FileNotFoundError):
            self._files.replace(pending_report_name(self.epoch), report_path(self.path), self._folder_fd)
        self._files.sync_folder(os.path.dirname(self.path))
        own = os.path.basename(self._journal.path)
        for name in sorted(os.listdir(self._folder_fd), key=lambda name: epoch_of_name(name) or 0):
            of = epoch_of_name(name)
            if of is not None and of <= self.epoch and name != own:
                self._lock.check()
                self._files.unlink(name, self._folder_fd)
        self._lock.check()
        self._files.unlink(own, self._folder_fd)
        self._lock.release()
        self._files.rmdir(self.folder)


class _AsOutputError(contextlib.AbstractContextManager[None]):
    """OSError from inside becomes an `OutputError` about `path`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise output_error(self._path, error) from error
