"""The peer of `bench_noop`: JSON lines through `concurrent.futures.ProcessPoolExecutor` with two processes, in order.

python benchmarks/peer_executor.py IN OUT CHUNK_SIZE
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

WINDOW_ROWS = 65_536
"""Rows handed to the executor at a time: `map` takes all of its input at once, and a million futures are gigabytes."""


def answer(numbered: tuple[int, str]) -> str:
    index, line = numbered
    return json.dumps({"index": index, "result": json.loads(line)}, separators=(",", ":"))


def main(source: str, out: str, chunk: int) -> None:
    with ProcessPoolExecutor(2) as executor, open(source) as lines, open(out, "w") as results:
        numbered = enumerate(lines)
        while part := list(islice(numbered, WINDOW_ROWS)):
            results.writelines(line + "\n" for line in executor.map(answer, part, chunksize=chunk))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
