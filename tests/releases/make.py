"""Makes what an earlier release leaves behind, from the code that is checked out: `python tests/releases/make.py`.

To be run once, when a release is made; its folder is committed and never made again. Each run is a real command over
real processes that are killed in the middle, and beside it stands what the command writes when nothing is killed:

    RELEASE/CASE.tar.zst: in.jsonl               the input
                          out.jsonl.pilotlight/  what the killed command left
                          expected.jsonl         the output of an undisturbed run
                          pool/                  of a lasting pool: what its folder remembers

`test_releases.py` has every later release go on from there.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import zstandard

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from pilotlight import __version__  # noqa: E402 - from this very checkout
from pilotlight.io.segments import scan_segment  # noqa: E402
from tests.faults.harness import Playground, playground  # noqa: E402
from tests.faults.lasting import LastingPool, request  # noqa: E402

HERE, PYTHON = "/the/folder", "/the/python"
"""Stand for the folder that a case was made in, and for the interpreter."""
RANGE_ROWS = 65_536
OPTIONS = ("--runtime", "echo", "--workers", "1", "--no-pool")
WAIT_S = 60.0


def plain() -> Iterable[dict[str, object]]:
    """Rows of which the last ones are slow, so that the command can be killed before its end."""
    yield from ({"n": index, "text": "x" * (index % 50)} for index in range(600))
    yield from ({"n": index, "sleep_s": 0.05} for index in range(600, 660))


def errors() -> Iterable[dict[str, object]]:
    """Every seventh row is an error row."""
    for row in plain():
        yield {**row, "fail": "as it was told"} if int(str(row["n"])) % 7 == 3 else row


def attempts() -> Iterable[dict[str, object]]:
    """Two rows end their replica whenever they run; each is tried three times, alone."""
    for row in plain():
        yield {**row, "die": True} if row["n"] in {50, 610} else row


def ordered() -> Iterable[dict[str, object]]:
    """More rows than are put in order at once."""
    yield from ({} for _ in range(RANGE_ROWS + 200))
    yield from ({"sleep_s": 0.05} for _ in range(60))


@dataclass(frozen=True)
class Case:
    """Rows, the names of input and output, and what must be in the output's folder when the command is killed: so many
    rows in segments, and something like this in the journal."""

    rows: Callable[[], Iterable[dict[str, object]]]
    source: str = "in.jsonl"
    out: str = "out.jsonl"
    done: int = 400
    journal: str = ""


CASES = {
    "plain": Case(plain),
    "errors": Case(errors),
    "attempts": Case(attempts, done=60, journal='"record":"attempts"'),
    "ordered": Case(ordered, "in.jsonl.zst", "out.jsonl.zst", 1, r'"record":"ordered"[^}]*"rows":[1-9]'),
}


def main() -> None:
    """Make this release's folder."""
    release = Path(__file__).parent / __version__
    release.mkdir()
    for name, case in CASES.items():
        with playground() as ground:
            _write(ground.folder / case.source, case.rows())
            _kill(ground, ground.start("run", case.source, "-o", case.out, *OPTIONS), case)
            _keep(ground, release / f"{name}.tar.zst", case, {})
    with playground() as ground:
        case = CASES["plain"]
        _write(ground.folder / case.source, case.rows())
        pool = LastingPool(ground, workers=1)
        pool.up()
        with pool.client() as client:
            client.submit(request(ground.folder / case.source, ground.folder / case.out), detached=True)
            assert pool.manager is not None
            _kill(ground, pool.manager, case)
        remembered: dict[str, bytes] = {}
        for path in pool.folder.rglob("*"):
            if path.is_file():
                known = path.read_bytes().replace(str(ground.folder).encode(), HERE.encode())
                known = known.replace(sys.executable.encode(), PYTHON.encode())
                remembered[f"pool/{path.relative_to(pool.folder)}"] = known
        _keep(ground, release / "pool.tar.zst", case, remembered)
    size = sum(path.stat().st_size for path in release.rglob("*") if path.is_file())
    print(f"{release}: {size / 1000:.0f} kB")


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    text = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    path.write_bytes(zstandard.compress(text, 19) if path.suffix == ".zst" else text)


def _kill(ground: Playground, command: subprocess.Popen[Any], case: Case) -> None:
    """Kill all at once, in the middle."""
    folder = ground.folder / f"{case.out}.pilotlight"
    deadline = time.monotonic() + WAIT_S
    while not _is_enough(folder, case):
        assert time.monotonic() < deadline, "it never came so far"
        assert command.poll() is None, "it was over before it could be killed"
        time.sleep(0.01)
    for process in ground.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    command.wait()


def _is_enough(folder: Path, case: Case) -> bool:
    done = sum(chunk.count for path in folder.glob("segment-*") for _, chunk in scan_segment(str(path)))
    journal = b"".join(path.read_bytes() for path in folder.glob("journal-*"))
    return done >= case.done and re.search(case.journal.encode(), journal) is not None


def _keep(ground: Playground, kept: Path, case: Case, more: dict[str, bytes]) -> None:
    """Take over what is there, then let the same command run undisturbed into another output."""
    left = {str(path.relative_to(ground.folder)): path.read_bytes() for path in _left(ground.folder, case)}
    expected = f"expected{''.join(Path(case.out).suffixes)}"
    code, said = ground.run("run", case.source, "-o", expected, *OPTIONS)
    assert code in {0, 3}, said
    left[expected] = (ground.folder / expected).read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in sorted((left | more).items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    kept.write_bytes(zstandard.compress(buffer.getvalue(), 19))


def _left(folder: Path, case: Case) -> list[Path]:
    return [folder / case.source, *(folder / f"{case.out}.pilotlight").iterdir()]


if __name__ == "__main__":
    main()
