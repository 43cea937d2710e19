"""What a staged variant consists of: the manifest beside its view, as every worker of the machine reads it.

It is read from a folder that other processes write, so paths and digests are checked before any is followed.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from pilotlight.files.locks import CopyError

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
FILES_MAX = 500
"""A folder with more is no model's alone; each file in the making takes a descriptor."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VARIANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Entry(msgspec.Struct, frozen=True):
    """A file of a variant. took_s: how long it took to bring it here, whenever that was."""

    digest: Digest
    size: int
    took_s: float = 0.0


class Manifest(msgspec.Struct, frozen=True):
    """A variant's files by relative path. `single`: the model is one file, not a folder."""

    variant: str
    files: dict[str, Entry]
    single: bool = False

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.size for entry in self.files.values())

    @property
    def took_s(self) -> float:
        """How long it would take to bring all of it here again."""
        return sum(entry.took_s for entry in self.files.values())


def is_digest(text: str) -> bool:
    """Whether it names a file of the cache."""
    return _DIGEST.fullmatch(text) is not None


def is_variant(text: str) -> bool:
    """Whether it can name a folder of the cache."""
    return _VARIANT.fullmatch(text) is not None


def read(path: Path) -> Manifest | None:
    """A manifest; None where there is none that can be believed."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None
    return manifest if manifest.files and all(map(is_below, manifest.files)) else None


def check(listed: Manifest) -> None:
    """Raise `CopyError` for one that came from elsewhere and names what it must not."""
    for relative, entry in listed.files.items():
        if not is_below(relative) or not is_digest(entry.digest) or entry.size < 0:
            raise CopyError(f"it is said to have a file {relative!r:.80}, which can't be")
    if not listed.files or (listed.single and len(listed.files) > 1):
        raise CopyError("it is said to have no files, or too many")
    if len(listed.files) > FILES_MAX:
        raise CopyError(f"it is said to have more than {FILES_MAX:,} files")
    parents = {str(parent) for relative in listed.files for parent in PurePosixPath(relative).parents}
    if parents & listed.files.keys():
        raise CopyError("one of its files is said to be a folder too")
    if len({(entry.digest, entry.size) for entry in listed.files.values()}) > len(
        {e.digest for e in listed.files.values()}
    ):
        raise CopyError("one of its files is said to have two sizes")


def is_below(relative: str) -> bool:
    """Whether a path stays below the folder that it is relative to."""
    parts = PurePosixPath(relative).parts
    return bool(parts) and not relative.startswith("/") and ".." not in parts and "\0" not in relative
