"""A live model: rows of any job in, outcomes out; the turns between scoring, prompts and decoding; out of memory.

Each operation has its own rows waiting and labels; prompt prefixes belong to the model. A step takes operations in
turn and does about a quarter of a second of work; a long prompt takes several. Nothing here knows how a pass is made
(`reading`, `classify`, `generate`), a prompt (`prompts`), or an answer (`outcomes`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from pilotlight.ports import Outcome, Row
from pilotlight.runtimes.transformers import outcomes
from pilotlight.runtimes.transformers.budget import PASS_S, TOKENS_MIN, TokenBudget, is_out_of_memory
from pilotlight.runtimes.transformers.classify import LabelTree, score, tokenise_labels
from pilotlight.runtimes.transformers.cohorts import SlotCohort, begin
from pilotlight.runtimes.transformers.generate import Decoder, Generating
from pilotlight.runtimes.transformers.loading import Loaded, eos_ids
from pilotlight.runtimes.transformers.network import Network
from pilotlight.runtimes.transformers.prefix import Prefix, Prefixes
from pilotlight.runtimes.transformers.probe import PROVEN, agrees
from pilotlight.runtimes.transformers.prompts import Prompt, Prompter, RowError
from pilotlight.runtimes.transformers.reading import result_of
from pilotlight.runtimes.transformers.sampling import BadSampling, chooser
from pilotlight.runtimes.transformers.sharing import Window, worth_keeping
from pilotlight.runtimes.transformers.text import StopWatch
from pilotlight.runtimes.transformers.waiting import Waiting
from pilotlight.wire import Context, DeviceSpec, Operation, Sampling

STEP_S = 0.25
TOKENS_MAX_CPU, TOKENS_START_CUDA, TOKENS_MAX_CUDA = 1 << 14, 1 << 13, 1 << 17
LOGITS_MAX = 1 << 26
"""Numbers in one pass's logits (float32: 256 MiB)."""
WANTED_MIN, WANTED_MAX = 16, 8192
BATCHES_WANTED = 8
"""Held at once, one to two seconds of work: the more rows to choose from, the less padding (at 2.5: a fifth)."""
KV_SHARE = 0.4
"""Part of the memory left after loading that keys and values may take; moving rows needs the same again."""
PREFIX_SHARE = 0.1
"""Part of it that prompt prefixes may take."""
MEMORY_UNKNOWN = 5 << 30
PASSES_SAVED = 2
"""A prefix is worth keeping if it saves so many passes: its own, and one that is less full because of it."""
WARM_TOKENS = 32
CUDA_CONTEXT_BYTES = 400 << 20
"""A guess at what a process's CUDA context and loaded kernels take, which torch does not count."""


@dataclass(slots=True)
class _Scoring:
    """A row that waits for its labels to be scored."""

    ticket: int
    prompt: Prompt
    spaced: bool
    prefix: Prefix | None = None

    @property
    def ids(self) -> list[int]:
        return self.prompt.ids


@dataclass(slots=True)
class _Job:
    """What the rows of one operation share."""

    operation: Operation
    waiting: Waiting[Any] = field(default_factory=Waiting[Any])
    window: Window = field(default_factory=Window)
    trees: dict[bool, LabelTree] = field(default_factory=dict[bool, LabelTree])


@dataclass(slots=True)
class _Reading:
    """Prompts that are being read. tokens: padded, of the whole work; left: of them, not read yet. part: what a pass
    may hold of a row that is alone."""

    job: _Job
    batch: list[Any]
    prefix: Prefix | None
    work: Generator[int, None, list[Outcome]]
    cost: int
    left: int
    part: int


class TransformersModel:
    """See `ports.Model`."""

    def __init__(self, context: Context, device: DeviceSpec, loaded: Loaded, *, share_prefixes: bool = True) -> None:
        start_s = time.monotonic()
        self._context = context
        self._step_s = STEP_S * device.speed
        self._tokenizer = loaded.tokenizer
        self._network = Network(loaded.network, loaded.config, loaded.device, loaded.max_model_len)
        self._prompter = Prompter(loaded.tokenizer, loaded.max_model_len)
        self._eos_ids = eos_ids(loaded)
        self._jobs: dict[str, _Job] = {}
        self._turns: deque[_Job] = deque()
        self._reading: _Reading | None = None
        self._ready: list[Outcome] = []
        self._answered = self._added = 0
        self._row_tokens: float | None = None
        self._generated = False
        if self._network.plain and getattr(loaded.config, "model_type", "") not in PROVEN:
            self._network.plain = agrees(self._network)
        token_bytes, tokens_per_s, pass_s = self._warm(loaded.max_model_len)
        cuda = loaded.device.type == "cuda"
        tokens_max = TOKENS_MAX_CUDA if cuda else TOKENS_MAX_CPU
        start = TOKENS_START_CUDA if cuda else int(tokens_per_s * PASS_S)
        self._budget = TokenBudget(max(TOKENS_MIN, min(start, tokens_max)), tokens_max, pass_s=pass_s)
        left_bytes = _bytes_left(device, self._network)
        self._decoder = Decoder(
            self._network, loaded.tokenizer, token_bytes=token_bytes, kv_bytes_max=int(left_bytes * KV_SHARE)
        )
        prefix_bytes_max = int(left_bytes * PREFIX_SHARE) if share_prefixes else 0
        self._prefixes = Prefixes(self._network, token_bytes=token_bytes, bytes_max=prefix_bytes_max)
        self._paced: int | None = None
        """Rows that the last step answered."""
        self._rehearse()
        self._stages = {**loaded.stages, "warm": time.monotonic() - start_s}

    @property
    def wanted(self) -> int:
        """Some batches by the measured cost of a row, or what decodes at once and half as much again that waits."""
        rows = WANTED_MIN
        if self._row_tokens is not None:
            rows = int(BATCHES_WANTED * self._budget.tokens / self._row_tokens)
        if self._generated:
            rows = max(rows, self._decoder.rows_max * 3 // 2)
        return max(WANTED_MIN, min(WANTED_MAX, rows))

    @property
    def memory_bytes(self) -> int:
        """What torch holds on a GPU, and a guess at what CUDA takes; weights (mapped or not) and caches on CPUs."""
        if self._network.device.type == "cuda":
            return torch.cuda.memory_reserved(self._network.device) + CUDA_CONTEXT_BYTES
        return self._network.weight_bytes + self._decoder.memory_bytes + self.attachment_bytes

    @property
    def attachment_bytes(self) -> int:
        """Keys and values of prompt prefixes."""
        return self._prefixes.memory_bytes

    @property
    def can_sleep(self) -> bool:
        """On a GPU: the weights wait in host memory. On CPUs they are there already."""
        return self._network.device.type == "cuda"

    def sleep(self) -> None:
        """See `ports.Model`."""
        assert self.pending == 0, "rows are held"
        self._prefixes.let_go()
        self._network.to_host()
        _free()

    def wake(self) -> None:
        """See `ports.Model`."""
        self._network.to_device()

    def forget(self, operation: Operation) -> None:
        """Its prefixes stay until their room is wanted: the next job may begin alike."""
        self._jobs.pop(operation.id, None)
        self._prefixes.forget(operation.id)

    @property
    def stages(self) -> dict[str, float]:
        """`read`, `to_device`, `warm` in seconds."""
        return self._stages

    @property
    def pending(self) -> int:
        """Rows added and not answered."""
        return self._added - self._answered

    @property
    def started(self) -> int:
        """Rows that are read or decode, and as many as the last step answered (all, before the first)."""
        reading = len(self._reading.batch) if self._reading is not None else 0
        paced = self.pending if self._paced is None else self._paced
        return min(self.pending, len(self._decoder) + reading + paced)

    def add(self, operation: Operation, rows: Sequence[Row]) -> None:
        """Render and tokenise the rows; what can't be is answered by the next step."""
        self._added += len(rows)
        try:
            job = self._job(operation)
        except ValueError as error:
            self._ready += [outcomes.failed(row.ticket, "bad_operation", str(error)) for row in rows]
            return
        reserve = max((tree.longest for tree in job.trees.values()), default=0)
        prompts = self._prompter.render(operation, [row.payload for row in rows], reserve=reserve)
        idle = len(job.waiting) == 0
        fresh: list[Any] = []
        for row, prompt in zip(rows, prompts, strict=True):
            if isinstance(prompt, RowError):
                self._ready.append(outcomes.failed(row.ticket, prompt.kind, prompt.text))
            elif operation.kind == "classify":
                spaced = not prompt.chat and not (prompt.text or "x")[-1].isspace()
                fresh.append(_Scoring(row.ticket, prompt, spaced))
            else:
                self._generated = True
                fresh += self._generating(job, row, prompt)
        job.waiting.add(fresh)
        if self._prefixes.enabled:
            self._compare(job, fresh)
        if idle and len(job.waiting):
            self._turns.append(job)

    def step(self) -> list[Outcome]:
        """See `ports.Model`."""
        stop_s = time.monotonic() + self._step_s
        done, self._ready = self._ready, []
        while self._turns or self._reading is not None or len(self._decoder):
            done += self._work(stop_s)
            if time.monotonic() >= stop_s:
                break
        self._answered += len(done)
        self._paced = len(done)
        return done

    def close(self) -> None:
        """Drop the weights and caches."""
        self._jobs.clear()
        self._turns.clear()
        self._reading = None
        del self._decoder, self._prefixes, self._network
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _job(self, operation: Operation) -> _Job:
        job = self._jobs.get(operation.id)
        if job is not None:
            return job
        if operation.kind not in ("classify", "generate"):
            raise ValueError(f"A language model does `generate` and `classify`, not `{operation.kind}`.")
        job = _Job(operation)
        if operation.kind == "classify":
            if not operation.labels:
                raise ValueError("There are no labels to choose from.")
            if operation.result_format == "openai":
                raise ValueError("Labels can't be scored into OpenAI's response form.")
            for spaced in (False, True):
                ids = tokenise_labels(self._tokenizer, operation.labels, spaced=spaced)
                job.trees[spaced] = LabelTree(ids)
        self._jobs[operation.id] = job
        return job

    def _generating(self, job: _Job, row: Row, prompt: Prompt) -> list[Generating]:
        try:
            choice = chooser(prompt.sampling, index=row.index, prompt_ids=prompt.ids, eos_ids=self._eos_ids)
        except BadSampling as bad:
            self._ready.append(outcomes.failed(row.ticket, "bad_row", str(bad)))
            return []
        watch = None
        if choice.stop:
            watch = StopWatch(self._tokenizer, choice.stop, skip_special_tokens=choice.skip_special_tokens)
        return [Generating(row.ticket, row.index, job.operation, prompt, choice, watch)]

    def _compare(self, job: _Job, fresh: Sequence[Any]) -> None:
        """Tell new rows which known prefix they begin with; find what rows have in common beyond."""
        known = job.operation.id
        for row in fresh:
            row.prefix = self._prefixes.find(row.prompt.ids, known)
        if not job.window.add([row.prompt.ids for row in fresh]):
            return
        rows = list(job.window.rows)
        scale = max(1.0, len(job.waiting) / len(rows))
        saved_min = PASSES_SAVED * self._budget.pass_tokens
        for ids in worth_keeping(rows, scale=scale, saved_min=saved_min):
            prefix = self._prefixes.propose(ids, known)
            if prefix is None:
                continue
            for row in job.waiting:
                if (row.prefix is None or row.prefix.length < prefix.length) and prefix.begins(row.prompt.ids):
                    row.prefix = prefix

    def _work(self, stop_s: float) -> list[Outcome]:
        """One pass over prompts, then tokens for what decodes."""
        done: list[Outcome] = []
        for _ in range(len(self._turns)):
            if self._reading is not None:
                break
            job = self._turns.popleft()
            if job.operation.kind == "classify":
                self._reading = self._begin_scoring(job)
            else:
                self._reading = self._begin_generating(job)
            if len(job.waiting):
                self._turns.append(job)
        if self._reading is not None:
            done += self._read(self._reading)
        if len(self._decoder):
            busy = bool(self._turns) or self._reading is not None
            done += self._advance(min(stop_s, time.monotonic() + self._step_s / 2) if busy else stop_s)
        return done

    def _begin_scoring(self, job: _Job) -> _Reading:
        oldest: _Scoring = job.waiting.oldest
        tree = job.trees[oldest.spaced]
        nodes = len(tree.tokens)

        def alike(row: _Scoring) -> bool:
            return row.spaced == oldest.spaced

        return self._begin(job, nodes, alike=alike)

    def _begin_generating(self, job: _Job) -> _Reading | None:
        room = self._decoder.room(job.waiting.oldest)
        return self._begin(job, 0, rows_max=room) if room > 0 else None

    def _begin(self, job: _Job, nodes: int, *, rows_max: int = 1 << 30, alike: Any = None) -> _Reading:
        """Choose rows of one job for one pass: those that share a prefix go together, and those that are `alike`."""
        prefix = self._cheapest(job)

        def fits(_: Any, other: Any) -> bool:
            shares = prefix is None or (other.prefix is not None and other.prefix.extends(prefix))
            return shares and (alike is None or alike(other))

        rows_max = min(rows_max, max(1, LOGITS_MAX // (self._network.vocabulary * max(1, nodes))))
        shared = (prefix.length if prefix else 0) - nodes
        batch = job.waiting.take(self._budget.tokens, rows_max, fits, shared=shared)
        return self._prepared(job, batch, prefix, self._budget.tokens)

    def _cheapest(self, job: _Job) -> Prefix | None:
        """Of what the oldest row begins with: that with which a row costs least, when passes have their price too."""
        oldest = job.waiting.oldest
        prefix = self._prefixes.fitting(oldest.prefix)
        best, least = None, float("inf")
        while True:
            own = len(oldest.ids) - (prefix.length if prefix else 0)
            rows = len(job.waiting)
            if prefix is not None:
                rows = sum(1 for row in job.waiting if row.prefix is not None and row.prefix.extends(prefix))
            cost = own + self._budget.pass_tokens / max(1, min(rows, self._budget.tokens // own))
            if prefix is not None and not prefix.kept:
                cost += (prefix.missing + self._budget.pass_tokens) / rows
            if cost < least:
                best, least = prefix, cost
            if prefix is None:
                return best
            prefix = self._prefixes.fitting(prefix.parent)

    def _prepared(self, job: _Job, batch: list[Any], prefix: Prefix | None, part: int) -> _Reading:
        tree = job.trees[batch[0].spaced] if job.trees else None
        cost = max(len(row.ids) for row in batch) - (prefix.length if prefix else 0) + (len(tree.tokens) if tree else 0)
        left = len(batch) * cost + (prefix.missing if prefix else 0)
        work = self._scored(job, batch, prefix, tree, part) if tree is not None else self._admitted(batch, prefix, part)
        return _Reading(job, batch, prefix, work, cost, left, part)

    def _scored(
        self, job: _Job, batch: list[_Scoring], prefix: Prefix | None, tree: LabelTree, part: int
    ) -> Generator[int, None, list[Outcome]]:
        kept = (yield from self._prefixes.read(prefix, part)) if prefix else []
        found = yield from score(self._network, [row.ids for row in batch], tree, kept, tokens_max=part)
        return [
            outcomes.classified(row.ticket, job.operation, tree, row.prompt, sums)
            for row, sums in zip(batch, found, strict=True)
        ]

    def _admitted(
        self, batch: list[Generating], prefix: Prefix | None, part: int
    ) -> Generator[int, None, list[Outcome]]:
        kept = (yield from self._prefixes.read(prefix, part)) if prefix else []
        cohort, logits = yield from begin(self._network, [row.ids for row in batch], kept, tokens_max=part)
        return [outcomes.generated(self._context, row) for row in self._decoder.admit(batch, cohort, logits)]

    def _read(self, reading: _Reading) -> list[Outcome]:
        """One pass of what is being read; at its end what that finished."""
        start_s = time.monotonic()
        try:
            tokens = next(reading.work)
        except StopIteration as end:
            self._reading = None
            seconds = time.monotonic() - start_s
            self._budget.observe(max(1, reading.left), seconds)
            cost = reading.cost
            self._row_tokens = cost if self._row_tokens is None else 0.75 * self._row_tokens + 0.25 * cost
            return end.value
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._reading = None
        else:
            self._budget.observe(tokens, time.monotonic() - start_s)
            reading.left -= tokens
            return []
        self._make_do(reading)
        return []

    def _advance(self, stop_s: float) -> list[Outcome]:
        enough = True
        try:
            self._decoder.advance(stop_s)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            enough = False
        if not enough:
            self._evict()
        return [outcomes.generated(self._context, row) for row in self._decoder.finished()]

    def _evict(self) -> None:
        """After decoding ran out of memory: first what is beside it goes, then it holds half as many rows."""
        rows = self._decoder.evict()
        reading, self._reading = self._reading, None
        if reading is not None:
            self._decoder.hold_at(len(rows))
            reading.work.close()
            self._put_back(reading.job, reading.batch)
        elif not self._prefixes.drop():
            if len(rows) == 1:
                raise MemoryError(self._too_large(rows))
            self._decoder.hold_at(len(rows) // 2)
        for row in reversed(rows):
            self._put_back(self._jobs[row.operation.id], [row])
        _free()

    def _put_back(self, job: _Job, rows: list[Any]) -> None:
        if len(job.waiting) == 0:
            self._turns.append(job)
        job.waiting.put_back(rows)

    def _make_do(self, reading: _Reading) -> None:
        """After running out of memory: fewer attachments, smaller passes, less beside it. Raises `MemoryError` when
        this row alone, in the smallest passes, is too large."""
        _free()
        job, batch = reading.job, reading.batch
        if self._prefixes.drop(but=reading.prefix):
            self._put_back(job, batch)
        elif len(batch) > 1:
            self._budget.halve(len(batch) * reading.cost)
            self._put_back(job, batch)
        elif len(self._decoder):
            self._decoder.hold_at(len(self._decoder))
            self._put_back(job, batch)
        elif reading.part > TOKENS_MIN and self._network.plain:
            self._prefixes.drop()
            part = max(TOKENS_MIN, min(reading.part, len(batch[0].ids)) // 2)
            self._reading = self._prepared(job, batch, None, part)
        else:
            raise MemoryError(self._too_large(batch))

    def _too_large(self, rows: Sequence[Any]) -> str:
        tokens = max((len(row.ids) for row in rows), default=0)
        return f"Out of memory: a row of {tokens} tokens, alone, needs more than there is on this device."

    def _rehearse(self) -> None:
        """One request of our own, on the way of all others: what is made at first use is made now."""
        operation = Operation(kind="generate", sampling=Sampling(max_tokens=2, temperature=0.0, ignore_eos=True))
        self.add(operation, [Row(0, 0, {"prompt": "Hello"})])
        while self.pending:
            self.step()
        self.forget(operation)
        self._answered = self._added = 0
        self._generated, self._row_tokens, self._paced = False, None, None

    def _warm(self, max_model_len: int) -> tuple[int, float, float]:
        """One request of our own: bytes per token of keys and values, prompt tokens per second, and seconds of the
        smallest pass."""
        length = max(1, min(WARM_TOKENS, max_model_len - 5))
        ids = [[place % self._network.vocabulary for place in range(length)]]
        result_of(begin(self._network, ids, [], tokens_max=length))
        start_s = time.monotonic()
        cohort, logits = result_of(begin(self._network, ids, [], tokens_max=length))
        int(logits.argmax())
        read_s = time.monotonic() - start_s
        times_s = [time.monotonic()]
        for _ in range(4):
            int(cohort.decode([0]).argmax())
            times_s.append(time.monotonic())
        pass_s = min(later - earlier for earlier, later in pairwise(times_s))
        token_bytes = cohort.token_bytes if isinstance(cohort, SlotCohort) else 0
        return token_bytes, length / max(read_s, 1e-6), pass_s


def _free() -> None:
    """Give torch's unused blocks back, so that the next, smaller pass finds whole ones."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _bytes_left(device: DeviceSpec, network: Network) -> int:
    """Memory that is free beside the weights."""
    if network.device.type == "cuda":
        return torch.cuda.mem_get_info(network.device)[0]
    left = device.memory_bytes - network.weight_bytes
    return left if left > 0 else MEMORY_UNKNOWN
