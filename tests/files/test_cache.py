"""The machine's cache of model files: shared by processes, clean after a crash, within its limit, and never fooled."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from pilotlight.files import filecopy, manifest, modelfiles
from pilotlight.files.cache import Cache
from pilotlight.files.locks import CopyError, take
from pilotlight.files.manifest import Entry, Manifest

MB = 1 << 20
LONG_AGO = 1e9


def model(folder: Path, *, weights: bytes = b"w" * 1000, config: bytes = b"{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(weights)
    for path in folder.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


class Reads:
    """A way to read sources that counts, and does something at the first piece."""

    def __init__(self, at_first: Callable[[], object] | None = None) -> None:
        self.count = 0
        self.at_first = at_first

    def __call__(self, fd: int) -> Iterator[memoryview]:
        self.count += 1
        for piece in filecopy.read(fd):
            yield piece
            if self.at_first is not None:
                self.at_first()


def stage(cache: Cache, name: str, folder: Path) -> Path:
    staged = cache.make(name, folder)
    staged.close()
    return staged.path


def leftovers(cache: Cache) -> list[Path]:
    return list((cache.root / "tmp").iterdir())


def test_a_staged_variant_has_the_files_of_the_model(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", weights=os.urandom(3 * MB))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "merges.txt").write_text("a b")
    (folder / "pytorch_model.bin").write_bytes(b"needless")
    (folder / "consolidated.safetensors").write_bytes(b"the same once more")
    (folder / ".hidden").write_bytes(b"needless")
    (folder / "checkpoint-100").mkdir()
    (folder / "checkpoint-100" / "model.safetensors").write_bytes(b"from a training")
    os.mkfifo(folder / "pipe")
    cache = Cache(tmp_path / "cache")
    path = stage(cache, "v", folder)
    found = {str(p.relative_to(path)): p for p in path.rglob("*") if p.is_file()}
    assert sorted(found) == ["config.json", "model.safetensors", "tokenizer/merges.txt"]
    for name, copy in found.items():
        assert copy.read_bytes() == (folder / name).read_bytes()
        blob = copy.resolve()
        assert blob.name == hashlib.sha256(copy.read_bytes()).hexdigest()
        assert blob.is_relative_to(cache.root)
        assert blob.stat().st_mode & 0o777 == 0o444
    assert leftovers(cache) == []


def test_a_model_may_be_one_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    cache = Cache(tmp_path / "cache")
    path = stage(cache, "v", tmp_path / "tiny.gguf")
    assert (path.name, path.read_bytes()) == ("tiny.gguf", b"GGUF")


def test_the_index_names_the_weights(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    for name in ("a.safetensors", "b.safetensors", "model-copy.safetensors"):
        (folder / name).write_bytes(b"w")
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_bytes(msgspec.json.encode(index))
    weights = [source.relative for source in modelfiles.of(folder) if source.is_weights]
    assert weights == ["a.safetensors", "b.safetensors"]


def test_a_later_start_reads_nothing_again(tmp_path: Path) -> None:
    folder, reads = model(tmp_path / "m"), Reads()
    first = stage(Cache(tmp_path / "cache", read=reads), "v", folder)
    assert reads.count == 2, "each source is read once, to copy and to hash it"
    again = Cache(tmp_path / "cache", read=reads)
    assert stage(again, "v", folder) == first
    assert stage(again, "other-options", folder) != first
    for source in modelfiles.of(folder):
        again.digest(source)
    assert reads.count == 2


def test_variants_share_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    one = stage(cache, "one", model(tmp_path / "a"))
    two = stage(cache, "two", model(tmp_path / "b", config=b'{"other": 1}'))
    assert (one / "model.safetensors").samefile(two / "model.safetensors")
    assert cache.drop("one")
    assert (two / "model.safetensors").read_bytes() == b"w" * 1000
    assert len(list(cache.files())) == 2, "only what nobody needs has gone"


def hub(root: Path) -> tuple[Path, Path]:
    """A snapshot in a hub's cache, and the blob of its weights."""
    blobs, snapshot = root / "hub" / "blobs", root / "hub" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"w" * 5000)):
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot, blob


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another disk of this machine."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.mark.parametrize("disk", ["the same", "another"])
def test_a_file_of_the_hub_s_cache_is_used_in_place_and_keeps_its_mode(
    tmp_path: Path, disk: str, request: pytest.FixtureRequest
) -> None:
    snapshot, blob = hub(tmp_path if disk == "the same" else request.getfixturevalue("elsewhere"))
    mode = blob.stat().st_mode
    cache = Cache(tmp_path / "cache", limit_bytes=10)
    path = stage(cache, "v", snapshot)
    assert (path / "model.safetensors").samefile(blob), "no bytes were copied, and none count"
    assert blob.stat().st_mode == mode
    assert cache.room()[0] == 10
    assert cache.drop("v")
    assert list(cache.files()) == []
    assert blob.read_bytes() == b"w" * 5000, "it is the hub's"


def test_what_went_from_the_hub_s_cache_is_staged_anew(tmp_path: Path, elsewhere: Path) -> None:
    snapshot, blob = hub(elsewhere)
    cache = Cache(tmp_path / "cache")
    stage(cache, "v", snapshot)
    content = blob.read_bytes()
    blob.unlink()
    assert cache.find("v") is None
    again = stage(cache, "v", model(tmp_path / "m", weights=content))
    blob.write_bytes(content)
    assert (again / "model.safetensors").read_bytes() == content
    assert not (again / "model.safetensors").samefile(blob)


@pytest.mark.parametrize("change", [b"x" * 1000, b"longer" * 1000])
def test_a_source_that_changes_meanwhile_is_not_kept(tmp_path: Path, change: bytes) -> None:
    folder = model(tmp_path / "m")
    reads = Reads(lambda: (folder / "model.safetensors").write_bytes(change))
    cache = Cache(tmp_path / "cache", read=reads)
    with pytest.raises(CopyError, match=r"model\.safetensors changed while it was copied"):
        cache.make("v", folder)
    assert cache.find("v") is None
    assert leftovers(cache) == []
    reads.at_first = None
    assert (stage(cache, "v", folder) / "model.safetensors").read_bytes() == change


def test_a_changed_source_is_another_file(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    cache = Cache(tmp_path / "cache")
    stage(cache, "before", folder)
    (folder / "model.safetensors").write_bytes(b"n" * 1000)
    assert (stage(cache, "after", folder) / "model.safetensors").read_bytes() == b"n" * 1000


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path) -> None:
    folder, reads = model(tmp_path / "m"), Reads()
    (folder / "config.json").write_bytes(b"[]")
    now = (folder / "config.json").stat().st_mtime
    cache = Cache(tmp_path / "cache", read=reads, clock=lambda: now)
    stage(cache, "v", folder)
    stage(cache, "w", folder)
    assert reads.count == 3, "another change within the same tick of the clock would look the same"


def test_a_second_variant_of_the_same_files_needs_no_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=MB + MB // 2)
    folder = model(tmp_path / "m", weights=b"w" * MB)
    first = cache.make("v", folder)
    stage(cache, "w", folder)
    assert {name for name, _, _ in cache.views()} == {"v", "w"}
    first.close()


def test_what_can_t_be_read_or_written_is_said(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(CopyError, match="nowhere can't be read: No such file"):
        cache.make("v", tmp_path / "nowhere")
    folder = model(tmp_path / "m")
    (folder / "vocab.json").symlink_to(tmp_path / "gone")
    with pytest.raises(CopyError, match=r"vocab\.json can't be read: No such file"):
        cache.make("v", folder)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CopyError, match="Not a directory"):
        Cache(tmp_path / "file" / "cache").make("v", model(tmp_path / "n"))


def test_a_worker_that_ends_gives_up_its_copies(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.stop.set()
    with pytest.raises(CopyError, match="this worker ends"):
        cache.make("v", model(tmp_path / "m"))
    assert leftovers(cache) == []


def test_a_clone_is_read_once_and_a_known_one_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(fd: int, target: int) -> bool:  # as a file system with reflinks does
        os.sendfile(target, fd, 0, os.fstat(fd).st_size)
        return True

    monkeypatch.setattr(filecopy, "clone", clone)
    folder, reads = model(tmp_path / "m"), Reads()
    cache = Cache(tmp_path / "cache", read=reads)
    assert (stage(cache, "v", folder) / "model.safetensors").read_bytes() == b"w" * 1000
    assert reads.count == 2
    for path in list(cache.files()):
        path.unlink()
    assert (stage(cache, "v", folder) / "model.safetensors").read_bytes() == b"w" * 1000
    assert reads.count == 2


def test_a_folder_of_everything_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    for number in range(modelfiles.FILES_MAX):
        (folder / f"{number}.json").touch()
    with pytest.raises(CopyError, match="holds more than 500 files"):
        Cache(tmp_path / "cache").make("v", folder)


# --- several processes

STAGE = """
import sys, pathlib
from pilotlight.files import filecopy
from pilotlight.files.cache import Cache

def read(fd):
    for piece in filecopy.read(fd):
        print("read", flush=True)
        yield piece
        if sys.argv[3] == "wait":
            sys.stdin.readline()

staged = Cache(pathlib.Path(sys.argv[1]), read=read).make("v", pathlib.Path(sys.argv[2]))
print("staged", staged.path, flush=True)
sys.stdin.readline()
"""


def start(cache: Cache, folder: Path, how: str = "go") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, str(cache.root), str(folder), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_make_one_copy(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    cache = Cache(tmp_path / "cache")
    with start(cache, folder, "wait") as first:
        assert said(first) == "read"
        with start(cache, folder) as second:
            assert first.stdin is not None
            first.stdin.write("\n" * 2)
            first.stdin.flush()
            assert said(first) == "read"
            path = said(first)
            assert path.startswith("staged")
            assert said(second) == path, "it waited, read nothing, and found it"
            second.communicate("\n")
        first.communicate("\n")
    assert len(list(cache.files())) == 2


def test_a_copy_that_was_killed_leaves_nothing_and_stops_nobody(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", weights=os.urandom(2 * filecopy.CHUNK_BYTES))
    cache = Cache(tmp_path / "cache")
    with start(cache, folder, "wait") as process:
        assert said(process) == "read"
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert said(process) == "read", "it is in the middle of the weights"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert len(leftovers(cache)) == 1, "a torn copy"
    assert cache.find("v") is None
    assert (stage(cache, "v", folder) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert leftovers(cache) == []


def test_a_copy_in_the_making_is_not_swept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    folder = model(tmp_path / "m")
    with start(cache, folder, "wait") as process:
        assert said(process) == "read"
        (made,) = leftovers(cache)
        stage(cache, "other", model(tmp_path / "n", weights=b"n" * 10))
        assert leftovers(cache) == [made]
        process.communicate("\n\n\n")
        assert process.returncode == 0


# --- the limit


def test_the_cheapest_to_bring_back_leaves_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=3 * MB, clock=lambda: 1000.0)
    for name in ("slow", "quick", "old"):
        stage(cache, name, model(tmp_path / name, weights=name.encode() * (900_000 // len(name)), config=name.encode()))
    _rewrite(cache, slow=(60.0, 990.0), quick=(1.0, 990.0), old=(10.0, 10.0))
    stage(cache, "new", model(tmp_path / "new", weights=b"1" * MB))
    assert {name for name, _, _ in cache.views()} == {"slow", "quick", "new"}, "10 s and idle for long goes before 1 s"
    _rewrite(cache, slow=(60.0, 990.0), quick=(1.0, 990.0), new=(30.0, 999.0))
    stage(cache, "newer", model(tmp_path / "newer", weights=b"2" * MB))
    assert {name for name, _, _ in cache.views()} == {"slow", "new", "newer"}
    assert sum(path.stat().st_size for path in cache.files()) <= 3 * MB
    assert cache.find("quick") is None


def _rewrite(cache: Cache, **costs: tuple[float, float]) -> None:
    """As if a variant's files had taken so long, and been used last at that time."""
    for name, listed, _ in list(cache.views()):
        took_s, used_at = costs[name]
        files = {f: Entry(e.digest, e.size, took_s / len(listed.files)) for f, e in listed.files.items()}
        path = cache.root / "variants" / name / "manifest.json"
        path.write_bytes(msgspec.json.encode(Manifest(name, files)))
        os.utime(path, (used_at, used_at))


def test_what_is_in_use_is_never_evicted(tmp_path: Path) -> None:
    cache, other = (Cache(tmp_path / "cache", limit_bytes=2 * MB) for _ in range(2))
    used = cache.make("used", model(tmp_path / "a", weights=b"a" * MB))
    with pytest.raises(CopyError, match=r"needs 2 MB and the cache .* may hold 2 MB"):
        other.make("more", model(tmp_path / "b", weights=b"b" * (MB + MB // 2)))
    assert not other.drop("used")
    assert (used.path / "model.safetensors").read_bytes() == b"a" * MB
    used.close()
    stage(other, "more", tmp_path / "b")
    assert cache.find("used") is None


def test_what_is_being_staged_is_never_evicted(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    first = Cache(root, limit_bytes=10 * MB)
    stage(first, "warm-up", model(tmp_path / "w", weights=b"0", config=b"0"))
    folder = model(tmp_path / "m", weights=b"m" * MB)
    with start(first, folder, "wait") as process:
        assert said(process) == "read"
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert said(process) == "read", "its first file is in place, and no variant lists it yet"
        small = Cache(root, limit_bytes=1)
        with pytest.raises(CopyError):
            small.make("n", model(tmp_path / "n", weights=b"n"))
        process.communicate("\n\n")
        assert process.returncode == 0
    found = first.find("v")
    assert found is not None
    assert (found.path / "config.json").read_bytes() == b"{}"
    found.close()


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*real[:3], 1, 1, *real[5:])))
    with pytest.raises(CopyError, match=r"the disk of .*cache has 0 B to spare"):
        Cache(tmp_path / "cache").make("v", model(tmp_path / "m"))


# --- what lies there is not believed blindly


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble", "relink"])
def test_a_damaged_variant_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = model(tmp_path / "m")
    cache = Cache(tmp_path / "cache")
    path = stage(cache, "v", folder) / "model.safetensors"
    blob = path.resolve()
    match damage:
        case "truncate":
            blob.chmod(0o644)
            os.truncate(blob, 10)
        case "remove":
            blob.unlink()
        case "garble":
            (path.parent.parent / "manifest.json").write_bytes(b"{")
        case _:
            path.unlink()
            path.symlink_to(folder / "config.json")
    assert cache.find("v") is None
    assert (stage(cache, "v", folder) / "model.safetensors").read_bytes() == b"w" * 1000


@pytest.mark.parametrize("name", ["../../escaped", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    cache = Cache(tmp_path / "cache")
    path = stage(cache, "v", model(tmp_path / "m")).parent / "manifest.json"
    listed = manifest.read(path)
    assert listed is not None
    entry = listed.files["config.json"]
    path.write_bytes(msgspec.json.encode(Manifest("v", {name: entry})))
    assert manifest.read(path) is None
    assert cache.find("v") is None


@pytest.mark.parametrize("name", ["..", "a/b", "", ".", "-" * 200, ".hidden"])
def test_a_variant_s_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(CopyError, match="can't name a folder"):
        Cache(tmp_path / "cache").make(name, model(tmp_path / "m"))


def test_a_lock_on_what_was_replaced_is_taken_on_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    fd = take(path, threading.Event())
    path.unlink()
    path.touch()
    other = take(path, threading.Event())
    assert os.fstat(fd).st_ino != os.fstat(other).st_ino
    os.close(fd)
    os.close(other)
