"""Four ways to verify the same claims on workers of mixed speed that are preempted, side by side on one machine.

    python -m benchmarks.preemption [--quick] [--settings mixed preempted both] [--picture preemption.svg]

a process per batch     a fresh process for each batch, which imports its libraries and loads the model
reload per batch        a process that stays, with libraries imported and files at hand, and loads the model per batch
static shards           a requeued array: one shard per slot, the model loaded once per life, done rows are skipped
many shards             the same, cut into eight shards per slot that slots take in turn (with --many-shards)
pilotlight              no batch size; contexts stay, work goes to where they are

The comparison is that of the paper on pervasive context management (arXiv 2510.14024), with a model so small that two
CPU cores do. Slower workers sleep in proportion to the time that they were busy; preempted ones are killed with SIGKILL
on a seeded schedule and replaced at once, the same for every way. The first two ways would take hours: a few batches
are run, and the rest is replayed on paper (`estimate.py`); such figures carry a ~.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "src")]

from benchmarks.measure import environment, save  # noqa: E402
from benchmarks.preemption import estimate, ours, report  # noqa: E402
from benchmarks.preemption.claims import write_prompts  # noqa: E402
from benchmarks.preemption.kills import Kill, schedule  # noqa: E402
from benchmarks.preemption.record import Record  # noqa: E402
from benchmarks.preemption.report import Setting  # noqa: E402
from benchmarks.preemption.slots import Runner, cut  # noqa: E402
from pilotlight.factcheck import bundled  # noqa: E402

FAST, SLOW = 1.0, 0.25
SHARDS_PER_SLOT = 8
LIFE_S_MIN, LIFE_S_MORE = 20.0, 15.0
"""A life is the time that a fresh process takes to load, as measured here, then at least so long, and up to so much
longer."""
SETTINGS = {
    "mixed": Setting("mixed", "Mixed speeds (1 and 0.25), nobody is killed", (FAST, SLOW), killed=False),
    "preempted": Setting("preempted", "Equal speeds, workers are killed", (FAST, FAST), killed=True),
    "both": Setting("both", "Mixed speeds (1 and 0.25), workers are killed", (FAST, SLOW), killed=True),
}
WAYS = {"once": "a process per batch", "serve": "reload per batch"}


class Demonstration:
    """All runs, in a folder of their own."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self._folder = folder
        self._arguments = arguments
        self._model = bundled.model_folder()
        self._prompts = folder / "prompts.jsonl"
        self._rows = write_prompts(self._prompts, arguments.passes)
        self._runs = 0
        self._costs: dict[tuple[str, int], estimate.Costs] = {}
        self.samples: list[Record] = []
        self.load_s = 0.0
        """How long a fresh process takes until its model is loaded."""

    def measure_batches(self) -> None:
        """What the ways cost that load for each batch, with all slots busy at full speed."""
        for mode, name in WAYS.items():
            for size in self._arguments.batches:
                way = f"{name}, batches of {size:,}"
                self._say(f"measuring {way}")
                runner = self._runner(way, mode, (FAST, FAST))
                sample = runner.run(
                    cut(self._rows, size, self._new_folder()), until_s=self._arguments.sample_s, tasks_min=2
                )
                self.samples.append(sample)
                self._costs[mode, size] = estimate.costs(runner, stays=mode == "serve")
        loads = [costs.batch_s for (mode, _), costs in self._costs.items() if mode == "once"]
        self.load_s = statistics.median(loads) if loads else 0.0

    def run(self, setting: Setting) -> None:
        """Every way in one setting."""
        kills: list[Kill] = []
        if setting.killed:
            least_s = self.load_s + LIFE_S_MIN
            kills = schedule(len(setting.speeds), self._arguments.seed, least_s, least_s + LIFE_S_MORE)
        for (mode, size), costs in self._costs.items():
            way = f"{WAYS[mode]}, batches of {size:,}"
            setting.records.append(estimate.replay(way, self._rows, size, setting.speeds, kills, costs))
        slots = len(setting.speeds)
        shards = [("static shards", slots)]
        if self._arguments.many_shards:
            shards.append((f"many shards ({SHARDS_PER_SLOT} per slot)", slots * SHARDS_PER_SLOT))
        for way, count in shards:
            self._say(f"{setting.title}: {way}")
            tasks = cut(self._rows, -(-self._rows // count), self._new_folder(), slots=slots if count == slots else 0)
            setting.records.append(self._runner(way, "shard", setting.speeds).run(tasks, kills))
        self._say(f"{setting.title}: pilotlight")
        out = self._new_folder() / "out.jsonl"
        setting.records.append(
            ours.run("pilotlight", self._model, self._prompts, self._rows, out, setting.speeds, ours.on_schedule(kills))
        )

    def _runner(self, way: str, mode: str, speeds: tuple[float, ...] | Any) -> Runner:
        return Runner(way, mode, self._model, self._prompts, speeds)

    def _new_folder(self) -> Path:
        self._runs += 1
        made = self._folder / str(self._runs)
        made.mkdir()
        return made

    def _say(self, text: str) -> None:
        print(f"{text} ...", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Four ways to verify claims on workers that come and go.")
    parser.add_argument("--quick", action="store_true", help="two minutes: fewer claims, settings and batch sizes")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS))
    parser.add_argument("--passes", type=int, help="how often the 3,000 bundled claims are verified")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--sample-s", type=float, help="how long a way that loads for each batch is run")
    parser.add_argument("--many-shards", action="store_true", help="a fifth way: eight shards per slot")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=Path("preemption.svg"), help="SVG or PNG to write")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.settings = arguments.settings or (["both"] if quick else list(SETTINGS))
    arguments.passes = arguments.passes or (4 if quick else 8)
    arguments.batches = (
        ([100, 1000] if quick else [1, 10, 100, 1000]) if arguments.batches is None else arguments.batches
    )
    arguments.sample_s = arguments.sample_s or (6.0 if quick else 10.0)
    os.environ.update(environment())
    with tempfile.TemporaryDirectory(prefix="preemption-") as folder:
        demonstration = Demonstration(Path(folder), arguments)
        demonstration.measure_batches()
        settings = [SETTINGS[name] for name in arguments.settings]
        for setting in settings:
            demonstration.run(setting)
            report.table(setting)
    said = report.agreement(settings, demonstration.samples)
    print("\n".join(said))
    from benchmarks.preemption.picture import draw

    draw(settings, arguments.picture)
    print(f"\npicture: {arguments.picture}")
    save("preemption", report.figures(settings, said))


if __name__ == "__main__":
    main()
