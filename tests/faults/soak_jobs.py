"""The jobs of the soak: what they are given, how their clients are started, and what they must answer, to the byte.

A job is done when its output is there and right, however often its client, its workers or the manager were killed
meanwhile: the same command goes on where it was.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilotlight.factcheck import bundled
from tests.faults.harness import Playground

POOL = "soak"
LABELS = ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]
LOGPROB_MAX = 2e-3
"""Padding moves the last digits of scores; labels nearer than this tie."""
CLIENT = Path(__file__).with_name("soak_client.py")


class Wrong(AssertionError):
    """What the soak looks for: an answer that is not exact, a job that never ends, something that grows or stays."""


@dataclass
class Job:
    """One output and the command that makes it. detached: the command leaves at once, the pool goes on."""

    number: int
    kind: str
    source: Path
    out: Path
    rows: int
    arguments: list[str]
    detached: bool
    began_s: float = field(default_factory=time.monotonic)
    client: subprocess.Popen[str] | None = None
    starts: int = 0
    said: str = ""
    made_s: float = 0.0
    """When its output was first seen."""

    @property
    def work_folder(self) -> Path:
        """Where its manager keeps what is unfinished."""
        return self.out.with_name(f"{self.out.name}.pilotlight")

    def __str__(self) -> str:
        how = "detached" if self.detached else "attached"
        return f"job {self.number} ({self.kind}, {self.rows} rows, {how}, {self.starts} starts)"


class Maker:
    """Makes jobs from a seeded choice, and judges what they made."""

    def __init__(self, ground: Playground, choice: random.Random) -> None:
        self._ground = ground
        self._choice = choice
        self._made = 0
        self._claims = [json.loads(line) for line in bundled.claims_file().read_text().splitlines()]
        self._reference: dict[str, dict[str, float]] = {}

    def learn(self) -> None:
        """What the model answers, from a pool of its own that nobody disturbs."""
        source = self._ground.folder / "reference.jsonl"
        out = source.with_suffix(".out")
        source.write_text("".join(f"{json.dumps({'prompt': self._prompt(at)})}\n" for at in range(len(self._claims))))
        code, said = self._ground.run(
            "run", source, "-o", out, "--no-pool", "--workers", "1", *self._model_options(), timeout_s=240
        )
        if code:
            raise Wrong(f"the reference could not be made: {said}")
        for at, line in enumerate(out.read_text().splitlines()):
            self._reference[self._prompt(at)] = json.loads(line)["result"]["logprobs"]
        for path in self._ground.folder.glob("reference*"):
            path.unlink()

    def make(self) -> Job:
        """The next job."""
        self._made += 1
        kind = self._choice.choices(("echo", "slow echo", "python", "model"), (3, 2, 2, 3))[0]
        large = self._choice.random() < 0.3
        sizes = {"echo": (300, 60_000), "slow echo": (40, 300), "python": (50, 3_000), "model": (30, 800)}
        rows = self._choice.randint(1, sizes[kind][large])
        source = self._ground.folder / f"in-{self._made}.jsonl"
        out = self._ground.folder / f"out-{self._made}.jsonl"
        with source.open("w") as file:
            file.writelines(json.dumps(self._row(kind, index)) + "\n" for index in range(rows))
        detached = kind != "python" and self._choice.random() < 0.4
        arguments: list[str] = []
        if kind != "python":
            options = self._model_options() if kind == "model" else ["--runtime", "echo"]
            weight = self._choice.choice(["0.5", "1", "1", "4"])
            arguments = ["run", str(source), "-o", str(out), "--pool", POOL, "--weight", weight, *options]
            arguments += ["--detach"] if detached else []
        return Job(self._made, kind, source, out, rows, arguments, detached)

    def start(self, job: Job) -> None:
        """Start its client, for the first time or again."""
        job.starts += 1
        if job.kind == "python":
            command = [sys.executable, str(CLIENT), POOL, str(job.source), str(job.out)]
            job.client = subprocess.Popen(
                command,
                cwd=self._ground.folder,
                env=self._ground.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        else:
            job.client = self._ground.start(*job.arguments)

    def judge(self, job: Job) -> None:
        """Raises `Wrong` unless every row has its one right answer, in its place."""
        lines = job.out.read_text().splitlines()
        if len(lines) != job.rows:
            raise Wrong(f"{job} has {len(lines)} answers")
        with job.source.open() as rows:
            for index, (line, row) in enumerate(zip(lines, rows, strict=True)):
                answer, given = json.loads(line), json.loads(row)
                wrong = answer if answer.get("index") != index else self._wrong(job.kind, given, answer)
                if wrong is not None:
                    raise Wrong(f"{job}: row {index} {row.strip()[:200]} was answered {line[:300]}")

    def remove(self, job: Job) -> None:
        """Nothing of it may be left but its input, output and report."""
        left = list(self._ground.folder.glob(f"*out-{job.number}.jsonl*"))
        strange = [path.name for path in left if path != job.out and not path.name.endswith(".report.json")]
        if strange:
            raise Wrong(f"{job} is done and left {', '.join(strange)}")
        for path in [*left, job.source]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _row(self, kind: str, index: int) -> dict[str, Any]:
        match kind:
            case "model":
                return {"prompt": self._prompt(self._choice.randrange(len(self._claims)))}
            case "slow echo":
                return {"n": index, "salt": self._choice.random(), "sleep_s": 0.05}
            case _:
                return {"n": index, "salt": self._choice.random(), "text": "x" * (index % 50)}

    def _wrong(self, kind: str, row: dict[str, Any], answer: dict[str, Any]) -> Any:
        """The answer, if it is not right."""
        result = answer.get("result")
        match kind:
            case "python":
                return None if result == [row["n"] * 3 + 1, row["salt"]] else answer
            case "model":
                return answer if result is None or self._differs(row["prompt"], result["logprobs"]) else None
            case _:
                return None if result == row else answer

    def _differs(self, prompt: str, logprobs: dict[str, float]) -> bool:
        right = self._reference[prompt]
        return any(abs(logprobs[label] - right[label]) > LOGPROB_MAX * (1 + abs(right[label])) for label in LABELS)

    def _prompt(self, at: int) -> str:
        claim = self._claims[at]
        return f"Evidence: {claim['evidence']}\nClaim: {claim['claim']}\nVerdict:"

    def _model_options(self) -> list[str]:
        return ["--model", str(bundled.model_folder()), "--labels", ",".join(LABELS)]
