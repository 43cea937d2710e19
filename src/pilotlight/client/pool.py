"""`Pool`: a manager with its workers, and the jobs that this process gives it.

The pool's process is started by `launch.py` and spoken to through `connection.py`; a job's rows and results are the
business of `feed.py` and `jobs.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pilotlight.client import launch, pickling
from pilotlight.client.checks import check_truncation
from pilotlight.client.connection import Link
from pilotlight.client.contexts import STATELESS, Context
from pilotlight.client.feed import WINDOW_BYTES, WINDOW_ROWS, Encoder, Feeder, Window
from pilotlight.client.jobs import Job
from pilotlight.client.launch import END_S_MAX
from pilotlight.client.llm import LLM
from pilotlight.client.results import (
    Classification,
    Generation,
    Reader,
    Result,
    read_classification,
    read_generation,
    read_pickle,
)
from pilotlight.client.rows import chat_line, pickle_line, prompt_line
from pilotlight.client.sampling import SamplingParams
from pilotlight.core.errors import ConfigError, JobCancelled, LinkClosed
from pilotlight.messages import (
    Accepted,
    ClientMessage,
    ClientReply,
    Hello,
    JobEnded,
    Notice,
    Refused,
    RowsOut,
    Shutdown,
    Snapshot,
    Submit,
)
from pilotlight.wire import JobRequest, Operation, PathInput, PathOutput, StreamInput, StreamOutput

R = TypeVar("R", bound=Result)
Watcher = Callable[[Snapshot | Notice], None]
_READERS: dict[str, Reader] = {
    "generate": read_generation,
    "echo": read_generation,
    "classify": read_classification,
    "map": read_pickle,
}


class Pool:
    """Local workers that keep contexts live from call to call. Use it as `with` or `async with`.

    workers: default: one per visible GPU, else half of the CPUs, 1 to 4. window_rows, window_bytes: how far a job
    may read ahead of its oldest result that was not taken. watch_s: how often to be told about progress.
    Calls return a `Job` at once; several may run side by side. Any thread may call.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        window_rows: int = WINDOW_ROWS,
        window_bytes: int = WINDOW_BYTES,
        watch_s: float = 0.5,
        manager_command: list[str] | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"workers must be 1 or more, not {workers}")
        self._workers = workers
        self._window = (window_rows, window_bytes)
        self._watch_s = watch_s
        self._command = manager_command
        self._lock = threading.RLock()
        self._manager: launch.ManagerProcess | None = None
        self._link: Link | None = None
        self._tickets = itertools.count(1)
        self._submitted: dict[int, tuple[Job[Any], _Start]] = {}
        self._jobs: dict[str, Job[Any]] = {}
        self._watchers: list[Watcher] = []
        self._trouble = False
        self._lost = ""

    # --- life

    def start(self) -> None:
        """Start manager and workers, unless that was done. Raises `ConfigError` and `PilotlightError`."""
        with self._lock:
            if self._manager is not None:
                return
            workers = self._workers or launch.default_workers()
            manager = launch.launch(workers=workers, command=self._command)
            link = Link(self._receive, self._closed)
            try:
                link.open(launch.socket_path(manager.folder), Hello(owner=True, watch_s=self._watch_s))
            except BaseException:
                link.close()
                manager.end(keep_logs=True, grace_s=0.0)
                raise
            self._manager, self._link = manager, link

    @property
    def lost(self) -> bool:
        """Whether its manager has gone without being asked to."""
        return bool(self._lost)

    def close(self, *, grace_s: float = END_S_MAX) -> None:
        """End the pool: running jobs are cancelled; workers and manager exit, or are made to after `grace_s`.

        Idempotent.
        """
        with self._lock:
            manager, link = self._manager, self._link
            self._manager = self._link = None
            if manager is None or link is None:
                return
            for job in self._open_jobs():
                job.on_failed(JobCancelled("the pool was closed before the job was over"))
            link.send(Shutdown())
            try:
                link.close(grace_s)
            finally:
                manager.end(keep_logs=self._trouble, grace_s=grace_s)

    def __enter__(self) -> Pool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Pool:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def log_dir(self) -> Path | None:
        """Where the logs of manager and workers are while the pool is up; removed at its end unless something went
        wrong."""
        return self._manager.log_dir if self._manager else None

    @property
    def trouble(self) -> bool:
        """Whether something went wrong that makes the logs worth keeping."""
        return self._trouble

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` with each `Snapshot` and `Notice`, in the link's thread; it must not block."""
        self._watchers.append(watcher)

    # --- jobs

    def generate(
        self, llm: LLM, rows: Iterable[Any], sampling_params: SamplingParams | None = None, *, ordered: bool = True
    ) -> Job[Generation]:
        """Continue each row's prompt. Rows: a text, a list of token ids, or a dict with `prompt` or `messages`."""
        return self._stream(llm.wire, _generate(llm, sampling_params), rows, prompt_line, ordered=ordered)

    def chat(
        self, llm: LLM, rows: Iterable[Any], sampling_params: SamplingParams | None = None, *, ordered: bool = True
    ) -> Job[Generation]:
        """Answer each conversation: a list of messages, a text (its only message), or a dict with `messages`."""
        return self._stream(llm.wire, _generate(llm, sampling_params), rows, chat_line, ordered=ordered)

    def classify(
        self,
        llm: LLM,
        rows: Iterable[Any],
        *,
        labels: Sequence[str],
        label_scoring: Literal["sum", "mean"] = "sum",
        prompt_template: str | None = None,
        truncate_prompt_tokens: int | None = None,
        ordered: bool = True,
    ) -> Job[Classification]:
        """Compare `labels` as continuations of each row's prompt (or of `prompt_template` over a dict's fields)."""
        check_truncation(truncate_prompt_tokens, "truncate_prompt_tokens")
        operation = Operation(
            kind="echo" if llm.wire.runtime == "echo" else "classify",
            labels=check_labels(labels),
            label_scoring=label_scoring,
            prompt_template=prompt_template,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        return self._stream(llm.wire, operation, rows, prompt_line, ordered=ordered, reader=read_classification)

    def map(
        self,
        function: Callable[..., Any],
        rows: Iterable[Any],
        *,
        context: Context[Any] | None = None,
        ordered: bool = True,
        batched: bool = False,
        batch_max: int = 256,
    ) -> Job[Result]:
        """Call `function(state, row)` on each row (`function(row)` without a context); the answer is `.value`.

        Rows and answers may be any Python values that pickle. The function may be async. batched: it takes a list
        of at most `batch_max` rows and returns as many answers, or yields them. What it raises is `.error`.
        """
        if not callable(function):
            raise ConfigError(f"the first argument of map must be a function, not {type(function).__name__}")
        if batch_max < 1:
            raise ConfigError(f"batch_max must be 1 or more, not {batch_max}")
        name = getattr(function, "__qualname__", type(function).__name__)
        operation = Operation(
            kind="map",
            function=pickling.dumps(function, f"the function {name}"),
            function_name=name,
            batched=batched,
            batch_max=batch_max if batched else 1,
            row_format="pickle",
        )
        return self._stream((context or STATELESS).wire, operation, rows, pickle_line(name), ordered=ordered)

    def run_files(
        self,
        llm: LLM,
        operation: Operation,
        inputs: Sequence[str | Path],
        output: str | Path,
        *,
        limit: int | None = None,
        overwrite: bool = False,
        retry_errors: list[str] | None = None,
        max_attempts: int = 3,
        name: str = "",
        arguments: dict[str, Any] | None = None,
    ) -> Job[Result]:
        """A job between files, which the manager reads and writes; it survives this process and can be resumed by
        the same call. operation: what is done with each row. Nothing to iterate over: `wait` for it."""
        check_truncation(operation.truncate_prompt_tokens, "truncate_prompt_tokens")
        request = JobRequest(
            context=llm.wire,
            operation=operation,
            input=PathInput(paths=[str(Path(path).absolute()) for path in inputs], limit=limit),
            output=PathOutput(path=str(Path(output).absolute()), overwrite=overwrite, retry_errors=retry_errors),
            name=name,
            max_attempts=max_attempts,
            arguments=arguments or {},
        )
        job: Job[Result] = Job(send=self._send, reader=None, ordered=True, window=Window())
        self._submit(job, request, lambda: None)
        return job

    # --- inside

    def _stream(
        self,
        context: Any,
        operation: Operation,
        rows: Iterable[Any],
        encode: Encoder,
        *,
        ordered: bool,
        reader: Reader | None = None,
    ) -> Job[Any]:
        window = Window(*self._window)
        job: Job[Any] = Job(send=self._send, reader=reader or _READERS[operation.kind], ordered=ordered, window=window)

        def feed() -> None:
            feeder = Feeder(
                rows,
                encode,
                window,
                job=job.id,
                send=self._send,
                post=self._post,
                on_error=lambda error: self._rows_raised(job, error),
                keep_prompts=operation.kind != "map",
            )
            feeder.start()

        request = JobRequest(context=context, operation=operation, input=StreamInput(), output=StreamOutput())
        self._submit(job, request, feed)
        return job

    def _submit(self, job: Job[Any], request: JobRequest, start: _Start) -> None:
        with self._lock:
            if self._link is None or self._manager is None:
                raise ConfigError("the pool is not started: use it as `with pl.Pool() as pool`")
            if self._lost:
                raise self._gone()
            ticket = next(self._tickets)
            job.log_dir = str(self._manager.log_dir)
            self._submitted[ticket] = (job, start)
            self._link.send(Submit(ticket=ticket, request=request))

    def _rows_raised(self, job: Job[Any], error: BaseException) -> None:
        job.cancel()
        job.on_failed(error)

    def _send(self, message: ClientMessage) -> None:
        link = self._link
        if link is not None:
            link.send(message)

    def _post(self, action: Callable[[], None], delay_s: float) -> None:
        link = self._link
        if link is not None:
            link.post(action, delay_s)

    def _open_jobs(self) -> list[Job[Any]]:
        return [job for job, _ in self._submitted.values()] + list(self._jobs.values())

    def _receive(self, message: ClientReply) -> None:
        match message:
            case RowsOut():
                if job := self._jobs.get(message.job):
                    job.on_rows(message)
            case Accepted():
                job, start = self._submitted.pop(message.ticket)
                self._jobs[message.job] = job
                job.on_accepted(message)
                start()
            case Refused():
                job, _ = self._submitted.pop(message.ticket)
                job.on_refused(message)
            case JobEnded():
                self._trouble |= message.outcome in {"failed", "suspended"}
                if job := self._jobs.pop(message.job, None):
                    job.on_ended(message)
            case Snapshot():
                for view in message.jobs:
                    if job := self._jobs.get(view.job):
                        job.on_view(view)
                self._trouble |= message.totals.replicas_lost + message.totals.workers_lost > 0
                self._tell(message)
            case Notice():
                self._trouble |= message.level in {"warning", "error"}
                self._tell(message)
            case _:
                pass

    def _tell(self, message: Snapshot | Notice) -> None:
        for watcher in self._watchers:
            watcher(message)

    def _closed(self, reason: str) -> None:
        self._lost = reason
        if self._manager is not None:
            self._trouble = True
        for job in self._open_jobs():
            job.on_failed(self._gone())

    def _gone(self) -> LinkClosed:
        where = f" (logs: {self.log_dir})" if self.log_dir else ""
        how_on = "a job between files goes on when it is started again"
        return LinkClosed(f"the pool's manager is gone ({self._lost}); {how_on}{where}")


_Start = Callable[[], None]


def _generate(llm: LLM, sampling_params: SamplingParams | None) -> Operation:
    given: Any = sampling_params
    if given is not None and not isinstance(given, SamplingParams):
        message = f"sampling_params must be one SamplingParams for all rows, not {type(given).__name__}"
        raise ConfigError(message)
    sampling = (sampling_params or SamplingParams()).to_wire()
    return Operation(kind="echo" if llm.wire.runtime == "echo" else "generate", sampling=sampling)


def check_labels(labels: Sequence[str]) -> list[str]:
    """The labels as a list. Raises `ConfigError` unless they are two or more different texts."""
    given: Sequence[Any] = labels
    if isinstance(labels, str) or any(not isinstance(label, str) or not label for label in given):
        raise ConfigError(f"labels must be a list of texts that are not empty, not {labels!r}")
    if len(labels) < 2:
        raise ConfigError(f"classify compares at least 2 labels; there is only {', '.join(labels) or 'none'}")
    doubled = sorted({label for label in labels if list(labels).count(label) > 1})
    if doubled:
        raise ConfigError(f"labels must be different; {', '.join(doubled)} is given more than once")
    return list(labels)
