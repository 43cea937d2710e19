"""What must not grow while a pool lives: memory, descriptors, threads, processes, files."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.harness import Playground

RSS_FACTOR, RSS_BYTES = 1.4, 48 << 20
"""An allocator keeps some of what was freed; what a process held at a quiet moment may grow by so much."""


@dataclass(frozen=True)
class Picture:
    """A pool at a quiet moment. The largest of each role's processes counts; files by place."""

    rss_bytes: dict[str, int]
    descriptors: dict[str, int]
    threads: dict[str, int]
    processes: dict[str, int]
    files: dict[str, list[str]]

    def grown_since(self, before: Picture, logs_more: int) -> list[str]:
        """What is more than it may be. logs_more: how many processes were started between, each with its log."""
        found: list[str] = []
        for role, size in self.rss_bytes.items():
            was = before.rss_bytes.get(role, size)
            if size > was * RSS_FACTOR + RSS_BYTES:
                found.append(f"the memory of a {role}: {was >> 20} to {size >> 20} MiB")
        for what, now, then, slack in (
            ("descriptors of a", self.descriptors, before.descriptors, 12),
            ("threads of a", self.threads, before.threads, 4),
            ("processes of the kind", self.processes, before.processes, 2),
        ):
            found += [
                f"the {what} {role}: {then[role]} to {count}"
                for role, count in now.items()
                if role in then and count > then[role] + slack
            ]
        for place, paths in self.files.items():
            more = sorted(set(paths) - set(before.files[place]))
            gone = len(set(before.files[place]) - set(paths))
            if len(more) - gone > 10 + (logs_more if place == "logs" else 0):
                found.append(f"the files in {place} by {len(more) - gone}: {', '.join(more[:20])}")
        return found

    def __str__(self) -> str:
        sizes = ", ".join(f"{role} {size >> 20} MiB" for role, size in sorted(self.rss_bytes.items()))
        counts = sum(self.processes.values()), sum(self.descriptors.values()), sum(map(len, self.files.values()))
        return f"{sizes}; {counts[0]} processes, {counts[1]} descriptors (largest of each), {counts[2]} files"


def look(ground: Playground) -> Picture:
    """A picture of all that was started from this ground."""
    rss: dict[str, int] = {}
    descriptors: dict[str, int] = {}
    threads: dict[str, int] = {}
    processes: dict[str, int] = {}
    for role, pids in ground.by_role().items():
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if role != "client":
                    rss[role] = max(rss.get(role, 0), _own_bytes(process))
                descriptors[role] = max(descriptors.get(role, 0), process.num_fds())
                threads[role] = max(threads.get(role, 0), process.num_threads())
                processes[role] = processes.get(role, 0) + 1
    return Picture(rss, descriptors, threads, processes, _files(ground.folder))


def _own_bytes(process: psutil.Process) -> int:
    """Without what it shares with others: parked files are counted once, by whoever made them."""
    memory = process.memory_info()
    return memory.rss - memory.shared


def _files(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"tmp": [], "logs": [], "home": []}
    for path in folder.rglob("*"):
        place, *rest = path.relative_to(folder).parts
        if place == "home" and path.suffix in {".log", ".jsonl", ".gz"}:
            place = "logs"
        if place in found:
            found[place].append("/".join(rest))
    return found
