"""Run the benchmarks one after another: benchmarks/bench_*.py, or those whose names are given.

Each prints its figures and leaves them as JSON in bench-results/. Say on which machine, when you quote them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Run them all, also after one that fails; the exit code says whether all went well."""
    wanted = sys.argv[1:]
    scripts = sorted((ROOT / "benchmarks").glob("bench_*.py"))
    chosen = [path for path in scripts if not wanted or path.stem.removeprefix("bench_") in wanted]
    if not chosen:
        known = ", ".join(path.stem.removeprefix("bench_") for path in scripts)
        print(f"no such benchmark; there are: {known}", file=sys.stderr)
        return 2
    failed: list[str] = []
    for path in chosen:
        print(f"\n== {path.stem}", flush=True)
        if subprocess.run([sys.executable, str(path)], cwd=ROOT, check=False).returncode:
            failed.append(path.stem)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
