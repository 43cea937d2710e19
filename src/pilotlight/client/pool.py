"""`Pool`: a manager with its workers, and the jobs that this process gives it.

A pool of this process's own is started by `launch.py`, one that stays is found by `lasting.py`; `session.py` speaks to
either. A job's rows and results are the business of `feed.py` and `jobs.py`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pilotlight.client import checks, launch, pickling
from pilotlight.client.contexts import STATELESS, Context, warn_if_unstable
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
from pilotlight.client.session import Session, Watcher
from pilotlight.core.errors import ConfigError, JobCancelled, LinkClosed
from pilotlight.messages import Cancel, Done, Evict, Hello, Pin, Shutdown
from pilotlight.poolfile import DEFAULT_NAME
from pilotlight.views import ContextView, JobView, WorkerView
from pilotlight.wire import (
    JobRequest,
    Operation,
    PathInput,
    PathOutput,
    StreamInput,
    StreamOutput,
    WorkerShape,
)

R = TypeVar("R", bound=Result)
REQUEST_TIMEOUT_S = 600.0
_READERS: dict[str, Reader] = {
    "generate": read_generation,
    "echo": read_generation,
    "classify": read_classification,
    "map": read_pickle,
}


class Pool:
    """Workers that keep contexts live from call to call. Use it as `with` or `async with`.

    `Pool()` has local workers of its own, which end with it; `Pool.connect()` uses a pool that stays.

    workers: default: as many as `worker_shapes`, else one per visible GPU, else half of the CPUs, 1 to 4.
    worker_shapes: how the first of them are slower or smaller than they could be. window_rows, window_bytes: how far a
    job may read ahead of its oldest result that was not taken. watch_s: how often to be told about progress.

    Calls return a `Job` at once; several may run side by side. Any thread may call. Every call takes `weight`, its fair
    share beside other jobs, and `request_timeout_s`: a replica that finishes no step for so long hangs, and is ended.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        worker_shapes: Sequence[WorkerShape] = (),
        window_rows: int = WINDOW_ROWS,
        window_bytes: int = WINDOW_BYTES,
        watch_s: float = 0.5,
        manager_command: list[str] | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"workers must be 1 or more, not {workers}")
        if workers is not None and len(worker_shapes) > workers:
            raise ConfigError(f"{len(worker_shapes)} workers are described and only {workers} wanted")
        self._workers = workers or len(worker_shapes) or None
        self._shapes = list(worker_shapes)
        self._window = (window_rows, window_bytes)
        self._watch_s = watch_s
        self._command = manager_command
        self._lock = threading.RLock()
        self._own: launch.OwnPool | None = None
        self._session: Session | None = None
        self._watchers: list[Watcher] = []
        self.name = ""
        """What a pool that stays is called; empty for one of this process's own."""

    @classmethod
    def connect(
        cls,
        name: str = DEFAULT_NAME,
        *,
        window_rows: int = WINDOW_ROWS,
        window_bytes: int = WINDOW_BYTES,
        watch_s: float = 0.5,
    ) -> Pool:
        """The pool that `pilotlight up` started; `name` may also be its folder, or its client file on another machine,
        whose manager then opens all files. `close` (or the end of `with`) leaves it up; jobs of this process that
        are not over end with it, unless they are detached. Raises `ConfigError` if it is not up."""
        from pilotlight.client import lasting

        lasting.find(name)
        pool = cls(window_rows=window_rows, window_bytes=window_bytes, watch_s=watch_s)
        pool.name = name
        return pool

    # --- life

    def start(self) -> None:
        """Start manager and workers, or connect to those that are up, unless that was done. Raises `ConfigError` and
        `PilotlightError`."""
        with self._lock:
            if self._session is not None:
                return
            if self.name:
                self._session = self._connected()
                return
            workers = self._workers or launch.default_workers()
            own = launch.launch(workers=workers, shapes=self._shapes, command=self._command)
            session = Session(self._watchers)
            try:
                session.open(own.socket, Hello(owner=True, watch_s=self._watch_s))
            except BaseException:
                own.end(grace_s=0.0)
                raise
            self._own, self._session = own, session

    def reconnect(self) -> None:
        """Connect anew to a pool that stays and whose manager was lost. Raises as `start` does."""
        with self._lock:
            assert self.name
            if self._session is not None:
                self._session.close(grace_s=0.0, error=self._session.gone())
            self._session = None
            self.start()

    def _connected(self) -> Session:
        from pilotlight.client import lasting

        if lasting.has_crashed(self.name):
            again = f"it is brought up again by {lasting.command('up', self.name)}"
            raise LinkClosed(f"the manager of pool {self.name} is gone; {again}")
        place = lasting.find(self.name)
        session = Session(self._watchers)
        try:
            session.open(place, Hello(watch_s=self._watch_s))
        except LinkClosed as error:
            raise LinkClosed(f"{error}{lasting.way_on(self.name)}") from error
        return session

    @property
    def lost(self) -> bool:
        """Whether its manager has gone without being asked to."""
        return self._session is not None and bool(self._session.lost)

    def close(self, *, grace_s: float = END_S_MAX) -> None:
        """Leave the pool, and end it if it is this process's own: running jobs are cancelled; workers and manager exit,
        or are made to after `grace_s`. Idempotent."""
        with self._lock:
            own, session = self._own, self._session
            self._own = self._session = None
            if session is None:
                return
            error = JobCancelled("the pool was closed before the job was over")
            try:
                session.close(None if self.name else Shutdown(), grace_s=grace_s, error=error)
            finally:
                if own is not None:
                    own.end(grace_s)

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
        """Where manager and workers write their logs, while the pool is up. The last ten pools' logs are kept."""
        if self._own is not None:
            return self._own.log_dir
        return Path(self._session.log_dir) if self._session is not None else None

    @property
    def troubled(self) -> set[str]:
        """The workers and jobs with which something went wrong; an empty name stands for the pool itself."""
        return self._session.troubled if self._session is not None else set()

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` with each `Snapshot` and `Notice`, in the link's thread; it must not block."""
        self._watchers.append(watcher)

    # --- jobs

    def generate(
        self,
        llm: LLM,
        rows: Iterable[Any],
        sampling_params: SamplingParams | None = None,
        *,
        ordered: bool = True,
        weight: float = 1.0,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Job[Generation]:
        """Continue each row's prompt. Rows: a text, a list of token ids, or a dict with `prompt` or `messages`."""
        operation = _generate(llm, sampling_params)
        return self._stream(
            llm.wire, operation, rows, prompt_line, ordered=ordered, weight=weight, request_timeout_s=request_timeout_s
        )

    def chat(
        self,
        llm: LLM,
        rows: Iterable[Any],
        sampling_params: SamplingParams | None = None,
        *,
        ordered: bool = True,
        weight: float = 1.0,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Job[Generation]:
        """Answer each conversation: a list of messages, a text (its only message), or a dict with `messages`."""
        operation = _generate(llm, sampling_params)
        return self._stream(
            llm.wire, operation, rows, chat_line, ordered=ordered, weight=weight, request_timeout_s=request_timeout_s
        )

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
        weight: float = 1.0,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Job[Classification]:
        """Compare `labels` as continuations of each row's prompt (or of `prompt_template` over a dict's fields)."""
        checks.check_truncation(truncate_prompt_tokens, "truncate_prompt_tokens")
        operation = Operation(
            kind="echo" if llm.wire.runtime == "echo" else "classify",
            labels=checks.check_labels(labels),
            label_scoring=label_scoring,
            prompt_template=prompt_template,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        return self._stream(
            llm.wire,
            operation,
            rows,
            prompt_line,
            ordered=ordered,
            weight=weight,
            request_timeout_s=request_timeout_s,
            reader=read_classification,
        )

    def map(
        self,
        function: Callable[..., Any],
        rows: Iterable[Any],
        *,
        context: Context[Any] | None = None,
        ordered: bool = True,
        batched: bool = False,
        batch_max: int = 256,
        weight: float = 1.0,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
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
        given = context or STATELESS
        if self.name:
            warn_if_unstable(given)
        return self._stream(
            given.wire,
            operation,
            rows,
            pickle_line(name),
            ordered=ordered,
            weight=weight,
            request_timeout_s=request_timeout_s,
        )

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
        weight: float = 1.0,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        detach: bool = False,
        name: str = "",
        arguments: dict[str, Any] | None = None,
    ) -> Job[Result]:
        """A job between files, which the manager reads and writes. Its end is this process's, but what it wrote stays
        and the same call goes on; with `detach` (in a pool that stays) it goes on by itself.

        operation: what is done with each row. Nothing to iterate over: `wait` for it."""
        checks.check_truncation(operation.truncate_prompt_tokens, "truncate_prompt_tokens")
        checks.check_share(weight, request_timeout_s)
        if detach and not self.name:
            raise ConfigError("only a job in a pool that stays can be detached: pilotlight up, and Pool.connect()")
        request = JobRequest(
            context=llm.wire,
            operation=operation,
            input=PathInput(paths=[str(Path(path).absolute()) for path in inputs], limit=limit),
            output=PathOutput(
                path=str(Path(output).absolute()), overwrite=overwrite, retry_errors=retry_errors, umask=_umask()
            ),
            name=name,
            max_attempts=max_attempts,
            weight=weight,
            request_timeout_s=request_timeout_s,
            arguments=arguments or {},
        )
        job: Job[Result] = Job(send=self._send, reader=None, ordered=True, window=Window())
        self._opened().submit(job, request, lambda: None, detached=detach)
        return job

    def attach(self, job: str) -> Job[Result]:
        """Follow a running job of anybody in this pool, by its id or its output's path: `wait` for it, `cancel` it. It
        goes on when this process leaves."""
        handle: Job[Result] = Job(send=self._send, reader=None, ordered=True, window=Window())
        self._opened().attach(handle, _absolute(job))
        return handle

    def cancel(self, job: str, *, drain: bool = True) -> str:
        """End a job of anybody in this pool; `drain`: rows that replicas hold are finished first. Returns what was
        done, in a sentence. Raises `ConfigError` where there is no such job."""
        return self._done(lambda ticket: Cancel(job=_absolute(job), drain=drain, ticket=ticket))

    def jobs(self) -> list[JobView]:
        """The jobs that run in this pool and those that ended lately, oldest first."""
        return self._opened().jobs()

    def workers(self) -> list[WorkerView]:
        """The workers that are here, and what each said of its cache and its environment."""
        return self._opened().workers()

    # --- contexts

    def contexts(self) -> list[ContextView]:
        """The contexts that this pool knows and where each is, most recently used first."""
        return self._opened().contexts()

    def pin(self, context: LLM | Context[Any]) -> str:
        """Keep a context live wherever there is room, loading it if need be, until `unpin`. Returns what was done, in a
        sentence."""
        if isinstance(context, Context):
            warn_if_unstable(context)
            self._opened().check_code(context.wire)
        return self._done(lambda ticket: Pin(ticket=ticket, context=context.wire))

    def unpin(self, context: LLM | Context[Any]) -> str:
        """Let a pinned context go when nothing needs it. Raises `ConfigError` if it is not pinned."""
        return self._done(lambda ticket: Pin(ticket=ticket, context=context.wire, on=False))

    def evict(self, context: LLM | Context[Any] | str, *, disk: bool = False) -> str:
        """Drop a context that no job needs from all devices and memories, with `disk` from the file caches too. A text
        is its name, id or model folder. Raises `ConfigError` where it is in use, unknown or not the only one."""
        if isinstance(context, LLM):
            named = context.wire.model_path or context.wire.name
        else:
            named = context if isinstance(context, str) else context.id
            named = os.path.abspath(named) if os.path.isdir(named) else named  # the manager is in another folder
        return self._done(lambda ticket: Evict(ticket=ticket, context=named, disk=disk))

    def _done(self, question: Callable[[int], Cancel | Pin | Evict]) -> str:
        answer = self._opened().ask(question)
        assert isinstance(answer, Done)
        return answer.text

    # --- inside

    def _opened(self) -> Session:
        session = self._session
        if session is None:
            raise ConfigError("the pool is not started: use it as `with pl.Pool() as pool`")
        return session

    def _stream(
        self,
        context: Any,
        operation: Operation,
        rows: Iterable[Any],
        encode: Encoder,
        *,
        ordered: bool,
        weight: float,
        request_timeout_s: float,
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

        checks.check_share(weight, request_timeout_s)
        request = JobRequest(
            context=context,
            operation=operation,
            input=StreamInput(),
            output=StreamOutput(),
            weight=weight,
            request_timeout_s=request_timeout_s,
        )
        self._opened().submit(job, request, feed)
        return job

    def _rows_raised(self, job: Job[Any], error: BaseException) -> None:
        job.on_failed(error)  # first: the manager's word that it was cancelled must not come before
        job.cancel()

    def _send(self, message: Any) -> None:
        session = self._session
        if session is not None:
            session.send(message)

    def _post(self, action: Callable[[], None], delay_s: float) -> None:
        session = self._session
        if session is not None:
            session.post(action, delay_s)


def _umask() -> int:
    """This process's mask of file modes, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _generate(llm: LLM, sampling_params: SamplingParams | None) -> Operation:
    given: Any = sampling_params
    if given is not None and not isinstance(given, SamplingParams):
        message = f"sampling_params must be one SamplingParams for all rows, not {type(given).__name__}"
        raise ConfigError(message)
    sampling = (sampling_params or SamplingParams()).to_wire()
    return Operation(kind="echo" if llm.wire.runtime == "echo" else "generate", sampling=sampling)


def _absolute(job: str) -> str:
    """An output's path means the same to the manager; an id stays as it is."""
    path = Path(job).expanduser()
    return str(path.absolute()) if path.exists() or "/" in job or Path(f"{path}.pilotlight").exists() else job
