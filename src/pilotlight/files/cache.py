"""The machine's cache of model files ("staged"): one folder for all workers of a user, whatever pool they are of.

    files/ab/abcd…        content, named by its SHA-256, read-only
    variants/ID/          a variant: manifest.json, and model/ with links to files, which runtimes load from
    sources/KEY           the digest of a source that was read, by its device, inode, size and time of change
    partial/DIGEST.SIZE   what has come of a file from another machine (see `incoming`)
    tmp/                  what is being made; whoever makes it holds a lock on it, so what nobody locks is torn
    locks/                locks for making things

Every method may block for long and is to be called in a thread; `stop` makes all of them give up soon. What is in use
is locked (shared) by its users, and an eviction takes only what it can lock alone. See docs/decisions/residences.md.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pilotlight.core.story.words import bytes_text
from pilotlight.durable import sync_folder
from pilotlight.files import eviction, filecopy, incoming, manifest, modelfiles, place
from pilotlight.files.locks import CopyError, held, take, try_take
from pilotlight.files.manifest import Entry, Manifest
from pilotlight.files.modelfiles import Source
from pilotlight.files.progress import Progress

STRIPES = 256
"""Lock files for making things: two things that share one wait for each other without need, and nothing more."""
DISK_SHARE = 0.5
"""The part of the disk's room that the cache may fill unless told otherwise."""
DISK_RESERVE_BYTES = 256 << 20


@dataclass(slots=True)
class Staged:
    """A staged variant in use: nothing evicts it before `close`. path: what a runtime loads from."""

    path: Path
    bytes: int
    files: dict[str, Entry]
    _lock: int

    def close(self) -> None:
        """Let go. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class Cache:
    """See the module's text. limit_bytes: 0: half of what the disk has free beside the cache. read: how sources are
    read; clock: the time of day."""

    def __init__(
        self,
        root: Path,
        limit_bytes: int = 0,
        *,
        read: filecopy.Read = filecopy.read,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self.stop = threading.Event()
        self._limit_bytes = limit_bytes
        self._read = read
        self._clock = clock

    @property
    def name(self) -> str:
        """What tells this cache from every other, on whatever machine; made by whoever asks first. Raises
        `CopyError`."""
        path = self.root / "name"
        with self._explained():
            self._prepare()
            with contextlib.suppress(FileNotFoundError):
                return path.read_text()
            with self.temporary() as (fd, fresh):
                os.write(fd, secrets.token_hex(8).encode())
                try:
                    os.link(fresh, path)
                except FileExistsError:
                    pass  # another was first
                except OSError:
                    fresh.replace(path)  # a file system without hard links
            return path.read_text()

    # --- variants

    def make(self, variant_id: str, model: Path, progress: Progress | None = None) -> Staged:
        """Stage a variant whose files are in the folder `model` (or are that one file). Raises `CopyError`.

        Where another worker is at it, wait and find it done. progress: is told how far this one is.
        """
        progress = progress or Progress()
        with self._explained():
            self._prepare()
            with held(self._stripe("variant", variant_id), self.stop):
                found = self.find(variant_id)
                if found is not None:
                    return found
                sources = modelfiles.of(model)
                if not sources:
                    raise CopyError(f"{model} holds no file that could be copied")
                progress.expect({source.relative: source.size for source in sources})
                self._make_room(
                    sum(source.size for source in sources if not self._is_free(source, self._known(source)))
                )
                pins: list[int] = []
                try:
                    files = {source.relative: self._bring(source, pins, progress) for source in sources}
                    listed = Manifest(variant_id, files, single=not model.is_dir())
                    return self._staged(listed, self._publish(listed))
                finally:
                    for pin in pins:
                        os.close(pin)

    def fetch(self, listed: Manifest, pieces: incoming.Pieces, progress: Progress | None = None) -> Staged:
        """Stage a variant from elsewhere: what of its files is missing here is read by `pieces`. Raises `CopyError`.

        Where another worker is at it, wait and find it done. What has come when it fails is kept for the next try.
        progress: is told how far this one is, by digest.
        """
        progress = progress or Progress()

        def counted(digest: str, size: int, have: int) -> Iterator[bytes]:
            return progress.counting(digest, pieces(digest, size, have), have)

        with self._explained():
            self._prepare()
            manifest.check(listed)
            with held(self._stripe("variant", listed.variant), self.stop):
                found = self.find(listed.variant)
                if found is not None:
                    return found
                wanted = {entry.digest: entry.size for entry in listed.files.values()}
                progress.expect(wanted)
                for digest in wanted:
                    if self.file(digest).exists():
                        progress.here(digest)
                self._make_room(
                    sum(
                        size - incoming.there(incoming.partial(self.root, digest, size))
                        for digest, size in wanted.items()
                        if not self.file(digest).exists()
                    ),
                    going_on=wanted,
                )
                pins: list[int] = []
                try:
                    came = incoming.bring(self, wanted, counted, pins)
                    files = {name: came[entry.digest] for name, entry in listed.files.items()}
                    whole = msgspec.structs.replace(listed, files=files)
                    return self._staged(whole, self._publish(whole))
                finally:
                    for pin in pins:
                        os.close(pin)

    def find(self, variant_id: str) -> Staged | None:
        """A variant that is staged here, in use from now on; None where it is not. Raises `CopyError`."""
        with self._explained():
            path = self._manifest(variant_id)
            try:
                lock = take(path, self.stop, shared=True)
            except (FileNotFoundError, NotADirectoryError):
                return None
            listed = manifest.read(path)
            if listed is None or listed.variant != variant_id or not self._is_whole(path.parent / "model", listed):
                os.close(lock)
                self.discard(variant_id)
                return None
            with contextlib.suppress(OSError):
                os.utime(path, (self._clock(), self._clock()))
            return self._staged(listed, lock)

    def _staged(self, listed: Manifest, lock: int) -> Staged:
        view = self.root / "variants" / listed.variant / "model"
        model = view / next(iter(listed.files)) if listed.single else view
        return Staged(model, listed.bytes, dict(listed.files), lock)

    def has(self, variant_id: str) -> bool:
        """Whether a variant is staged, as far as a glance tells."""
        return self._manifest(variant_id).exists()

    def drop(self, variant_id: str) -> bool:
        """Remove a variant, and its files where no other needs them. False: somebody uses it, and it stays."""
        with self._explained():
            gone = self.discard(variant_id)
            if gone and self.root.exists():
                self._prepare()
                with held(self._lock_path("collect"), self.stop):
                    eviction.sweep(self)
            return gone

    # --- digests

    def digest(self, source: Source) -> str:
        """The SHA-256 of a source, which is read at most once on this machine. Raises `CopyError`."""
        known = self._known(source)
        if known is not None:
            return known.digest
        began = time.monotonic()
        with self._explained():
            digest = filecopy.digest_of(source, self.stop, self._read)
        with contextlib.suppress(OSError):
            self._prepare()
            self._remember(source, Entry(digest, source.size, time.monotonic() - began))
        return digest

    def _known(self, source: Source) -> Entry | None:
        try:
            return msgspec.json.decode((self.root / "sources" / source.key).read_bytes(), type=Entry)
        except (OSError, msgspec.MsgspecError):
            return None

    def _remember(self, source: Source, entry: Entry) -> None:
        if not source.settled(self._clock()):
            return
        with self.temporary() as (fd, path):
            os.write(fd, msgspec.json.encode(entry))
            path.replace(self.root / "sources" / source.key)

    # --- one file

    def _bring(self, source: Source, pins: list[int], progress: Progress) -> Entry:
        """Have a source's content in the cache, and keep it there by a pin."""
        with held(self._stripe("file", source.key), self.stop):
            known = self._known(source)
            while True:
                pin = self.pin(known.digest, source.size) if known is not None else None
                if known is not None and pin is not None:
                    pins.append(pin)
                    progress.here(source.relative)
                    return known
                began = time.monotonic()
                digest = self._copy(source, known.digest if known is not None else None, progress)
                known = Entry(digest, source.size, time.monotonic() - began)
                self._remember(source, known)

    def pin(self, digest: str, size: int) -> int | None:
        """A lock that keeps content here until it is closed; None where it is not here, or not whole. Raises
        `CopyError`, OSError."""
        path = self.file(digest)
        try:
            fd = take(path, self.stop, shared=True)
        except FileNotFoundError:
            path.unlink(missing_ok=True)  # a link to the hub's cache, from which it went
            return None
        if os.fstat(fd).st_size == size:
            return fd
        os.close(fd)  # not what was put there: somebody else's hand, or a disk that lost it
        path.unlink(missing_ok=True)
        return None

    def _copy(self, source: Source, known: str | None, progress: Progress) -> str:
        def read(fd: int) -> Iterator[memoryview]:
            return progress.counting(source.relative, self._read(fd))

        blob = source.hub_blob
        if blob is not None and self._is_free(source, None):
            digest = known or filecopy.digest_of(source, self.stop, read)
            if self._link(blob, digest) or self._refer(blob, digest):
                return digest
        with self.temporary() as (fd, path):
            digest = filecopy.copy(source, fd, self.stop, known, read)
            os.fchmod(fd, 0o444)
            os.fsync(fd)
            self.admit(path, digest)
        return digest

    def admit(self, path: Path, digest: str) -> None:
        """Give a file of the cache, whose content has that digest, its place. Raises OSError."""
        if not self._link(path, digest):
            path.replace(self.file(digest))  # a file system without hard links

    def _link(self, path: Path, digest: str) -> bool:
        target = self.file(digest)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except FileExistsError:
            return True
        except OSError as error:
            if error.errno in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}:
                return False
            raise
        sync_folder(target.parent)
        return True

    def _refer(self, path: Path, digest: str) -> bool:
        """Let content stay on another disk of this machine, and name it here. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self.file(digest).symlink_to(path)
        return True

    def _is_free(self, source: Source, known: Entry | None) -> bool:
        """Whether it takes no room: it is here, or in a hub's cache on a disk of this machine, to which a link will
        do."""
        if known is not None and self.file(known.digest).exists():
            return True
        blob = source.hub_blob
        return blob is not None and (source.device == self.root.stat().st_dev or place.is_local(blob))

    def _is_whole(self, view: Path, listed: Manifest) -> bool:
        """Whether a variant's links lead to files of the cache that have the size which they should have."""
        try:
            return all(
                (view / name).samefile(self.file(entry.digest)) and (view / name).stat().st_size == entry.size
                for name, entry in listed.files.items()
            )
        except OSError:
            return False

    # --- making and removing views

    def _publish(self, listed: Manifest) -> int:
        """Put a view in its place; returns a lock that keeps it from being evicted."""
        folder = self._fresh()
        lock = use = -1
        try:
            while lock < 0:
                folder.mkdir(mode=0o700)
                with contextlib.suppress(FileNotFoundError):  # swept before it was locked
                    lock = take(folder, self.stop)
            for relative, entry in listed.files.items():
                assert manifest.is_below(relative)
                link = folder / "model" / relative
                link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                depth = len(link.relative_to(folder).parts)
                link.symlink_to("../" * (depth + 1) + f"files/{entry.digest[:2]}/{entry.digest}")
            with (folder / "manifest.json").open("wb") as file:
                file.write(msgspec.json.encode(listed))
                file.flush()
                os.fsync(file.fileno())
            use = take(folder / "manifest.json", self.stop, shared=True)
            with held(self._lock_path("collect"), self.stop, shared=True):
                folder.rename(self.root / "variants" / listed.variant)
            sync_folder(self.root / "variants")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            if use >= 0:
                os.close(use)
            raise
        finally:
            if lock >= 0:
                os.close(lock)
        return use

    def discard(self, variant_id: str) -> bool:
        """Remove a view, unless it is in use; its files stay. True when it is not there (any more). Raises OSError."""
        path = self._manifest(variant_id)
        try:
            lock = try_take(path)
        except (FileNotFoundError, NotADirectoryError):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path.parent)
            return True
        if lock is None:
            return False
        try:
            out = self._fresh()
            path.parent.rename(out)
            shutil.rmtree(out, ignore_errors=True)
        finally:
            os.close(lock)
        return True

    # --- room

    def _make_room(self, need: int, going_on: Collection[str] = ()) -> None:
        with held(self._lock_path("collect"), self.stop):
            eviction.sweep_torn(self, self._clock())
            room, text = self.room()
            if room < need:
                eviction.evict(self, need, self._clock(), going_on)
                room, text = self.room()
        if room < need:
            raise CopyError(f"it needs {bytes_text(need)} and {text}")

    def room(self) -> tuple[int, str]:
        """Bytes that may come in, and a clause that says so."""
        disk = os.statvfs(self.root)
        free = disk.f_bavail * disk.f_frsize - DISK_RESERVE_BYTES
        used = sum(eviction.own_bytes(path) for path in (*self.files(), *incoming.partials(self.root)))
        limit = self._limit_bytes or int((free + used) * DISK_SHARE)
        if limit - used <= free:
            text = f"the cache {self.root} may hold {bytes_text(limit)}, of which {bytes_text(used)} are in use"
        else:
            text = f"the disk of {self.root} has {bytes_text(max(free, 0))} to spare"
        return min(limit - used, free), text

    # --- places

    def file(self, digest: str) -> Path:
        """Where content of that digest is, or would be."""
        assert manifest.is_digest(digest)
        return self.root / "files" / digest[:2] / digest

    def files(self) -> Iterator[Path]:
        """All content that is here."""
        return (path for path in (self.root / "files").glob("??/*") if manifest.is_digest(path.name))

    def views(self) -> Iterator[tuple[str, Manifest, float]]:
        """All staged variants: id, manifest, and when it was last used."""
        for path in (self.root / "variants").glob("*/manifest.json"):
            listed = manifest.read(path)
            with contextlib.suppress(FileNotFoundError):
                if listed is not None and manifest.is_variant(path.parent.name):
                    yield path.parent.name, listed, path.stat().st_mtime

    @contextlib.contextmanager
    def temporary(self) -> Generator[tuple[int, Path]]:
        """A new file in the cache that is gone after this block, unless it was moved away. Nobody takes it for torn."""
        path = self._fresh()
        fd = take(path, self.stop, create=True)
        try:
            yield fd, path
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    def _fresh(self) -> Path:
        return self.root / "tmp" / secrets.token_hex(8)

    def _manifest(self, variant_id: str) -> Path:
        if not manifest.is_variant(variant_id):
            raise CopyError(f"{variant_id!r} can't name a folder")
        return self.root / "variants" / variant_id / "manifest.json"

    def _lock_path(self, name: str) -> Path:
        return self.root / "locks" / name

    def _stripe(self, kind: str, name: str) -> Path:
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % STRIPES
        return self._lock_path(f"{kind}-{number:02x}")

    def _prepare(self) -> None:
        for name in ("files", "variants", "sources", "partial", "tmp", "locks"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in filecopy.FULL:
                raise CopyError(f"the disk of {self.root} is full") from error
            raise CopyError(modelfiles.unreadable(error, self.root)) from error
