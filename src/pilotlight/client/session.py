"""What this process has going on with one manager: jobs handed in or followed, questions asked, watchers.

A session lives as long as its connection; `Pool` makes a new one where it connects again. The link's thread calls
`_receive` and `_closed`; everything else may be called by any thread.
"""

from __future__ import annotations

import itertools
import platform
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import msgspec

from pilotlight.client.connection import GREETING_S_MAX, Link, Place
from pilotlight.client.jobs import Job
from pilotlight.client.launch import named_error
from pilotlight.core.errors import ConfigError, LinkClosed, PilotlightError
from pilotlight.messages import (
    Accepted,
    Ask,
    Attach,
    ClientMessage,
    ClientReply,
    ContextsAnswer,
    Done,
    Greeting,
    Hello,
    JobEnded,
    JobsAnswer,
    Notice,
    Refused,
    RowsOut,
    Snapshot,
    Submit,
    WorkersAnswer,
)
from pilotlight.views import ContextView, JobView, WorkerView
from pilotlight.wire import Context, JobRequest, minor_of
from pilotlight.worker import build

ANSWER_S_MAX = 60.0
"""A manager answers questions at once; pinning a model may first have to find it."""

_OF_FILES = {"input", "output", "model_not_found"}
"""What is refused for a file's sake, and so depends on the machine."""

Watcher = Callable[[Snapshot | Notice], None]
Start = Callable[[], None]
Answer = Done | JobsAnswer | ContextsAnswer | WorkersAnswer


class Session:
    """`open` once; `close` once (idempotent)."""

    def __init__(self, watchers: list[Watcher]) -> None:
        self._watchers = watchers
        self._link = Link(self._receive, self._closed)
        self._lock = threading.RLock()
        self._tickets = itertools.count(1)
        self._submitted: dict[int, tuple[Job[Any], Start]] = {}
        self._jobs: dict[str, list[Job[Any]]] = {}
        self._asked: dict[int, Future[Answer]] = {}
        self._left: PilotlightError | None = None
        """What jobs end with, once this was closed."""
        self._host = ""
        """The manager's machine, if that is another one."""
        self.greeting: Greeting | None = None
        self._owns = False
        """Whether the pool is this process's own, and its workers run with this Python."""
        self.lost = ""
        """Why the manager is gone, if it went without being asked to."""
        self.troubled: set[str] = set()
        """What (workers, jobs; empty: the pool) something went wrong with."""

    def open(self, place: Place, hello: Hello, timeout_s: float = GREETING_S_MAX) -> Greeting:
        """See `Link.open`. After an error there is nothing to close."""
        self._host = "" if isinstance(place, str) else place.host
        self._owns = hello.owner
        try:
            self.greeting = self._link.open(place, hello, timeout_s)
        except BaseException:
            self._link.close()
            raise
        return self.greeting

    def close(self, farewell: ClientMessage | None = None, *, grace_s: float, error: PilotlightError) -> None:
        """Say a last word and leave; handles of jobs that are not over end with `error`."""
        with self._lock:
            self._left = self._left or error
            self._fail_all(error)
        if farewell is not None:
            self._link.send(farewell)
        self._link.close(grace_s)

    # --- jobs

    def submit(self, job: Job[Any], request: JobRequest, start: Start, *, detached: bool = False) -> None:
        """Hand a job in; `start` is called once it is accepted. Raises `LinkClosed`, what `close` was given,
        `MissingExtra` where the pool is this process's own and can't run the model, and as `check_code` does."""
        self.check_code(request.context, request.operation.function)
        if self._owns:
            runtime = request.context.runtime
            build.require("transformers" if runtime == "auto" else runtime)
        ticket = self._enter(job, start)
        self._link.send(Submit(ticket=ticket, request=request, detached=detached))

    def check_code(self, context: Context, function: bytes | None = None) -> None:
        """Raise `ConfigError` where functions would travel to a pool of another Python, which can't run their code."""
        theirs = self.greeting.python if self.greeting is not None else ""
        ours = platform.python_version()
        if theirs and (context.load is not None or function is not None) and minor_of(theirs) != minor_of(ours):
            raise ConfigError(
                f"functions travel as code of this Python {ours}, and the pool runs Python {theirs}: "
                f"use Python {minor_of(theirs)} here, or start a pool with Python {minor_of(ours)}"
            )

    def attach(self, job: Job[Any], named: str) -> None:
        """Follow a job of somebody, by its id or output. Raises `LinkClosed`."""
        ticket = self._enter(job, lambda: None)
        self._link.send(Attach(ticket=ticket, job=named))

    def _enter(self, job: Job[Any], start: Start) -> int:
        with self._lock:
            self._check()
            ticket = next(self._tickets)
            job.log_dir = self.log_dir
            self._submitted[ticket] = (job, start)
            return ticket

    # --- questions

    def ask(self, question: Callable[[int], ClientMessage], timeout_s: float = ANSWER_S_MAX) -> Answer:
        """Send what `question` makes of a ticket, and wait for its answer. Raises what the manager refuses with,
        `LinkClosed`, and `PilotlightError` where no answer comes."""
        future: Future[Answer] = Future()
        with self._lock:
            self._check()
            ticket = next(self._tickets)
            self._asked[ticket] = future
        self._link.send(question(ticket))
        try:
            return future.result(timeout_s)
        except FutureTimeout:
            if self._taken(ticket) is None:
                return future.result()  # its answer came just now
            raise PilotlightError(f"the pool's manager gave no answer in {timeout_s:.0f} s") from None

    def jobs(self, timeout_s: float = ANSWER_S_MAX) -> list[JobView]:
        """The jobs that run and those that ended lately, oldest first. Raises as `ask` does."""
        answer = self.ask(lambda ticket: Ask(ticket=ticket, what="jobs"), timeout_s)
        assert isinstance(answer, JobsAnswer)
        return answer.jobs

    def contexts(self, timeout_s: float = ANSWER_S_MAX) -> list[ContextView]:
        """The contexts that the pool knows, most recently used first. Raises as `ask` does."""
        answer = self.ask(lambda ticket: Ask(ticket=ticket, what="contexts"), timeout_s)
        assert isinstance(answer, ContextsAnswer)
        return answer.contexts

    def workers(self, timeout_s: float = ANSWER_S_MAX) -> list[WorkerView]:
        """The workers that are here, and what each said of itself. Raises as `ask` does."""
        answer = self.ask(lambda ticket: Ask(ticket=ticket, what="workers"), timeout_s)
        assert isinstance(answer, WorkersAnswer)
        return answer.workers

    def _check(self) -> None:
        """With the lock held: nothing can be begun on a session that is over."""
        if self._left is not None:
            raise self._left
        if self.lost:
            raise self.gone()

    def send(self, message: ClientMessage) -> None:
        """Send what needs no answer."""
        self._link.send(message)

    def post(self, action: Callable[[], None], delay_s: float) -> None:
        """Run something short in the link's thread after a while."""
        self._link.post(action, delay_s)

    @property
    def log_dir(self) -> str:
        """Where the pool's processes write their logs."""
        return self.greeting.log_dir if self.greeting else ""

    def gone(self) -> LinkClosed:
        """What calls on a lost session raise."""
        where = f" (logs: {self.log_dir})" if self.log_dir else ""
        how_on = "a job between files goes on when it is started again"
        return LinkClosed(f"the pool's manager is gone ({self.lost}); {how_on}{where}")

    # --- in the link's thread

    def _receive(self, message: ClientReply) -> None:
        match message:
            case RowsOut():
                for job in self._jobs.get(message.job, ()):
                    job.on_rows(message)
            case Accepted():
                self._accepted(message)
            case Refused():
                self._refused(message)
            case Done() | JobsAnswer() | ContextsAnswer() | WorkersAnswer():
                if future := self._taken(message.ticket):
                    future.set_result(message)
            case JobEnded():
                if message.outcome in {"failed", "suspended"}:
                    self.troubled.add(message.job)
                with self._lock:
                    ended = self._jobs.pop(message.job, ())
                for job in ended:
                    job.on_ended(message)
            case Snapshot():
                for view in message.jobs:
                    for job in self._jobs.get(view.job, ()):
                        job.on_view(view)
                self._tell(message)
            case Notice():
                if message.level in {"warning", "error"}:
                    self.troubled.add(message.worker)
                self._tell(message)
            case Greeting():
                pass

    def _accepted(self, message: Accepted) -> None:
        with self._lock:
            job, start = self._submitted.pop(message.ticket, (None, None))
            if job is None or start is None:
                return
            self._jobs.setdefault(message.job, []).append(job)
            job.on_accepted(message)
        start()

    def _refused(self, message: Refused) -> None:
        if self._host and message.kind in _OF_FILES:
            text = f"{message.message} (that is on {self._host}, where the pool's manager runs)"
            message = msgspec.structs.replace(message, message=text)
        if future := self._taken(message.ticket):
            future.set_exception(named_error(message.kind, message.message, message.exit_code))
            return
        with self._lock:
            job, _ = self._submitted.pop(message.ticket, (None, None))
        if job is not None:
            job.on_refused(message)

    def _taken(self, ticket: int) -> Future[Answer] | None:
        """Whoever takes a question's future is the one that sets it."""
        with self._lock:
            return self._asked.pop(ticket, None)

    def _tell(self, message: Snapshot | Notice) -> None:
        for watcher in self._watchers:
            watcher(message)

    def _closed(self, reason: str) -> None:
        with self._lock:
            if self._left is not None:
                return
            self.lost = reason or "its connection ended"
            self.troubled.add("")
            self._fail_all(self.gone())

    def _fail_all(self, error: PilotlightError) -> None:
        """With the lock held."""
        for job, _ in self._submitted.values():
            job.on_failed(error)
        for job in [job for jobs in self._jobs.values() for job in jobs]:
            job.on_failed(error)
        while self._asked:
            self._asked.popitem()[1].set_exception(error)
