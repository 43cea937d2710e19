"""Which run's event log a command is about: of an output, a log folder, a lasting pool, or what ran last."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pilotlight import poolfile
from pilotlight.client.folders import logs_folder
from pilotlight.core.errors import ConfigError
from pilotlight.io import eventfile
from pilotlight.io.report import read_report


def find_run(output: Path | None, run: Path | None, pool: str | None) -> Path:
    """The folder with the event log that is asked for. Raises `ConfigError`."""
    if run is not None:
        folder = run
    elif pool is not None:
        if not (known := poolfile.pool_folder(pool)).is_dir():
            raise ConfigError(f"no pool {pool} is known on this machine: `pilotlight up --pool {pool}` would start it")
        folder = Path(poolfile.read_spec(known).log_dir)
    elif output is not None:
        report = read_report(str(output))
        if report is None:
            raise ConfigError(f"{output} has no report beside it that would name its run's logs: give --run LOGDIR")
        if not isinstance(log_dir := report.get("log_dir"), str):
            raise ConfigError(f"the report of {output} does not name its run's logs: give --run LOGDIR")
        folder = Path(log_dir)
    else:
        return _last_run()
    if not eventfile.files(folder):
        raise ConfigError(f"{folder} has no event log ({eventfile.NAME}): it is no run's log folder, or was swept")
    return folder


def _last_run() -> Path:
    """The log that was written to last, of one command or of a lasting pool."""
    base, pools = logs_folder(), poolfile.pools_folder()
    known = list(pools.iterdir()) if pools.is_dir() else []
    folders = [path for each in (base, *(pool / "logs" for pool in known)) if each.is_dir() for path in each.iterdir()]
    for pool in known:
        with contextlib.suppress(ConfigError):
            folders.append(Path(poolfile.read_spec(pool).log_dir))
    last = max(folders, key=_written_at_s, default=None)
    if last is None or not _written_at_s(last):
        raise ConfigError(f"no run has left an event log in {base} or in a pool of {pools}: run something first")
    return last


def _written_at_s(folder: Path) -> float:
    """When a log was last written to, in Unix time; 0 where there is none."""
    at_s = 0.0
    for path in eventfile.files(folder):
        with contextlib.suppress(OSError):  # it may be swept now
            at_s = max(at_s, path.stat().st_mtime)
    return at_s
