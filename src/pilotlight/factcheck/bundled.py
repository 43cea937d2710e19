"""Where the bundled model and claims are. They come with the package; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from pilotlight.core.errors import ConfigError

_ASSETS = Path(__file__).parent / "assets"


def model_folder() -> Path:
    """The tiny verifier: trained on claims that the project itself made up; see its README.md."""
    return _there(_ASSETS / "tiny-verifier", "config.json")


def claims_file() -> Path:
    """3,000 claims with evidence and labels."""
    return _there(_ASSETS / "claims.jsonl", "")


def _there(path: Path, inner: str) -> Path:
    if not (path / inner).exists():
        message = f"the bundled {path.name} is missing from this installation ({path}); in a checkout, run `make model`"
        raise ConfigError(message)
    return path
