"""Run whatever needs a GPU: tests/gpu and benchmarks/gpu_*.py, and write bench-results/gpu.json. Under eight minutes.

Made for a machine that has CUDA torch and transformers and no network: nothing is installed, this interpreter is used
as it is, and what it lacks is named. Tests leave figures with pytest's `record_property`; a benchmark leaves JSON files
in the folder that the environment's BENCH_RESULTS names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench-results" / "gpu.json"
TOTAL_S = 460
TESTS_S = 280
NEEDED = (
    "cloudpickle",
    "cyclopts",
    "huggingface_hub",
    "jinja2",
    "msgspec",
    "platformdirs",
    "psutil",
    "pynvml",
    "pytest",
    "rich",
    "safetensors",
    "torch",
    "transformers",
    "zstandard",
)


def missing() -> list[str]:
    """Packages that this interpreter lacks."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def machine() -> dict[str, Any]:
    """What the figures were taken on. Raises SystemExit where torch sees no GPU."""
    import torch
    import transformers

    if not torch.cuda.is_available():
        raise SystemExit("make gpu: torch sees no CUDA device here")
    return {
        "devices": [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


def run(command: list[str], timeout_s: float, environment: dict[str, str]) -> str:
    """`ok`, or how it went wrong. Its output goes to the terminal."""
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=timeout_s, env=environment, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"not over after {timeout_s:.0f} s"
    return "ok" if code == 0 else f"exit code {code}"


def tests(scratch: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run tests/gpu: how it went, and per test its outcome and figures."""
    report = scratch / "tests.xml"
    # The project's own pytest settings ask for plugins that may not be here, so they are left out.
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}", "--confcutdir=tests/gpu", "-q"]
    command += ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning", f"--junitxml={report}"]
    outcome = run([*command, "tests/gpu"], TESTS_S, environment)
    cases: dict[str, Any] = {}
    if report.exists():
        for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - we have just had it written
            told = [child.tag for child in case if child.tag in {"failure", "error", "skipped"}]
            figures = {prop.get("name"): prop.get("value") for prop in case.iter("property")}
            cases[case.get("name") or ""] = {"outcome": told[0] if told else "passed", **figures}
    return {"outcome": outcome, "cases": cases}


def benchmarks(scratch: Path, environment: dict[str, str], deadline_s: float) -> dict[str, Any]:
    """Run benchmarks/gpu_*.py while time is left: how each went, and the figures that it left."""
    found: dict[str, Any] = {}
    for path in sorted((ROOT / "benchmarks").glob("gpu_*.py")):
        left_s = deadline_s - time.monotonic()
        folder = scratch / path.stem
        folder.mkdir()
        outcome = "no time was left"
        if left_s > 1:
            print(f"\n== {path.stem}", flush=True)
            outcome = run([sys.executable, str(path)], left_s, {**environment, "BENCH_RESULTS": str(folder)})
        figures = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
        found[path.stem] = {"outcome": outcome, **figures}
    return found


def main() -> int:
    """Run it all; the exit code says whether all went well."""
    if lacking := missing():
        print(
            f"make gpu: {sys.executable} lacks {', '.join(lacking)}: install them, or name a folder that has them in "
            "PYTHONPATH, or another interpreter (make gpu PYTHON=...)",
            file=sys.stderr,
        )
        return 2
    deadline_s = time.monotonic() + TOTAL_S
    figures: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "command": "make gpu", "machine": machine()}
    # Children find packages where this process does, also those that came by way of PYTHONPATH.
    path = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    with tempfile.TemporaryDirectory() as folder:
        figures["tests"] = tests(Path(folder), environment)
        figures["benchmarks"] = benchmarks(Path(folder), environment, deadline_s)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\nfigures: {RESULTS.relative_to(ROOT)}")
    outcomes = [figures["tests"]["outcome"], *(each["outcome"] for each in figures["benchmarks"].values())]
    return int(any(outcome != "ok" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
