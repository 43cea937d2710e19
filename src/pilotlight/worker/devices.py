"""What this machine may use: GPUs of CUDA_VISIBLE_DEVICES, CPUs of the affinity mask, CPUs and memory of the cgroup.

Nothing here initialises CUDA: GPUs are asked through NVML (nvidia-ml-py), which knows nothing of CUDA_VISIBLE_DEVICES,
so that variable is read here the way CUDA reads it: indices, UUIDs or MIG UUIDs (or unambiguous beginnings), and
everything after the first invalid entry does not exist.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pilotlight.wire import DeviceSpec, WorkerShape
from pilotlight.worker import log

CPU_MEMORY_SHARE = 0.8
"""The part of free host memory that a CPU device may fill."""
HOST_MEMORY_SHARE = 0.5
"""The part of free host memory that the parked copies of all workers with GPUs may fill."""
ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU (or MIG slice) as NVML names it. memory_bytes: free now; 0: it can't be used, but it has its number."""

    uuid: str
    name: str
    memory_bytes: int
    mig_of: str = ""


def find(
    slot: int = 0, slots: int = 1, environ: Mapping[str, str] = os.environ, shape: WorkerShape | None = None
) -> list[DeviceSpec]:
    """The devices of worker number `slot` of `slots` on this machine.

    GPUs are dealt out in turn; where there are fewer GPUs than workers, workers share them and their memory. Without
    a GPU, a worker has its share of the CPUs as one device. `shape` makes them slower or smaller.
    """
    return [_shaped(device, shape or WorkerShape()) for device in _found(slot, slots, environ)]


def host_memory_bytes(slots: int, devices: list[DeviceSpec], shape: WorkerShape | None = None) -> int:
    """Host memory that a worker may fill with parked copies: a CPU device's own, which they share with replicas;
    beside GPUs, a part of what is free for each of the machine's workers."""
    if all(device.type == "cpu" for device in devices):
        return sum(device.memory_bytes for device in devices)
    memory = int(memory_free_bytes() * HOST_MEMORY_SHARE) // slots
    return min(memory, shape.memory_bytes) if shape is not None and shape.memory_bytes else memory


def _shaped(device: DeviceSpec, shape: WorkerShape) -> DeviceSpec:
    memory = min(device.memory_bytes, shape.memory_bytes or device.memory_bytes)
    return msgspec.structs.replace(device, speed=shape.speed, memory_bytes=memory)


def _found(slot: int, slots: int, environ: Mapping[str, str]) -> list[DeviceSpec]:
    cpus, memory = cpu_count(), int(memory_free_bytes() * CPU_MEMORY_SHARE)
    gpus = [gpu for gpu in visible(all_gpus(), environ.get("CUDA_VISIBLE_DEVICES")) if gpu.memory_bytes]
    threads = max(1, cpus // slots)
    if not gpus:
        return [DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=memory // slots, threads=threads)]
    mine = gpus[slot::slots] or [gpus[slot % len(gpus)]]
    sharers = -(-slots // len(gpus))
    return [
        DeviceSpec(
            id=gpu.uuid,
            kind=gpu.name,
            type="cuda",
            memory_bytes=gpu.memory_bytes // sharers,
            visible=gpu.uuid,
            threads=max(1, threads // len(mine)),
        )
        for gpu in mine
    ]


def visible(gpus: list[Gpu], setting: str | None) -> list[Gpu]:
    """The GPUs that CUDA would show under this CUDA_VISIBLE_DEVICES, in its order. None: unset."""
    if setting is None:
        return [gpu for gpu in gpus if not gpu.mig_of]
    plain = [gpu for gpu in gpus if not gpu.mig_of]
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdigit():
            found = plain[int(entry) : int(entry) + 1]
        else:
            found = [gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen.append(found[0])
    return chosen


def all_gpus() -> list[Gpu]:
    """Every GPU and MIG slice of this machine, in NVML's (the PCI bus's) order; none where there is no driver.

    A GPU that does not answer (it fell off the bus) or can't tell its memory (it is part of the CPU) keeps its place,
    with no memory: the numbers in CUDA_VISIBLE_DEVICES count it.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")  # it has no types
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    gpus: list[Gpu] = []
    try:
        for number in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                gpu = _gpu(nvml, handle)
            except nvml.NVMLError as error:
                log.say(f"GPU {number} can't be used: {error}")
                gpus.append(Gpu(f"unusable-{number}", "", 0))
                continue
            gpus.append(gpu)
            gpus.extend(_slices(nvml, handle, gpu.uuid))
    except nvml.NVMLError as error:
        log.say(f"GPUs can't be counted: {error}")
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return gpus


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver, the newest CUDA that it serves, and compute capabilities (`sm_90`) by GPU or slice."""

    version: str = ""
    cuda: str = ""
    capabilities: dict[str, str] = field(default_factory=dict[str, str])


def driver() -> Driver:
    """What NVML says; empty where there is no driver, and for what it does not tell."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # neither the module nor its errors may be there
        return Driver()
    version = cuda = ""
    capabilities: dict[str, str] = {}
    with contextlib.suppress(nvml.NVMLError):
        version = _text(nvml.nvmlSystemGetDriverVersion())
    with contextlib.suppress(nvml.NVMLError):
        number = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        cuda = f"{number // 1000}.{number % 1000 // 10}"
    with contextlib.suppress(nvml.NVMLError):
        for number in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
                uuid = _text(nvml.nvmlDeviceGetUUID(handle))
                for each in (uuid, *(found.uuid for found in _slices(nvml, handle, uuid))):
                    capabilities[each] = f"sm_{major}{minor}"
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlShutdown()
    return Driver(version, cuda, capabilities)


def _slices(nvml: Any, handle: Any, uuid: str) -> list[Gpu]:
    slices: list[Gpu] = []
    try:
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:
        return slices
    for number in range(count):
        with contextlib.suppress(nvml.NVMLError):  # a place for a slice that nobody made
            slices.append(_gpu(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number), uuid))
    return slices


def _gpu(nvml: Any, handle: Any, mig_of: str = "") -> Gpu:
    uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
    return Gpu(uuid, name, int(nvml.nvmlDeviceGetMemoryInfo(handle).free), mig_of)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def cpu_count(root: Path = ROOT) -> int:
    """CPUs of the affinity mask, or of the least quota of its cgroups where that is less."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    for cgroup in _cgroups(root):
        quota = _read(cgroup / "cpu.max").split()
        if len(quota) == 2 and quota[0].isdigit():
            cpus = min(cpus, max(1, int(quota[0]) // int(quota[1])))
    return cpus


def memory_free_bytes(root: Path = ROOT) -> int:
    """Host memory that is free for us: what the kernel calls available, or the least that a cgroup leaves of its limit.

    Files that nobody used lately count as free: the kernel drops them before it calls a cgroup full.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    for cgroup in _cgroups(root):
        limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
        if limit.isdigit() and used.isdigit():
            stat = dict(line.split() for line in _read(cgroup / "memory.stat").splitlines())
            taken = int(used) - int(stat.get("inactive_file", 0))
            free = min(free, max(int(limit) - max(taken, 0), 0))
    return free


def _cgroups(root: Path) -> list[Path]:
    """The folders of this process's own cgroup (version 2) and of those above it, whose limits hold for it too."""
    top = root / "sys/fs/cgroup"
    lines = _read(root / "proc/self/cgroup").splitlines()
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    parts = [part for part in own.split("/") if part]
    if ".." in parts:  # outside of what this container can see
        parts = []
    return [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
