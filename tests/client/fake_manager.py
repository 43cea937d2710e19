"""A manager at the protocol's edge: a real process on a real socket that answers rows itself.

Run as `python fake_manager.py POOL_DIR --ready-fd N`. Each row is echoed as its result (generate and classify in
their result's form; a `map` calls its function here). Rows are answered backwards within a chunk. A model named
`refuse` is refused, `fail` fails after its first rows, `hang` never answers, `die` kills this process, `slow` is
never accepted. Rows of token ids become errors: there is no tokenizer here. Path jobs can be joined and attached to,
contexts be pinned and evicted by name; a lasting pool stays when a client leaves.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec

from pilotlight.connection import Connection, listen
from pilotlight.io.rows import encode_pickle
from pilotlight.messages import (
    Accepted,
    Ask,
    Attach,
    Cancel,
    ClientMessage,
    ContextsAnswer,
    Done,
    Evict,
    Greeting,
    Hello,
    InputEnd,
    JobEnded,
    JobsAnswer,
    Notice,
    Pin,
    Refused,
    RowsIn,
    RowsOut,
    Shutdown,
    Snapshot,
    Submit,
)
from pilotlight.poolfile import read_spec, remove_sockets, socket_path
from pilotlight.views import ContextView, JobView, Totals
from pilotlight.wire import VERSION, JobRequest, PathInput, PathOutput, PoolSpec, ResultChunk


class FakeJob:
    def __init__(self, name: str, request: JobRequest, client: Connection, *, detached: bool) -> None:
        self.name, self.request, self.done, self.detached = name, request, 0, detached
        self.clients = {client}
        self.holders = {client}
        self.function: Any = None
        self.state: tuple[Any, ...] = ()
        if request.operation.function is not None:
            self.function = cloudpickle.loads(request.operation.function)
        if request.context.load is not None:
            build, args, kwargs = cloudpickle.loads(request.context.load)
            self.state = (build(*args, **kwargs),)

    def view(self, state: str) -> JobView:
        return JobView(
            job=self.name,
            name="",
            state=state,
            rows_read=self.done,
            rows_done=self.done,
            rows_error=0,
            rows_leased=0,
            fraction=0.5,
            weight=self.request.weight,
            detached=self.detached,
            holders=len(self.holders),
            output=self.output,
        )

    @property
    def output(self) -> str:
        return self.request.output.path if isinstance(self.request.output, PathOutput) else ""

    def answer(self, index: int, line: bytes) -> bytes:
        if self.request.operation.row_format == "pickle":
            try:
                row = cloudpickle.loads(base64.b64decode(line, validate=True))
                value = self.function(*self.state, row)
            except Exception as error:
                return msgspec.json.encode({"index": index, "error": {"kind": "function_error", "message": str(error)}})
            return encode_pickle(index, cloudpickle.dumps(value))
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            return msgspec.json.encode({"index": index, "error": {"kind": "bad_row", "message": str(error)}})
        kind = self.request.operation.kind
        result: Any = row
        if "prompt_token_ids" in row:
            error = {"kind": "unsupported", "message": f"no tokenizer reads {row['prompt_token_ids']} here"}
            return msgspec.json.encode({"index": index, "error": error})
        if kind == "generate":
            text = row["prompt"] if "prompt" in row else row["messages"][-1]["content"]
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            result = {"text": f"{text}!", "finish_reason": "stop", "usage": usage}
        elif kind == "classify":
            labels = self.request.operation.labels
            result = {"label": labels[0], "probabilities": {label: 1 / len(labels) for label in labels}}
        return msgspec.json.encode({"index": index, "result": result})


class FakeManager:
    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.ended: list[JobView] = []
        self.pinned: dict[str, bool] = {}
        self.made = 0
        self.over = asyncio.Event()

    def accept(self, connection: Connection) -> None:
        connection.on_message = lambda message: self.receive(connection, message)
        connection.on_closed = lambda _: self.closed(connection)

    def closed(self, connection: Connection) -> None:
        for job in self.jobs.values():
            job.holders.discard(connection)
        if not spec().lasting:
            self.over.set()

    def receive(self, connection: Connection, message: Any) -> None:
        match message:
            case Hello():
                greeting = Greeting(
                    version=VERSION,
                    epoch=1,
                    pid=os.getpid(),
                    log_dir=spec().log_dir,
                    lasting=spec().lasting,
                    python=os.environ.get("FAKE_PYTHON", ""),
                )
                connection.send(greeting)
            case Submit():
                self.submit(connection, message)
            case RowsIn():
                # Rows of a job that was cancelled meanwhile are nobody's.
                if message.job in self.jobs:
                    self.rows(connection, self.jobs[message.job], message)
            case InputEnd():
                if message.job in self.jobs and self.jobs[message.job].request.context.name != "hang":
                    self.end(connection, message.job, "completed")
            case Cancel():
                found = self.find(connection, message.ticket, message.job)
                if found is not None:
                    self.end(connection, found.name, "cancelled")
                    connection.send(Done(ticket=message.ticket, text=f"{found.name} ends, drain={message.drain}"))
            case Attach():
                if (found := self.find(connection, message.ticket, message.job)) is not None:
                    found.clients.add(connection)
                    connection.send(Accepted(ticket=message.ticket, job=found.name, request=found.request))
            case Ask(what="jobs"):
                views = [*self.ended, *(job.view("running") for job in self.jobs.values())]
                connection.send(JobsAnswer(ticket=message.ticket, jobs=views))
            case Ask():
                contexts = [context_view(name, pinned) for name, pinned in self.pinned.items()]
                connection.send(ContextsAnswer(ticket=message.ticket, contexts=contexts))
            case Pin():
                self.pinned[message.context.name] = message.on
                connection.send(Done(ticket=message.ticket, text=f"{message.context.name}: {message.on}"))
            case Evict():
                known = self.pinned.pop(message.context, None) is not None
                text = f"{message.context}, disk={message.disk}" if known else f"no context {message.context}"
                answer = Done(ticket=message.ticket, text=text) if known else None
                connection.send(answer or Refused(ticket=message.ticket, kind="config", message=text))
            case Shutdown():
                connection.close()
                self.over.set()

    def submit(self, connection: Connection, message: Submit) -> None:
        request = message.request
        if request.context.name == "refuse":
            connection.send(Refused(ticket=message.ticket, kind="model_not_found", message="there is no such model"))
            return
        if request.context.name == "slow":
            return
        running = next((job for job in self.jobs.values() if job.output and job.request == request), None)
        if running is not None:
            running.clients.add(connection)
            running.holders.add(connection)
            connection.send(Accepted(ticket=message.ticket, job=running.name, joined=True, request=request))
            return
        self.made += 1
        name = f"job-{self.made}"
        self.jobs[name] = FakeJob(name, request, connection, detached=message.detached)
        connection.send(Accepted(ticket=message.ticket, job=name, request=request))
        if isinstance(request.input, PathInput) and request.context.name != "hang":
            self.run_paths(connection, name, request)

    def find(self, connection: Connection, ticket: int, named: str) -> FakeJob | None:
        found = next((job for job in self.jobs.values() if named in {job.name, job.output}), None)
        if found is None and ticket:
            connection.send(Refused(ticket=ticket, kind="config", message=f"there is no job {named}"))
        return found

    def run_paths(self, connection: Connection, name: str, request: JobRequest) -> None:
        assert isinstance(request.input, PathInput)
        assert isinstance(request.output, PathOutput)
        lines = [line for path in request.input.paths for line in Path(path).read_bytes().splitlines()]
        answers = [self.jobs[name].answer(index, line) for index, line in enumerate(lines)]
        Path(request.output.path).write_bytes(b"".join(answer + b"\n" for answer in answers))
        self.jobs[name].done = len(answers)
        self.end(connection, name, "completed")

    def rows(self, connection: Connection, job: FakeJob, message: RowsIn) -> None:
        chunk, name = message.chunk, job.request.context.name
        if name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "hang":
            return
        lines = list(enumerate(chunk.blob.split(b"\n"), chunk.start))[::-1]
        job.done += len(lines)
        spans = [(index, index + 1) for index, _ in lines]
        blob = b"\n".join(job.answer(index, line) for index, line in lines)
        connection.send(RowsOut(job=job.name, chunk=ResultChunk(spans, blob)))
        connection.send(Snapshot(jobs=[job.view("running")], workers=[], totals=Totals()))
        if name == "fail":
            self.end(connection, job.name, "failed")

    def end(self, connection: Connection, name: str, outcome: Any) -> None:
        job = self.jobs.pop(name, None)
        if job is not None:
            if outcome == "failed":
                connection.send(Notice(level="error", text="the context can't be loaded"))
            view = job.view(outcome)
            self.ended.append(view)
            ended = JobEnded(job=name, outcome=outcome, view=view, totals=Totals(), message="told so")
            for client in job.clients:
                client.send(ended)


def context_view(name: str, pinned: bool) -> ContextView:
    return ContextView(
        variant=name, context=name, name=name, runtime="echo", pinned=pinned, jobs=0, used=1, idle_s=0.0, residences=[]
    )


def spec() -> PoolSpec:
    return read_spec(Path(sys.argv[1]))


async def main() -> None:
    folder, ready = Path(sys.argv[1]), int(sys.argv[3])
    with (folder / "manager.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.environ.get("FAKE_MANAGER_REFUSES"):
            os.write(ready, b'{"kind": "config", "message": "no worker can be had", "exit_code": 2}\n')
            return
        if os.environ.get("FAKE_MANAGER_CRASHES"):
            raise RuntimeError("a crash before the socket")
        manager = FakeManager()
        remove_sockets(folder, spec())
        server = await listen(socket_path(folder, spec(), "client.sock"), ClientMessage, manager.accept)
        os.write(ready, b"ready\n")
        await manager.over.wait()
        server.close()


if __name__ == "__main__":
    asyncio.run(main())
