"""Text generation with continuous batching: rows join and leave between two tokens.

A `Decoder` holds what decodes now. `admit` reads the prompts of some rows and lets them join; `advance` makes tokens
until some rows are finished or the time is up. When memory runs out, all rows that decode go back to wait with what
they have generated, and fewer are held from then on: nothing is lost but time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pilotlight.runtimes.transformers.cohorts import Cohort
from pilotlight.runtimes.transformers.network import Network
from pilotlight.runtimes.transformers.prefix import Prefix
from pilotlight.runtimes.transformers.prompts import Prompt
from pilotlight.runtimes.transformers.sampling import Chooser, choose
from pilotlight.runtimes.transformers.text import StopWatch, decode
from pilotlight.wire import Operation

STEP_S_SLOW = 0.25
STEP_S_FAST = 0.05
ROWS_START_CPU, ROWS_MAX_CPU = 32, 256
ROWS_START_CUDA, ROWS_MAX_CUDA = 256, 1024
COLUMNS_AHEAD = 256
"""How far a row is expected to grow when room for it is reckoned; one that grows on may lead to `evict`."""
JOIN_MIN = 0.25
"""Rows join when at least this part of the room is free: each time, what runs is copied."""


@dataclass(slots=True)
class Generating:
    """One row from its prompt to its text. finish_reason and text are None while it runs."""

    ticket: int
    index: int
    operation: Operation
    prompt: Prompt
    chooser: Chooser
    watch: StopWatch | None
    prefix: Prefix | None = None
    finish_reason: str | None = None
    text: str | None = None

    @property
    def ids(self) -> list[int]:
        """What must be read before the next token: the prompt, and the answer so far."""
        return self.prompt.ids + self.chooser.chosen if self.chooser.chosen else self.prompt.ids

    def usage(self) -> dict[str, int]:
        """Token counts under OpenAI's names."""
        prompt, made = len(self.prompt.ids), len(self.chooser.chosen)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


@dataclass(slots=True)
class _Running:
    cohort: Cohort
    rows: list[Generating]

    def live(self) -> int:
        return sum(row.finish_reason is None for row in self.rows)


class Decoder:
    """All rows that are being generated, of any job."""

    def __init__(self, network: Network, tokenizer: Any, *, token_bytes: int, kv_bytes_max: int) -> None:
        """token_bytes: of one token's keys and values (0: unknown); kv_bytes_max: what all of them may take."""
        cuda = network.device.type == "cuda"
        self._token_bytes = token_bytes
        self._kv_bytes_max = kv_bytes_max
        self._network = network
        self._tokenizer = tokenizer
        self.rows_max = ROWS_START_CUDA if cuda else ROWS_START_CPU
        self._ceiling = ROWS_MAX_CUDA if cuda else ROWS_MAX_CPU
        self._running: list[_Running] = []
        self._finished: list[Generating] = []

    def __len__(self) -> int:
        return sum(running.live() for running in self._running)

    def room(self, next_row: Generating) -> int:
        """How many rows like this one should be admitted now; 0 while too few places are free to be worth it."""
        live = len(self)
        free = self.rows_max - live
        if self._token_bytes:
            columns = max((_columns(row) for running in self._running for row in running.rows), default=0)
            columns = max(columns, _columns(next_row))
            free = min(free, self._kv_bytes_max // (self._token_bytes * columns) - live)
            free = max(free, 1) if live == 0 else free
        return free if free > 0 and (live == 0 or free >= JOIN_MIN * self.rows_max) else 0

    @property
    def memory_bytes(self) -> int:
        """Keys and values."""
        return sum(running.cohort.memory_bytes for running in self._running)

    def admit(self, rows: Sequence[Generating], cohort: Cohort, logits: Tensor) -> list[Generating]:
        """Take in rows whose prompts were read, and choose each one's first token; rows that this finished."""
        finished = self._choose(logits, list(rows))
        if len(finished) < len(rows):
            self._running.append(_Running(cohort, list(rows)))
        return finished

    def advance(self, stop_s: float) -> None:
        """Make tokens until rows are `finished`, or the time (`time.monotonic`) is `stop_s`. When it raises, caches
        are in no known state, and `evict` must follow."""
        if self.memory_bytes > self._kv_bytes_max and len(self) > 1:
            raise MemoryError("keys and values have outgrown their share of memory")
        self._merge()
        while self._running and not self._finished:
            for running in self._running:
                self._finished += self._token(running)
            self._running = [
                running for running in self._running if self._compact(running, holes_max=running.cohort.holes_max)
            ]
            if time.monotonic() >= stop_s:
                break

    def finished(self) -> list[Generating]:
        """Rows that `advance` finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def evict(self) -> list[Generating]:
        """Give up all caches after running out of memory; the rows that must wait again."""
        rows = [row for running in self._running for row in running.rows if row.finish_reason is None]
        self._running = []
        return rows

    def hold_at(self, rows: int) -> None:
        """Never again more rows than this."""
        self._ceiling = self.rows_max = max(1, rows)

    def _merge(self) -> None:
        """Let rows that were admitted since join those that run."""
        if len(self._running) == 1 and self._running[0].live() == len(self._running[0].rows):
            return
        merged: list[_Running] = []
        for running in self._running:
            if not self._compact(running, holes_max=0.0 if len(self._running) > 1 else running.cohort.holes_max):
                continue
            if merged and merged[0].cohort.absorb(running.cohort):
                merged[0].rows += running.rows
                running.rows = []
            else:
                merged.append(running)
        self._running = merged

    def _token(self, running: _Running) -> list[Generating]:
        start_s = time.monotonic()
        live = [place for place, row in enumerate(running.rows) if row.finish_reason is None]
        logits = running.cohort.decode(
            [row.chooser.chosen[-1] if row.finish_reason is None else None for row in running.rows]
        )
        if len(live) < len(running.rows):
            logits = logits[live]
        finished = self._choose(logits, [running.rows[place] for place in live])
        self._resize(len(running.rows), time.monotonic() - start_s)
        return finished

    def _choose(self, logits: Tensor, rows: list[Generating]) -> list[Generating]:
        choose(logits, [row.chooser for row in rows])
        return [row for row in rows if self._ended(row)]

    def _ended(self, row: Generating) -> bool:
        chooser = row.chooser
        chosen = chooser.chosen
        made = len(chosen)
        enough = made >= chooser.min_tokens
        if enough and chosen[-1] in chooser.stop_ids:
            row.finish_reason = "stop"
            kept = chosen if chooser.include_stop else chosen[:-1]
            row.text = decode(self._tokenizer, kept, skip_special_tokens=chooser.skip_special_tokens)
            return True
        if row.watch is not None:
            row.text = row.watch.found(chosen, include=chooser.include_stop, search=enough)
            if row.text is not None:
                row.finish_reason = "stop"
                return True
        if made >= row.prompt.max_tokens:
            row.finish_reason = "length"
            row.text = decode(self._tokenizer, chosen, skip_special_tokens=chooser.skip_special_tokens)
            return True
        return False

    def _compact(self, running: _Running, *, holes_max: float) -> bool:
        """Take finished rows out of the cohort once they are too many; False when none is left."""
        live = running.live()
        if live == 0:
            return False
        if len(running.rows) - live > holes_max * len(running.rows):
            kept = [place for place, row in enumerate(running.rows) if row.finish_reason is None]
            running.cohort.select(kept)
            running.rows = [running.rows[place] for place in kept]
        return True

    def _resize(self, rows: int, seconds: float) -> None:
        """Hold more rows while a token takes little time, fewer when it takes long."""
        if seconds > STEP_S_SLOW and rows > 1:
            self.rows_max = max(1, min(self.rows_max, rows // 2 + 1))
        elif seconds < STEP_S_FAST and rows * 4 >= self.rows_max * 3:
            self.rows_max = min(self._ceiling, self.rows_max * 2)


def _columns(row: Generating) -> int:
    """Columns that a row is expected to need."""
    made = len(row.chooser.chosen)
    return len(row.prompt.ids) + made + min(max(0, row.prompt.max_tokens - made), COLUMNS_AHEAD)
