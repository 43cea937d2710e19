"""Which files make up a model, and how they are told apart: what is worth copying from a model's folder.

A source is known by device, inode, size and time of change, so that what was read once need not be read again.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pilotlight.files.locks import CopyError
from pilotlight.files.manifest import FILES_MAX

WEIGHTS = frozenset({".safetensors", ".gguf"})
NEEDLESS = frozenset({".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".onnx", ".md", ".png", ".jpg", ".pdf"})
"""Other forms of the same weights, which no runtime of ours reads, and what only people read."""
COPIES = frozenset({"original", "onnx", "openvino", "coreml", "metal", "__pycache__"})
"""Folders with the same weights once more."""
SKIPPED = (".", "checkpoint-")
"""How folders begin that hold no part of the model: hidden ones, and what training left behind."""
HUB_BLOB_NAME_LENGTHS = frozenset({40, 64})


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a model: its path below the model's folder, where it is, and what it was when it was looked at."""

    relative: str
    path: Path
    device: int
    inode: int
    size: int
    mtime_ns: int

    @property
    def key(self) -> str:
        """A name for this very content, as far as the system tells."""
        return f"{self.device:x}-{self.inode:x}-{self.size:x}-{self.mtime_ns:x}"

    def settled(self, now: float) -> bool:
        """Whether a change from now on (a time of day) would show: clocks of file systems tick, some once a second."""
        tick_s = 1.0 if self.mtime_ns % 1_000_000_000 == 0 else 0.02
        return now - self.mtime_ns / 1e9 > 2 * tick_s

    @property
    def is_weights(self) -> bool:
        """Whether it is what is worth holding in memory."""
        return self.path.suffix in WEIGHTS or Path(self.relative).suffix in WEIGHTS

    def same(self, status: os.stat_result) -> bool:
        """Whether a later look saw the same."""
        return (self.device, self.inode, self.size, self.mtime_ns) == (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
        )

    @property
    def hub_blob(self) -> Path | None:
        """The file in a Hugging Face hub cache that this is a link to. Those are never changed once they are there."""
        target = Path(os.path.realpath(self.path))
        if not self.path.is_symlink() or target.parent.name != "blobs" or target == self.path:
            return None
        return target if len(target.name) in HUB_BLOB_NAME_LENGTHS else None


def of(model: Path) -> list[Source]:
    """The files of a model's folder (or the one file that is the model), by name. Raises `CopyError`."""
    try:
        if not model.is_dir():
            return [_source(model, model.name)]
        found: list[Source] = []
        for folder, names, files in os.walk(model, onerror=_raise):
            names[:] = sorted(name for name in names if name not in COPIES and not name.startswith(SKIPPED))
            for name in sorted(files):
                path = Path(folder) / name
                if name.startswith(".") or path.suffix in NEEDLESS:
                    continue
                if stat.S_ISREG(path.stat().st_mode):
                    found.append(_source(path, str(path.relative_to(model))))
                if len(found) > FILES_MAX:
                    raise CopyError(f"{model} holds more than {FILES_MAX:,} files")
    except OSError as error:
        raise CopyError(unreadable(error, model)) from error
    used = _used_weights(model, [source.relative for source in found])
    return [source for source in found if used is None or not _is_top_safetensors(source) or source.relative in used]


def is_whole(model: Path) -> bool:
    """Whether a model's folder has a configuration and all the weights that it names. Raises `CopyError`."""
    names = {source.relative for source in of(model)}
    weights = {name for name in names if Path(name).suffix in WEIGHTS}
    return "config.json" in names and bool(weights) and (_used_weights(model, sorted(names)) or set()) <= names


def unreadable(error: OSError, path: Path) -> str:
    """What the system says of a file, as a clause."""
    return f"{error.filename or path} can't be read: {error.strerror or error}"


def _is_top_safetensors(source: Source) -> bool:
    return "/" not in source.relative and source.relative.endswith(".safetensors")


def _used_weights(model: Path, names: list[str]) -> set[str] | None:
    """Of weights beside config.json, those that are loaded: as the index says, else as they are usually called."""
    try:
        index = msgspec.json.decode((model / "model.safetensors.index.json").read_bytes(), type=_Index)
    except FileNotFoundError:
        usual = {name for name in names if name.startswith("model") and name.endswith(".safetensors")}
        return usual or None
    except (OSError, msgspec.MsgspecError):
        return None
    return set(index.weight_map.values())


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _source(path: Path, relative: str) -> Source:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CopyError(f"{path} is no plain file")
    return Source(relative, path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error
