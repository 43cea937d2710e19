"""A live model: rows of any job in, outcomes out; the turns between scoring, prompts and decoding; out of memory.

Each operation has its own rows waiting, labels and shared prefix. A step takes operations in turn and does about a
quarter of a second of work. Nothing here knows how a pass is made (`classify`, `generate`) or a prompt (`prompts`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from pilotlight.ports import Outcome, Row
from pilotlight.runtimes.transformers import openai
from pilotlight.runtimes.transformers.budget import PASS_S, TOKENS_MIN, TokenBudget, is_out_of_memory
from pilotlight.runtimes.transformers.classify import LabelTree, score, tokenise_labels
from pilotlight.runtimes.transformers.cohorts import SlotCohort, begin
from pilotlight.runtimes.transformers.generate import Decoder, Generating
from pilotlight.runtimes.transformers.loading import Loaded
from pilotlight.runtimes.transformers.network import Network
from pilotlight.runtimes.transformers.prefix import SharedPrefix
from pilotlight.runtimes.transformers.probe import PROVEN, agrees
from pilotlight.runtimes.transformers.prompts import Prompt, Prompter, RowError
from pilotlight.runtimes.transformers.sampling import BadSampling, chooser
from pilotlight.runtimes.transformers.text import StopWatch
from pilotlight.runtimes.transformers.waiting import Waiting
from pilotlight.wire import Context, DeviceSpec, Operation

STEP_S = 0.25
TOKENS_MAX_CPU, TOKENS_START_CUDA, TOKENS_MAX_CUDA = 1 << 14, 1 << 13, 1 << 17
LOGITS_MAX = 1 << 26
"""Numbers in one pass's logits (float32: 256 MiB)."""
WANTED_MIN, WANTED_MAX = 16, 8192
BATCHES_WANTED = 8
"""Held at once, one to two seconds of work: the more rows to choose from, the less padding (at 2.5: a fifth)."""
KV_SHARE = 0.4
"""Part of the memory left after loading that keys and values may take; moving rows needs the same again."""
KV_BYTES_UNKNOWN = 1 << 31
WARM_TOKENS = 32


@dataclass(slots=True)
class _Scoring:
    """A row that waits for its labels to be scored."""

    ticket: int
    prompt: Prompt
    spaced: bool

    @property
    def ids(self) -> list[int]:
        return self.prompt.ids


@dataclass(slots=True)
class _Job:
    """What the rows of one operation share."""

    operation: Operation
    prefix: SharedPrefix
    waiting: Waiting[Any] = field(default_factory=Waiting[Any])
    trees: dict[bool, LabelTree] = field(default_factory=dict[bool, LabelTree])


class TransformersModel:
    """See `ports.Model`."""

    def __init__(self, context: Context, device: DeviceSpec, loaded: Loaded) -> None:
        start_s = time.monotonic()
        self._context = context
        self._tokenizer = loaded.tokenizer
        self._network = Network(loaded.network, loaded.config, loaded.device, loaded.max_model_len)
        self._prompter = Prompter(loaded.tokenizer, loaded.max_model_len)
        self._eos_ids = _eos_ids(loaded)
        self._share_prefix = bool(context.options.get("prefix_reuse", True))
        self._jobs: dict[str, _Job] = {}
        self._turns: deque[_Job] = deque()
        self._ready: list[Outcome] = []
        self._answered = self._added = 0
        self._row_tokens: float | None = None
        self._generated = False
        if self._network.plain and getattr(loaded.config, "model_type", "") not in PROVEN:
            self._network.plain = agrees(self._network)
        token_bytes, tokens_per_s = self._warm(loaded.max_model_len)
        cuda = loaded.device.type == "cuda"
        tokens_max = TOKENS_MAX_CUDA if cuda else TOKENS_MAX_CPU
        start = TOKENS_START_CUDA if cuda else int(tokens_per_s * PASS_S)
        self._budget = TokenBudget(max(TOKENS_MIN, min(start, tokens_max)), tokens_max)
        kv_bytes_max = _kv_bytes_max(device, self._network)
        self._decoder = Decoder(self._network, loaded.tokenizer, token_bytes=token_bytes, kv_bytes_max=kv_bytes_max)
        self._paced: int | None = None
        """Rows that the last step answered."""
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
        """What torch holds on a GPU; weights and caches on CPUs."""
        if self._network.device.type == "cuda":
            return torch.cuda.memory_reserved(self._network.device)
        return self._network.weight_bytes + self._decoder.memory_bytes + self.attachment_bytes

    @property
    def attachment_bytes(self) -> int:
        """Keys and values of prompt prefixes."""
        return sum(job.prefix.memory_bytes for job in self._jobs.values())

    @property
    def can_sleep(self) -> bool:
        """On a GPU: the weights wait in host memory. On CPUs they are there already."""
        return self._network.device.type == "cuda"

    def sleep(self) -> None:
        """See `ports.Model`."""
        assert self.pending == 0, "rows are held"
        for job in self._jobs.values():
            job.prefix.drop()
        self._network.to_host()
        _free()

    def wake(self) -> None:
        """See `ports.Model`."""
        self._network.to_device()

    def forget(self, operation: Operation) -> None:
        """See `ports.Model`."""
        self._jobs.pop(operation.id, None)

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
        """Rows that decode, and as many as the last step answered (all, before the first)."""
        return min(self.pending, len(self._decoder) + (self.pending if self._paced is None else self._paced))

    def add(self, operation: Operation, rows: Sequence[Row]) -> None:
        """Render and tokenise the rows; what can't be is answered by the next step."""
        self._added += len(rows)
        try:
            job = self._job(operation)
        except ValueError as error:
            self._ready += [_error(row.ticket, "bad_operation", str(error)) for row in rows]
            return
        reserve = max((tree.longest for tree in job.trees.values()), default=0)
        prompts = self._prompter.render(operation, [row.payload for row in rows], reserve=reserve)
        idle = len(job.waiting) == 0
        for row, prompt in zip(rows, prompts, strict=True):
            if isinstance(prompt, RowError):
                self._ready.append(_error(row.ticket, prompt.kind, prompt.text))
            elif operation.kind == "classify":
                spaced = not prompt.chat and not (prompt.text or "x")[-1].isspace()
                job.waiting.add([_Scoring(row.ticket, prompt, spaced)])
            else:
                self._add_generating(job, row, prompt)
        if idle and len(job.waiting):
            self._turns.append(job)

    def step(self) -> list[Outcome]:
        """See `ports.Model`."""
        stop_s = time.monotonic() + STEP_S
        outcomes, self._ready = self._ready, []
        while self._turns or len(self._decoder):
            outcomes += self._work(stop_s)
            if time.monotonic() >= stop_s:
                break
        self._answered += len(outcomes)
        self._paced = len(outcomes)
        return outcomes

    def close(self) -> None:
        """Drop the weights and caches."""
        self._jobs.clear()
        self._turns.clear()
        del self._decoder, self._network
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _job(self, operation: Operation) -> _Job:
        job = self._jobs.get(operation.id)
        if job is not None:
            return job
        if operation.kind not in ("classify", "generate"):
            raise ValueError(f"A language model does `generate` and `classify`, not `{operation.kind}`.")
        job = _Job(operation, SharedPrefix(self._network, enabled=self._share_prefix))
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

    def _add_generating(self, job: _Job, row: Row, prompt: Prompt) -> None:
        try:
            choice = chooser(prompt.sampling, index=row.index, prompt_ids=prompt.ids, eos_ids=self._eos_ids)
        except BadSampling as bad:
            self._ready.append(_error(row.ticket, "bad_row", str(bad)))
            return
        watch = None
        if choice.stop:
            watch = StopWatch(self._tokenizer, choice.stop, skip_special_tokens=choice.skip_special_tokens)
        job.waiting.add([Generating(row.ticket, row.index, job.operation, prompt, choice, watch)])

    def _work(self, stop_s: float) -> list[Outcome]:
        """One pass over prompts, then tokens for what decodes."""
        outcomes: list[Outcome] = []
        for _ in range(len(self._turns)):
            job = self._turns.popleft()
            scores = job.operation.kind == "classify"
            worked = True
            if scores:
                outcomes += self._score(job)
            else:
                worked, finished = self._admit(job)
                outcomes += finished
            if len(job.waiting):
                self._turns.append(job)
            if worked:
                break
        if len(self._decoder):
            outcomes += self._advance(stop_s if not self._turns else min(stop_s, time.monotonic() + STEP_S / 2))
        return outcomes

    def _score(self, job: _Job) -> list[Outcome]:
        oldest: _Scoring = job.waiting.oldest
        tree = job.trees[oldest.spaced]
        batch: list[_Scoring] = self._take(job, len(tree.tokens), LOGITS_MAX, alike=_is_spaced)
        start_s = time.monotonic()
        scores: list[list[float]] | None = None
        try:
            scores = score(self._network, [row.ids for row in batch], tree, job.prefix)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if scores is None:
            return self._make_do(job, batch)
        self._learn(job, batch, len(tree.tokens), time.monotonic() - start_s)
        return [_classified(job.operation, tree, row, found) for row, found in zip(batch, scores, strict=True)]

    def _admit(self, job: _Job) -> tuple[bool, list[Outcome]]:
        """Whether prompts were read, and rows that were finished by their first token."""
        self._generated = True
        room = self._decoder.room(job.waiting.oldest)
        if room < 1:
            return False, []
        batch: list[Generating] = self._take(job, 0, LOGITS_MAX, rows_max=room)
        start_s = time.monotonic()
        finished: list[Generating] | None = None
        try:
            finished = self._decoder.admit(batch, job.prefix)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if finished is None:
            return True, self._make_do(job, batch)
        self._learn(job, batch, 0, time.monotonic() - start_s)
        return True, [self._generated_outcome(row) for row in finished]

    def _advance(self, stop_s: float) -> list[Outcome]:
        finished: list[Generating] | None = None
        try:
            finished = self._decoder.advance(stop_s)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if finished is not None:
            return [self._generated_outcome(row) for row in finished]
        rows = self._decoder.evict()
        _free()
        if len(rows) == 1:
            return [_out_of_memory(rows[0].ticket)]
        for row in rows:
            job = self._jobs[row.operation.id]
            if len(job.waiting) == 0:
                self._turns.append(job)
            job.waiting.put_back([row])
        return []

    def _take(self, job: _Job, nodes: int, logits_max: int, *, rows_max: int = 1 << 30, alike: Any = None) -> list[Any]:
        """Rows of one job for one pass; those that share its prefix go together, and those that are `alike`."""
        prefix = job.prefix
        sharing = prefix.shares(job.waiting.oldest.ids)

        def fits(oldest: Any, other: Any) -> bool:
            return prefix.shares(other.ids) == sharing and (alike is None or alike(other) == alike(oldest))

        rows_max = min(rows_max, max(1, logits_max // (self._network.vocabulary * max(1, nodes))))
        shared = (prefix.length if sharing else 0) - nodes
        return job.waiting.take(self._budget.tokens, rows_max, fits, shared=shared)

    def _learn(self, job: _Job, batch: Sequence[Any], nodes: int, seconds: float) -> None:
        longest = max(len(row.prompt.ids) for row in batch)
        shared = job.prefix.length if job.prefix.shares(batch[0].ids) else 0
        cost = longest - shared + nodes
        self._budget.observe(len(batch) * cost, seconds)
        self._row_tokens = cost if self._row_tokens is None else 0.75 * self._row_tokens + 0.25 * cost

    def _make_do(self, job: _Job, batch: Sequence[Any]) -> list[Outcome]:
        """After running out of memory: smaller passes, or less beside it, or this one row can't be done."""
        _free()
        if len(batch) > 1:
            self._budget.halve(len(batch) * max(len(row.ids) for row in batch))
            job.waiting.put_back(batch)
            return []
        if len(self._decoder):
            self._decoder.hold_at(len(self._decoder))
            job.waiting.put_back(batch)
            return []
        if any(other.prefix.length for other in self._jobs.values()):
            for other in self._jobs.values():
                other.prefix.drop()
            job.waiting.put_back(batch)
            return []
        return [_out_of_memory(batch[0].ticket)]

    def _generated_outcome(self, row: Generating) -> Outcome:
        usage = row.usage()
        result: dict[str, Any] = {"text": row.text, "finish_reason": row.finish_reason, "usage": usage}
        if row.operation.result_format == "openai":
            name = f"{self._context.id}-{row.index}"
            model = row.prompt.model or self._context.name
            result = openai.response(result, chat=row.prompt.chat, model=model, request_id=name)
        counters = {
            "prompt_tokens": float(usage["prompt_tokens"]),
            "completion_tokens": float(usage["completion_tokens"]),
            "truncated": float(row.prompt.truncated),
            "length": float(row.finish_reason == "length"),
        }
        return Outcome(row.ticket, result, counters=counters)

    def _warm(self, max_model_len: int) -> tuple[int, float]:
        """One request of our own: bytes per token of keys and values, and prompt tokens per second."""
        length = max(1, min(WARM_TOKENS, max_model_len - 1))
        ids = [[place % self._network.vocabulary for place in range(length)]]
        nothing = SharedPrefix(self._network, enabled=False)
        begin(self._network, ids, nothing)
        start_s = time.monotonic()
        cohort, logits = begin(self._network, ids, nothing)
        int(logits.argmax())
        seconds = time.monotonic() - start_s
        cohort.decode([0])
        token_bytes = cohort.token_bytes if isinstance(cohort, SlotCohort) else 0
        return token_bytes, length / max(seconds, 1e-6)


def _is_spaced(row: _Scoring) -> bool:
    return row.spaced


def _classified(operation: Operation, tree: LabelTree, row: _Scoring, sums: list[float]) -> Outcome:
    scores = sums
    if operation.label_scoring == "mean":
        scores = [value / len(ids) for value, ids in zip(sums, tree.labels, strict=True)]
    if not all(math.isfinite(value) for value in scores):
        return _error(row.ticket, "not_finite", "The model's scores are not numbers; a wider dtype may help.")
    top = max(scores)
    weights = [math.exp(value - top) for value in scores]
    total = sum(weights)
    labels = operation.labels
    prompt_tokens = len(row.prompt.ids)
    result = {
        "label": labels[scores.index(top)],
        "probabilities": {label: weight / total for label, weight in zip(labels, weights, strict=True)},
        "logprobs": dict(zip(labels, scores, strict=True)),
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 0, "total_tokens": prompt_tokens},
    }
    counters = {"prompt_tokens": float(prompt_tokens), "truncated": float(row.prompt.truncated)}
    return Outcome(row.ticket, result, counters=counters)


def _error(ticket: int, kind: str, text: str) -> Outcome:
    return Outcome(ticket, error_kind=kind, error=text)


def _out_of_memory(ticket: int) -> Outcome:
    return _error(ticket, "out_of_memory", "This row alone needs more memory than the device has.")


def _free() -> None:
    """Give torch's unused blocks back, so that the next, smaller pass finds whole ones."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _kv_bytes_max(device: DeviceSpec, network: Network) -> int:
    if network.device.type == "cuda":
        return int(torch.cuda.mem_get_info(network.device)[0] * KV_SHARE)
    left = device.memory_bytes - network.weight_bytes
    return int(left * KV_SHARE) if left > 0 else KV_BYTES_UNKNOWN


def _eos_ids(loaded: Loaded) -> frozenset[int]:
    """Every id that ends a text: of the generation config and the config; of the tokenizer where neither says."""
    found: set[int] = set()
    ids: Any
    generation_config = getattr(loaded.network, "generation_config", None)
    for holder in (generation_config, loaded.config, loaded.config.get_text_config(decoder=True)):
        ids = getattr(holder, "eos_token_id", None)
        found.update(cast("list[int]", ids) if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    if not found and loaded.tokenizer.eos_token_id is not None:
        found.add(loaded.tokenizer.eos_token_id)
    return frozenset(found)
