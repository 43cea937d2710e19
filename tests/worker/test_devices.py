"""CUDA_VISIBLE_DEVICES is read as CUDA reads it; CPUs and memory are what this process may use."""

# ruff: noqa: N802 - the fake has NVML's names

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from pilotlight.wire import DeviceSpec, WorkerShape
from pilotlight.worker import devices
from pilotlight.worker.devices import Gpu

A, B, C = Gpu("GPU-aaaa", "H100", 80), Gpu("GPU-bbbb", "H100", 80), Gpu("GPU-bbcc", "A10", 24)
SLICE = Gpu("MIG-1234", "H100 1g.10gb", 10, mig_of="GPU-aaaa")
ALL = [A, SLICE, B, C]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, [A, B, C]),
        ("", []),
        ("0", [A]),
        ("2,0", [C, A]),
        (" 1 , 2 ", [B, C]),
        ("-1", []),
        ("0,-1,1", [A]),
        ("0,9,1", [A]),
        ("GPU-bbbb", [B]),
        ("GPU-aa,GPU-bbcc", [A, C]),
        ("GPU-bb", []),
        ("MIG-1234", [SLICE]),
        ("1,1", [B]),
        ("nonsense", []),
    ],
)
def test_visible_devices(setting: str | None, expected: list[Gpu]) -> None:
    assert devices.visible(ALL, setting) == expected


def test_gpus_are_dealt_out_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "all_gpus", lambda: [A, B, C])
    first, second = devices.find(0, 2, {}), devices.find(1, 2, {})
    assert [spec.id for spec in first] == ["GPU-aaaa", "GPU-bbcc"]
    assert [spec.id for spec in second] == ["GPU-bbbb"]
    shared = [devices.find(slot, 6, {})[0] for slot in range(6)]
    assert [spec.id for spec in shared] == ["GPU-aaaa", "GPU-bbbb", "GPU-bbcc"] * 2
    assert shared[0].memory_bytes == 40
    assert all(spec.type == "cuda" and spec.visible == spec.id for spec in shared)


def test_cpus_are_shared_out() -> None:
    (one,) = devices.find(0, 1, {"CUDA_VISIBLE_DEVICES": ""})
    (half,) = devices.find(0, 2, {"CUDA_VISIBLE_DEVICES": ""})
    assert one.type == half.type == "cpu"
    assert one.threads == len(os.sched_getaffinity(0)) or one.threads < len(os.sched_getaffinity(0))
    assert half.threads == max(1, one.threads // 2)
    assert 0 < half.memory_bytes <= one.memory_bytes


def test_the_affinity_mask_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert devices.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, before)


class NVMLError(Exception):
    """As nvidia-ml-py's."""


@dataclass
class Memory:
    free: int


class FakeNvml(ModuleType):
    """The NVML of a machine with as many GPUs as `free` has entries; a text is the error that the GPU answers with.

    `lost`: GPUs that don't even give a handle. `broken`: the driver gives up after its start.
    """

    NVMLError = NVMLError

    def __init__(self, free: list[int | str], *, lost: frozenset[int] = frozenset(), broken: bool = False) -> None:
        super().__init__("pynvml")
        self.free, self.lost, self.broken = free, lost, broken

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        if self.broken:
            raise NVMLError("Uninitialized")

    def nvmlDeviceGetCount(self) -> int:
        if self.broken:
            raise NVMLError("Unknown Error")
        return len(self.free)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        if number in self.lost:
            raise NVMLError("GPU is lost")
        return number

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"H100"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Memory:
        free = self.free[handle]
        if isinstance(free, str):
            raise NVMLError(free)
        return Memory(free)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        raise NVMLError("Not Supported")


@pytest.mark.parametrize(("setting", "expected"), [(None, ["GPU-0", "GPU-3"]), ("3,1", ["GPU-3"]), ("2", ["cpu"])])
def test_a_gpu_that_does_not_answer_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str | None, expected: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([80, 0, "Not Supported", 40], lost=frozenset({1})))
    found = devices.find(environ={} if setting is None else {"CUDA_VISIBLE_DEVICES": setting})
    assert [spec.id for spec in found] == expected
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "GPU 1 can't be used: GPU is lost",
        "GPU 2 can't be used: Not Supported",
    ]


def test_a_driver_that_gives_up_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([80], broken=True))
    assert [spec.type for spec in devices.find(environ={})] == ["cpu"]
    assert "Unknown Error" in capsys.readouterr().err


def cgroups(root: Path, own: str, files: dict[str, str]) -> Path:
    """A root folder with cgroups."""
    files = {"proc/self/cgroup": f"1:name=systemd:/elsewhere\n0::{own}\n"} | {
        f"sys/fs/cgroup/{path}": text for path, text in files.items()
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def memory(limit: int | str, used: int, inactive_file: int = 0, folder: str = "") -> dict[str, str]:
    """The memory files of a cgroup."""
    return {
        f"{folder}memory.max": f"{limit}\n",
        f"{folder}memory.current": f"{used}\n",
        f"{folder}memory.stat": f"anon 1\nfile {inactive_file + 5}\ninactive_file {inactive_file}\n",
    }


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        ("/", memory(1000, 900), 100),
        ("/slurm/job", memory(5000, 0, folder="slurm/job/"), 5000),
        ("/slurm/job", memory("max", 0, folder="slurm/job/") | memory(5000, 4000, folder="slurm/"), 1000),
        ("/slurm/job", memory(4000, 0, folder="slurm/job/") | memory(9000, 8000, folder="slurm/"), 1000),
        ("/slurm/job", memory(4000, 3900, 3000, folder="slurm/job/"), 3100),
        ("/slurm/job", memory(10, 100, folder="slurm/job/"), 0),
        ("/slurm/job", memory(10, 0, folder="slurm/other/") | memory(20, 0), 20),
        ("/not/seen/here", memory(1000, 900), 100),
        ("/../other", memory(1000, 900), 100),
    ],
)
def test_the_least_that_a_cgroup_leaves_is_free(tmp_path: Path, own: str, files: dict[str, str], free: int) -> None:
    assert devices.memory_free_bytes(cgroups(tmp_path, own, files)) == free


def many_cpus(_: int) -> set[int]:
    return set(range(64))


def test_the_least_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", many_cpus)
    quotas = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "350000 100000\n", "cpu.max": "800000 100000\n"}
    root = cgroups(tmp_path, "/a/b", quotas)
    assert devices.cpu_count(root) == 3
    (root / "sys/fs/cgroup/a/b/cpu.max").write_text("50000 100000\n")
    assert devices.cpu_count(root) == 1
    (root / "proc/self/cgroup").unlink()
    assert devices.cpu_count(root) == 8


def test_a_shape_makes_a_worker_slower_and_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "all_gpus", list)
    monkeypatch.setattr(devices, "memory_free_bytes", lambda: 1000)
    shape = WorkerShape(speed=0.5, memory_bytes=100)
    (plain,), (shaped,) = devices.find(0, 2), devices.find(0, 2, shape=shape)
    assert (plain.speed, plain.memory_bytes) == (1.0, 400)
    assert (shaped.speed, shaped.memory_bytes) == (0.5, 100)
    assert devices.find(0, 2, shape=WorkerShape(memory_bytes=1 << 60)) == [plain], "nobody has more than there is"
    assert devices.host_memory_bytes(2, [plain]) == 400, "a CPU's memory is the host's"
    assert devices.host_memory_bytes(2, [shaped], shape) == 100


def test_workers_with_gpus_share_host_memory_for_parked_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_free_bytes", lambda: 1000)
    gpu = DeviceSpec(id="GPU-1", kind="H100", type="cuda", memory_bytes=50)
    assert devices.host_memory_bytes(2, [gpu]) == 250
    assert devices.host_memory_bytes(2, [gpu], WorkerShape(memory_bytes=100)) == 100
