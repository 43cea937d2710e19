"""What this machine may use: GPUs of CUDA_VISIBLE_DEVICES, CPUs of the affinity mask, memory of the cgroup.

Nothing here initialises CUDA: GPUs are asked through NVML (nvidia-ml-py), which knows nothing of CUDA_VISIBLE_DEVICES,
so that variable is read here the way CUDA reads it: indices, UUIDs or MIG UUIDs (or unambiguous beginnings), and
everything after the first invalid entry does not exist.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilotlight.wire import DeviceSpec

CPU_MEMORY_SHARE = 0.8
"""The part of free host memory that a CPU device may fill."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU (or MIG slice) as NVML names it. memory_bytes: free now."""

    uuid: str
    name: str
    memory_bytes: int
    mig_of: str = ""


def find(slot: int = 0, slots: int = 1, environ: Mapping[str, str] = os.environ) -> list[DeviceSpec]:
    """The devices of worker number `slot` of `slots` on this machine.

    GPUs are dealt out in turn; where there are fewer GPUs than workers, workers share them and their memory. Without
    a GPU, a worker has its share of the CPUs as one device.
    """
    cpus, memory = cpu_count(), int(memory_free_bytes() * CPU_MEMORY_SHARE)
    gpus = visible(all_gpus(), environ.get("CUDA_VISIBLE_DEVICES"))
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
    """Every GPU and MIG slice of this machine, in NVML's (the PCI bus's) order; none where there is no driver."""
    try:
        nvml: Any = importlib.import_module("pynvml")  # it has no types
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        gpus: list[Gpu] = []
        for number in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            gpu = _gpu(nvml, handle)
            gpus.append(gpu)
            gpus.extend(_slices(nvml, handle, gpu.uuid))
        return gpus
    finally:
        nvml.nvmlShutdown()


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


def cpu_count() -> int:
    """CPUs of the affinity mask, or of the cgroup's quota where that is less."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cpus = min(cpus, max(1, int(quota[0]) // int(quota[1])))
    return cpus


def memory_free_bytes() -> int:
    """Host memory that is free for us: what the kernel calls available, or what the cgroup leaves of its limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, max(int(limit) - int(used), 0))
    return free


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
