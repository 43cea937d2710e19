"""Where the cache goes on machines of all kinds. Disks and mounts are made up; folders are real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pilotlight.core.errors import ConfigError
from pilotlight.files import place
from pilotlight.files.place import Mount, Place

GB = 1 << 30
MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /home rw - nfs4 filer:/home rw,vers=4.2
31 22 0:27 / /dev/shm rw - tmpfs tmpfs rw
32 22 8:2 /jobs/4711/.4711 /tmp rw - xfs /dev/sdb1 rw
33 22 0:30 / /mnt/a\040b rw - fuse.sshfs ada@far:/ rw
34 22 0:31 / /mnt/a\040b rw - btrfs /dev/sdc1 rw
""".strip()


class Machine:
    """Folders below one that tests have, with made-up file systems and room."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mounts = [Mount("/", "ext4")]
        self.free: dict[Path, int] = {}
        self.home = self.folder("home/ada")

    def folder(self, name: str, kind: str = "", free: int = 100 * GB) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        if kind:
            self.mounts.append(Mount(str(path), kind))
        self.free[path] = free
        return path

    def choose(self, given: str = "", **environ: str) -> Place:
        return place.choose(
            given,
            {"USER": "ada", **environ},
            home=self.home,
            scratch=(str(self.root / "scratch"), str(self.root / "local_scratch")),
            temporary=(str(self.root / "var/tmp"), str(self.root / "tmp")),
            known=self.mounts,
            free=lambda path: next((self.free[p] for p in (path, *path.parents) if p in self.free), 100 * GB),
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def ours(base: Path) -> set[Path]:
    return {base / "pilotlight", base / f"pilotlight-{os.geteuid()}"}


def test_an_option_comes_before_the_variable_and_that_before_all_else(machine: Machine) -> None:
    job = machine.folder("job")
    said, variable = machine.root / "said", machine.root / "variable"
    environ = {"SLURM_JOB_ID": "4711", "SLURM_TMPDIR": str(job)}
    assert machine.choose(str(said), PILOTLIGHT_CACHE=str(variable), **environ) == Place(said, "--cache")
    assert machine.choose(PILOTLIGHT_CACHE=str(variable), **environ) == Place(variable, "PILOTLIGHT_CACHE")
    assert machine.choose(**environ) == Place(job / "pilotlight", "SLURM_TMPDIR")


def test_a_named_place_that_is_no_folder_is_an_error_that_names_the_option(machine: Machine) -> None:
    file = machine.root / "file"
    file.touch()
    with pytest.raises(ConfigError, match="as --cache says"):
        machine.choose(str(file / "cache"))


@pytest.mark.parametrize(
    ("made", "environ", "expected"),
    [
        (["job", "scratch/ada"], {"SLURM_JOB_ID": "1", "SLURM_TMPDIR": "job"}, "job"),
        (["job", "scratch/ada"], {"_CONDOR_SCRATCH_DIR": "job"}, "job"),
        (["job", "scratch/ada"], {"PBS_JOBID": "1.pbs", "TMPDIR": "job"}, "job"),
        (["job", "scratch/ada"], {"TMPDIR": "job"}, "scratch/ada"),
        (["job", "scratch/ada", "home/ada/.cache"], {"HF_HOME": "job"}, "job"),
        (["scratch", "var/tmp"], {"SLURM_JOB_ID": "1"}, "scratch"),
        (["local_scratch/ada", "scratch"], {"SLURM_JOB_ID": "1"}, "scratch"),
        (["home/ada/.cache", "var/tmp", "tmp"], {}, "home/ada/.cache"),
        (["home/ada/.cache", "var/tmp", "tmp"], {"LSB_JOBID": "7"}, "var/tmp"),
        (["tmp"], {"JOB_ID": "7"}, "tmp"),
    ],
)
def test_the_machines_own_disks(machine: Machine, made: list[str], environ: dict[str, str], expected: str) -> None:
    for name in made:
        machine.folder(name)
    given = {key: str(machine.root / value) if value == "job" else value for key, value in environ.items()}
    assert machine.choose(**given).path in ours(machine.root / expected)


def test_a_home_that_is_new_gets_its_cache_folder_and_nothing_is_made_before_it_is_used(machine: Machine) -> None:
    assert machine.choose().path == machine.home / ".cache" / "pilotlight"
    assert not (machine.home / ".cache").exists()


def test_nothing_over_the_network_is_chosen_silently(machine: Machine) -> None:
    machine.folder("home", "nfs4")
    machine.folder("scratch", "lustre")
    hub = machine.folder("hub", "beegfs")
    machine.folder("local_scratch", "fuse.sshfs")
    with pytest.raises(ConfigError, match="--cache DIR or PILOTLIGHT_CACHE"):
        machine.choose(HF_HOME=str(hub))
    machine.folder("var/tmp", free=GB)
    assert machine.choose().path in ours(machine.root / "var/tmp")  # better a little room than none


def test_a_small_disk_is_passed_over_and_memory_is_for_where_no_disk_has_room(machine: Machine) -> None:
    job = machine.folder("job", "tmpfs", free=200 * GB)
    environ = {"SLURM_JOB_ID": "4711", "TMPDIR": str(job)}
    machine.folder("scratch", free=GB)
    machine.folder("var/tmp")
    assert machine.choose(**environ).path in ours(machine.root / "var/tmp")
    machine.free[machine.root / "var/tmp"] = GB
    assert machine.choose(**environ).path == job / "pilotlight"
    machine.free[job] = 8 * GB
    assert machine.choose(**environ).path in ours(machine.root / "scratch") | ours(machine.root / "var/tmp")


def test_what_was_chosen_before_is_chosen_again_however_full_it_is(machine: Machine) -> None:
    first = machine.folder("scratch/ada")
    machine.folder("var/tmp")
    chosen = machine.choose()
    (chosen.path / "variants").mkdir(parents=True)
    machine.free[first] = 0
    assert machine.choose() == chosen


def test_a_folder_that_anybody_may_write_to_gets_one_by_the_users_number_and_no_trap_is_taken(machine: Machine) -> None:
    shared = machine.folder("scratch")
    shared.chmod(0o1777)
    mine = shared / f"pilotlight-{os.geteuid()}"
    assert machine.choose(SLURM_JOB_ID="1").path == mine
    mine.symlink_to(machine.home)  # somebody else was quicker
    machine.folder("var/tmp")
    assert machine.choose(SLURM_JOB_ID="1").path in ours(machine.root / "var/tmp")


# --- what is known of a place


def test_mounts_are_read_as_the_kernel_writes_them() -> None:
    known = place.mounts(MOUNTINFO)
    kinds = {path: found.type for path in ("/x", "/home/ada", "/tmp/x", "/mnt/a b/c") if (found := at(path, known))}
    assert kinds == {"/x": "ext4", "/home/ada": "nfs4", "/tmp/x": "xfs", "/mnt/a b/c": "btrfs"}
    assert [place.is_network(kind) for kind in ("nfs4", "fuse.sshfs", "lustre", "xfs", "fuseblk", "overlay")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def at(path: str, known: list[Mount]) -> Mount | None:
    return place.mount_of(Path(path), known)


def test_what_is_told_of_a_place(tmp_path: Path) -> None:
    known = [Mount("/", "ext4"), Mount(str(tmp_path), "tmpfs")]
    view = place.look(Place(tmp_path / "not" / "yet", "--cache"), {}, known)
    assert (view.file_system, view.in_memory, view.network, view.ends_with_job) == ("tmpfs", True, False, False)
    assert view.free_bytes > 0
    assert view.text.startswith(f"{tmp_path}/not/yet (--cache; tmpfs, ")
    assert "in memory" in view.text
    real = place.look(Place(tmp_path, "--cache"), {})
    assert real.free_inodes is None or real.free_inodes > 0


@pytest.mark.parametrize(
    ("path", "environ", "mount", "ends"),
    [
        ("/local/4711/pilotlight", {"SLURM_JOB_ID": "4711"}, None, True),
        ("/local/14711/pilotlight", {"SLURM_JOB_ID": "4711"}, None, False),
        ("/local/slurm_job4711/x", {"SLURM_JOB_ID": "4711"}, None, True),
        ("/local/disk4711/x", {"SLURM_JOB_ID": "4711"}, None, False),
        ("/tmp/pilotlight-4711", {"SLURM_JOB_ID": "4711"}, None, False),
        ("/jobfs/4711.gadi-pbs/pilotlight", {"PBS_JOBID": "4711.gadi-pbs"}, None, True),
        ("/local/4711/pilotlight", {}, None, False),
        ("/nvme/job/pilotlight", {"SLURM_JOB_ID": "1", "SLURM_TMPDIR": "/nvme/job"}, None, True),
        ("/tmp/pilotlight-1", {"SLURM_JOB_ID": "1", "TMPDIR": "/tmp"}, None, False),
        ("/tmp/pilotlight-1", {"SLURM_JOB_ID": "4711"}, Mount("/tmp", "xfs", "/jobs/4711/.4711"), True),
        ("/var/lib/condor/dir_7/x", {"_CONDOR_SCRATCH_DIR": "/var/lib/condor/dir_7"}, None, True),
        ("/scratch/ada/pilotlight", {"SLURM_JOB_ID": "4711"}, None, False),
    ],
)
def test_whether_it_outlives_the_job(path: str, environ: dict[str, str], mount: Mount | None, ends: bool) -> None:
    assert place.ends_with_job(Path(path), environ, mount) is ends


def test_a_cache_in_memory_leaves_memory_for_models(tmp_path: Path) -> None:
    cached = tmp_path / "files" / "ab"
    cached.mkdir(parents=True)
    (cached / "abcd").write_bytes(b"x" * 8192)
    limit: Callable[[str], int] = lambda kind: place.limit_bytes(tmp_path, 1_000_000, [Mount("/", kind)])  # noqa: E731
    assert limit("ext4") == 0
    assert 500_000 < limit("tmpfs") < 600_000
