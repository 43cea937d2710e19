"""Where a machine's cache lies, and what is known of that place.

What a user says counts: an option, then PILOTLIGHT_CACHE. Else it is a disk of the machine's own: what the batch system
made for the job, the disk of HF_HOME (whose files it can link to), the scratch folders that clusters have, on a
workstation the user's cache folder, and at last /var/tmp and /tmp. A file system over the network is never chosen
silently, so a home that lies on one is not either; memory (tmpfs) is chosen only where no disk has room. What was
chosen before is chosen again, however full it is by now.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pilotlight.core.errors import ConfigError
from pilotlight.views import CacheView

VARIABLE = "PILOTLIGHT_CACHE"
NAME = "pilotlight"
DISK_BYTES_MIN = 10 << 30
"""Free room that makes a disk worth choosing before others: a small model, its compile caches, and air."""
MEMORY_BYTES_MIN = 32 << 30
"""The same of a file system in memory, which takes what models would run in."""

JOB_FOLDERS = (
    "SLURM_TMPDIR",  # Digital Research Alliance of Canada, Mila
    "_CONDOR_SCRATCH_DIR",  # HTCondor
    "PBS_JOBFS",  # NCI
    "SNIC_TMP",  # NAISS
    "LOCAL_SCRATCH",  # CSC
    "SCRATCHDIR",  # MetaCentrum
    "JOB_SCRATCH",
    "TMPDIR",  # what most prologues set, of Slurm, PBS, Grid Engine and LSF alike
)
"""Variables that name a job's own folder; they count inside a batch job only: elsewhere TMPDIR is for what is small and
short-lived, and a system may empty it at any time."""
JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "COBALT_JOBID", "OAR_JOB_ID", "JOB_ID")
"""Variables that name the batch job that this is (JOB_ID is Grid Engine's)."""
SCRATCH = (
    "/scratch",
    "/local_scratch",
    "/localscratch",
    "/local/scratch",
    "/scratch_local",
    "/lscratch",
    "/mnt/scratch",
)
"""What clusters call a node's disk; a user has a folder of his own name there, or may make one."""

IN_MEMORY = frozenset({"tmpfs", "ramfs", "rootfs"})
NETWORK = frozenset(
    {"nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "pvfs2", "glusterfs"}
    | {"panfs", "wekafs", "vastfs", "gfs2", "ocfs2", "dvs"}
)
LOCAL_FUSE = frozenset({"fuseblk", "fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.lxcfs"})
"""Any other file system in user space is taken for one over the network: sshfs, s3fs, glusterfs, gcsfuse, …"""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder for the cache, which may not be there yet. why: what named it, in a word or two."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo(5): where a file system is mounted, its type, and which of its folders that is."""

    point: str
    type: str
    root: str = "/"


def mounts(text: str | None = None) -> list[Mount]:
    """What is mounted here, the later over the earlier; nothing where the system does not tell. text: for tests."""
    if text is None:
        try:
            text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
    found: list[Mount] = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields = head.split()
        if len(fields) >= 5 and tail:
            found.append(Mount(_plain(fields[4]), tail.split()[0], _plain(fields[3])))
    return found


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def mount_of(path: Path, known: list[Mount]) -> Mount | None:
    """The mount that a path lies on, whether the path is there or not."""
    real = Path(os.path.realpath(path))
    above = [mount for mount in known if real.is_relative_to(mount.point)]
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)  # the last of equals covers the rest


def is_network(kind: str) -> bool:
    """Whether a file system of that type is another machine's."""
    return kind in NETWORK or (kind.startswith("fuse") and kind not in LOCAL_FUSE)


def is_local(path: Path, known: list[Mount] | None = None) -> bool:
    """Whether a path is known to lie on a file system of this machine. known: the mounts; None: as they are now."""
    mount = mount_of(path, mounts() if known is None else known)
    return mount is not None and not is_network(mount.type)


# --- choosing


def choose(
    given: str,
    environ: Mapping[str, str] = os.environ,
    *,
    home: Path | None = None,
    scratch: tuple[str, ...] = SCRATCH,
    temporary: tuple[str, ...] = ("/var/tmp", "/tmp"),  # noqa: S108 - as a last resort, in a folder of our own
    known: list[Mount] | None = None,
    free: Callable[[Path], int] | None = None,
) -> Place:
    """The place of this machine's cache. given: what an option says. The rest: the machine, for tests.

    Raises `ConfigError` where the named place can't be used, or none can.
    """
    for path, why in ((given, "--cache"), (environ.get(VARIABLE, ""), VARIABLE)):
        if path:
            return _named(Path(path).expanduser().absolute(), why)
    known, free = mounts() if known is None else known, free or _free_bytes
    usable: list[tuple[Place, bool, int]] = []
    for base, why in _bases(environ, home or Path.home(), scratch, temporary, known):
        path = _usable(base)
        mount = mount_of(base, known)
        if path is None or (mount is not None and is_network(mount.type)):
            continue
        if (path / "variants").is_dir():
            return Place(path, why)
        usable.append((Place(path, why), mount is not None and mount.type in IN_MEMORY, free(base)))
    for in_memory, least in ((False, DISK_BYTES_MIN), (True, MEMORY_BYTES_MIN)):
        for place, is_memory, room in usable:
            if is_memory is in_memory and room >= least:
                return place
    if not usable:
        raise ConfigError(
            "this machine has no disk of its own that this user may write to: say where the cache of model files "
            f"shall be with --cache DIR or {VARIABLE}"
        )
    return max(usable, key=lambda one: (not one[1], one[2]))[0]


def in_batch_job(environ: Mapping[str, str]) -> bool:
    """Whether a batch system started this process."""
    return "_CONDOR_SCRATCH_DIR" in environ or any(environ.get(name) for name in JOB_IDS)


def _bases(
    environ: Mapping[str, str], home: Path, scratch: tuple[str, ...], temporary: tuple[str, ...], known: list[Mount]
) -> Iterator[tuple[Path, str]]:
    """Folders to look at, the best first. A user's own cache folder is for machines that no batch system runs: a
    system's own temporary folders are emptied after some weeks, and often are on its smallest disk."""
    if in_batch_job(environ):
        for name in JOB_FOLDERS:
            if environ.get(name):
                yield Path(environ[name]).absolute(), name
    if environ.get("HF_HOME"):
        yield Path(environ["HF_HOME"]).absolute(), "HF_HOME"  # on one file system its files are linked, not copied
    user = environ.get("USER") or str(os.geteuid())
    for folder in scratch:
        yield Path(folder) / user, f"{folder}/{user}"
        yield Path(folder), folder
    if not in_batch_job(environ):
        base = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
        mount = mount_of(base, known)
        if base.is_absolute() and (mount is None or mount.type not in IN_MEMORY):
            yield base, "the user's cache folder, on a disk of this machine"
    for folder in temporary:
        yield Path(folder), folder


def _usable(base: Path) -> Path | None:
    """Our folder below `base`, where that is a folder that this user may write to. In a folder that others write to as
    well, ours bears the user's number, and one that somebody else made there is passed over."""
    try:
        if base.name == ".cache" and base.parent.is_dir() and not base.exists():
            return base / NAME if os.access(base.parent, os.W_OK | os.X_OK) else None
        if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
            return None
        status = base.stat()
    except OSError:
        return None
    shared = status.st_uid != os.geteuid() or bool(status.st_mode & stat.S_IWOTH)
    path = base / (f"{NAME}-{os.geteuid()}" if shared else NAME)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return path
    except OSError:
        return None
    return path if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() else None


def _named(path: Path, why: str) -> Place:
    above = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"the cache can't be in {path}, as {why} says: {above} is no folder that can be written to")
    return Place(path, why)


def _free_bytes(path: Path) -> int:
    try:
        disk = os.statvfs(path)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize


# --- what is known of it


def limit_bytes(path: Path, memory_free: int, known: list[Mount] | None = None) -> int:
    """How much a cache may hold whatever its file system says: of one in memory, half of what is free beside it, so
    that models find room to run; 0: the file system alone limits it."""
    mount = mount_of(path, mounts() if known is None else known)
    if mount is None or mount.type not in IN_MEMORY:
        return 0
    held = sum(file.stat().st_blocks * 512 for file in (path / "files").glob("??/*"))
    return (memory_free + held) // 2


def look(place: Place, environ: Mapping[str, str] = os.environ, known: list[Mount] | None = None) -> CacheView:
    """What is known of a place now."""
    mount = mount_of(place.path, mounts() if known is None else known)
    above = next(folder for folder in (place.path, *place.path.parents) if folder.exists())
    disk = os.statvfs(above)
    kind = mount.type if mount is not None else ""
    return CacheView(
        path=str(place.path),
        chosen_by=place.why,
        file_system=kind,
        free_bytes=disk.f_bavail * disk.f_frsize,
        free_inodes=disk.f_favail if disk.f_files else None,
        in_memory=kind in IN_MEMORY,
        network=is_network(kind),
        ends_with_job=ends_with_job(place.path, environ, mount),
    )


def ends_with_job(path: Path, environ: Mapping[str, str], mount: Mount | None = None) -> bool:
    """Whether a folder is likely to go when the batch job ends: it is the job's own, or bears its number."""
    if not in_batch_job(environ):
        return False
    for name in JOB_FOLDERS:
        base = environ.get(name, "")
        own = base and Path(base).parent != Path("/")  # a prologue that says TMPDIR=/tmp or /scratch promises nothing
        if own and path.is_relative_to(Path(base).absolute()):
            return True
    # a private /tmp is a folder that bears the job's number, mounted over the machine's
    above = path.parent if path.name.startswith(NAME) else path  # our own folder's name may end with the user's number
    told = f"{above}{mount.root if mount is not None and mount.point != '/' else ''}"
    numbers = {environ[name].split(".")[0].split("[")[0] for name in JOB_IDS if environ.get(name)}
    named = rf"(?:job|(?<![0-9a-zA-Z]))(?:{'|'.join(map(re.escape, filter(None, numbers)))})(?![0-9a-zA-Z])"
    return bool(numbers) and re.search(named, told) is not None
