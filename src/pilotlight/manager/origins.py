"""Models behind a URL: fetched into the machine's cache, once for each content that the URL ever had.

    origins/blobs/SHA256          content, as files of the cache are named; the cache links to it instead of copying
    origins/models/KEY/           a model: links to its content. KEY tells the URL and what its server says of its files
    origins/partial/KEY           what has come of a file so far

fsspec speaks to the servers (http and https, s3 with the extra `s3`, and whatever else is installed). It alone sees
credentials; they stay in this process.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pilotlight.core.errors import MissingExtra, ModelNotFound
from pilotlight.durable import sync_folder
from pilotlight.files import locks, manifest, modelfiles

PIECE_BYTES = 16 << 20
FILES_AT_ONCE = 4
TRIES = 5
"""A server is given up after so many tries of one piece."""
AGAIN_S = 0.5
CONNECT_S, SILENCE_S = 10.0, 30.0
USUAL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model.safetensors",
)
"""What to ask for where a server lists nothing."""
EXTRAS = {"s3": "s3", "s3a": "s3"}
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")
_FETCHED = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken")


@dataclass(frozen=True, slots=True)
class _Remote:
    """A file as its server describes it: where it is, its path below the model, size, and what changes with it."""

    path: str
    relative: str
    size: int
    state: str


def is_url(model: str) -> bool:
    """Whether it names a model by a URL."""
    scheme, found, rest = model.partition("://")
    return bool(found and rest) and scheme.isascii() and scheme.replace("+", "").isalnum()


def fetch(url: str, cache: Path, *, with_code: bool = False) -> Path:
    """The folder of a URL's model, which is fetched unless it is here. Blocks; where a fetch was cut, the next goes on.

    with_code: with its Python files. Raises `ModelNotFound`, and `MissingExtra` where it takes a library that is not
    installed.
    """
    shown, wanted = shown_as(url), (*_FETCHED, ".py") if with_code else _FETCHED
    try:
        filesystem, root = _open(url)
        remotes = _listed(filesystem, root, wanted)
    except (MissingExtra, ModelNotFound):
        raise
    except Exception as error:  # each kind of server has errors of its own
        raise ModelNotFound(f"{shown} can't be listed: {_reason(error)}") from error
    if not any(remote.relative == "config.json" for remote in remotes):
        raise ModelNotFound(f"{shown} is no model: it has no config.json")
    store = _Store(cache / "origins", filesystem)
    try:
        return store.model(root, remotes)
    except ModelNotFound as error:
        raise ModelNotFound(f"{shown} can't be fetched: {error}") from error
    except OSError as error:
        raise ModelNotFound(f"{shown} can't be kept in {cache}: {error.strerror or error}") from error


def _open(url: str) -> tuple[Any, str]:
    core: Any = importlib.import_module("fsspec.core")
    scheme = url.partition("://")[0]
    options: dict[str, Any] = {}
    if scheme in {"http", "https"}:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    try:
        filesystem, root = core.url_to_fs(url, **options)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        how = f"pip install 'pilotlight[{extra}]'" if extra else str(error)
        raise MissingExtra(f"models at {scheme}:// need another library: {how}") from error
    except ValueError as error:
        raise ModelNotFound(f"nothing here knows how to read {scheme}:// ({error})") from error
    return filesystem, str(root)


def _listed(filesystem: Any, root: str, wanted: tuple[str, ...]) -> list[_Remote]:
    """The files of a model, by name."""
    root = root.rstrip("/")
    found: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, NotImplementedError):
        found = filesystem.find(root, detail=True)
    if not any(str(path).endswith("/config.json") for path in found):
        for name in USUAL:
            with contextlib.suppress(FileNotFoundError):
                found[f"{root}/{name}"] = filesystem.info(f"{root}/{name}")
        found |= _shards(filesystem, root) if f"{root}/model.safetensors.index.json" in found else {}
    remotes: list[_Remote] = []
    for path, seen in sorted(found.items()):
        relative = path[len(root) + 1 :] if path.startswith(f"{root}/") else ""
        parts = PurePosixPath(relative).parts
        hidden = any(part in modelfiles.COPIES or part.startswith(modelfiles.SKIPPED) for part in parts)
        if hidden or not relative.endswith(wanted) or not manifest.is_below(relative) or "?" in relative:
            continue
        about = seen if seen.get("size") is not None and _state(seen) else filesystem.info(path)
        if about.get("size") is None:
            raise ModelNotFound(f"its server does not say how large {relative} is")
        remotes.append(_Remote(path, relative, int(about["size"]), _state(about)))
    if len(remotes) > manifest.FILES_MAX:
        raise ModelNotFound(f"it holds more than {manifest.FILES_MAX:,} files")
    return remotes


def _shards(filesystem: Any, root: str) -> dict[str, Any]:
    import msgspec

    index = msgspec.json.decode(filesystem.cat_file(f"{root}/model.safetensors.index.json"))
    names = {str(name) for name in index.get("weight_map", {}).values()}
    return {f"{root}/{name}": filesystem.info(f"{root}/{name}") for name in sorted(names) if manifest.is_below(name)}


def _state(about: Any) -> str:
    """What changes when a file does, as far as its server tells."""
    names = ("ETag", "etag", "LastModified", "last_modified", "mtime", "md5", "checksum")
    return "|".join(f"{about[name]}" for name in names if about.get(name))


class _Store:
    """What was fetched, on this machine's disk."""

    def __init__(self, root: Path, filesystem: Any) -> None:
        self._root = root
        self._filesystem = filesystem
        for name in ("blobs", "models", "partial", "locks"):
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def model(self, url: str, remotes: list[_Remote]) -> Path:
        """A model's folder, whose files are fetched where they are not here. Raises `ModelNotFound`, OSError."""
        facts = "\n".join(f"{remote.relative}\0{remote.size}\0{remote.state}" for remote in remotes)
        key = hashlib.sha256(f"{url}\n{facts}".encode()).hexdigest()[:32]
        folder = self._root / "models" / key / (PurePosixPath(url).name or "model")
        if folder.is_dir():
            return folder
        with locks.held(self._root / "locks" / key, threading.Event()):
            if folder.is_dir():
                return folder
            with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="origin") as threads:
                names = [f"{key}.{remote.relative}" for remote in remotes]
                blobs = list(threads.map(self._blob, names, remotes))
            fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
            sync_folder(self._root / "blobs")
            for remote, blob in zip(remotes, blobs, strict=True):
                link = fresh / remote.relative
                link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(os.path.relpath(blob, link.parent))
            fresh.rename(folder)
            sync_folder(folder.parent)
        return folder

    def _blob(self, name: str, remote: _Remote) -> Path:
        """A file's content, by its digest."""
        partial = self._root / "partial" / hashlib.sha256(name.encode()).hexdigest()[:32]
        total = hashlib.sha256()
        with partial.open("a+b") as file:
            file.seek(0)
            while piece := file.read(PIECE_BYTES):
                total.update(piece)
            have = file.tell()
            if have > remote.size:  # of something else
                file.truncate(0)
                have, total = 0, hashlib.sha256()
            for piece in self._pieces(remote, have):
                file.write(piece)
                total.update(piece)
            file.flush()
            os.fsync(file.fileno())
        blob = self._root / "blobs" / total.hexdigest()
        partial.replace(blob)
        blob.chmod(0o444)  # not before: a crash would leave a partial file that can't be opened again
        return blob

    def _pieces(self, remote: _Remote, have: int) -> Iterator[bytes]:
        tries = 0
        while have < remote.size:
            until = min(have + PIECE_BYTES, remote.size)
            try:
                piece = self._filesystem.cat_file(remote.path, start=have, end=until)
            except Exception as error:
                tries += 1
                if tries >= TRIES or isinstance(error, FileNotFoundError | PermissionError):
                    raise ModelNotFound(f"{remote.relative}: {_reason(error)}") from error
                time.sleep(AGAIN_S * tries)
                continue
            if len(piece) == remote.size:  # a server that knows no ranges sends it all
                piece, until = piece[have:], remote.size
            if len(piece) != until - have:
                raise ModelNotFound(f"{remote.relative} changed while it was fetched")
            tries, have = 0, until
            yield piece


def _reason(error: Exception) -> str:
    text = _URL.sub(lambda url: shown_as(url[0]), str(error).strip()).splitlines()
    return text[0][:200] if text else type(error).__name__


def shown_as(url: str) -> str:
    """A URL as anybody may see it: without a user's name and password, and without a query."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
