"""A pool's folder: what its `pool.json` says, for all that are started with the folder's name."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pilotlight.core.errors import ConfigError
from pilotlight.wire import PoolSpec


def read_spec(pool: Path) -> PoolSpec:
    """What the pool's folder says of it. Raises `ConfigError`."""
    try:
        return msgspec.json.decode((pool / "pool.json").read_bytes(), type=PoolSpec)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{pool} is not a pool's folder: {error}") from error
