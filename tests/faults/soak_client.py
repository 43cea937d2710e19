"""A client of the soak in Python: maps a function over the rows of a file and writes the answers, in order, at the end.

python soak_client.py POOL IN OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pilotlight as pl


def answer(row: dict[str, Any]) -> list[Any]:
    """What the soak expects of a row."""
    return [row["n"] * 3 + 1, row["salt"]]


def main() -> None:
    """Write OUT in one piece, so that it is whole if it is there."""
    pool_name, source, out = sys.argv[1:]
    rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
    with pl.Pool.connect(pool_name) as pool:
        lines = [json.dumps({"index": result.index, "result": result.value}) for result in pool.map(answer, rows)]
    partial = Path(f"{out}.partial")
    partial.write_text("".join(f"{line}\n" for line in lines))
    partial.replace(out)


if __name__ == "__main__":
    main()
