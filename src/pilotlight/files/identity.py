"""What a model's answers depend on: the commit of a hub model, or a digest over its folder's files.

A folder on another machine is the same model if its identity is.
"""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from pilotlight.files import modelfiles
from pilotlight.files.locks import CopyError

WHOLE_BYTES_MAX = 32 << 20
"""Files up to this size count with all of their content."""
SAMPLE_BYTES = 1 << 20
SAMPLES = 8
_DIGEST = "sha256:"


def content_digest(folder: Path) -> str:
    """`sha256:` and 32 hex digits over a folder's files: names, sizes and content. Raises OSError.

    Files up to 32 MiB count with all of their content; of larger ones (weights) the size and eight samples of 1 MiB,
    spread evenly from the first byte to the last. So a change inside a large file that keeps its size and misses
    the samples is not seen: give hub ids, or a folder of another name and content, where that could happen.
    """
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix in {".bin", ".pt", ".pth", ".md"}:
            continue
        status = path.stat()  # raises for a link whose target is gone: a part of the model is missing
        if not stat.S_ISREG(status.st_mode):
            continue
        size = status.st_size
        total.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE_BYTES_MAX:
                total.update(file.read())
                continue
            for sample in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                total.update(file.read(SAMPLE_BYTES))
    return f"{_DIGEST}{total.hexdigest()[:32]}"


def of_commit(name: str, commit: str) -> str:
    """The identity of a hub model."""
    return f"{name}@{commit}"


def places(model: str, identity: str) -> list[Path]:
    """Where a model may be on this machine: where it is said to be, and in this user's hub cache."""
    found = [Path(model)] if model else []
    name, at, commit = identity.rpartition("@")
    if at and name:
        from huggingface_hub import constants, file_download

        folder = file_download.repo_folder_name(repo_id=name, repo_type="model")
        found.append(Path(constants.HF_HUB_CACHE) / folder / "snapshots" / commit)
    return found


def is_at(path: Path, identity: str) -> bool:
    """Whether the model of that identity is there, whole as far as a glance tells. Other identities than a model's
    own say nothing of its files: then any are right."""
    try:
        if identity.startswith(_DIGEST) and path.is_dir():
            return content_digest(path) == identity
        _, at, commit = identity.rpartition("@")
        if at and path.is_dir() and path.parent.name == "snapshots":
            return path.name == commit and modelfiles.is_whole(path)
        return path.exists()
    except (OSError, CopyError):
        return False
