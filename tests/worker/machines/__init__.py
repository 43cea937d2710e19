"""Machines that tests don't have: a fake NVML and a fake torch, for processes that find them on PYTHONPATH."""

from __future__ import annotations

import textwrap
from pathlib import Path

_NVML = """
class NVMLError(Exception):
    pass

GPUS = {gpus!r}

class _Memory:
    free = 8 << 30

def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return {driver!r}
def nvmlSystemGetCudaDriverVersion_v2(): return {driver_cuda!r}
def nvmlDeviceGetCount(): return len(GPUS)
def nvmlDeviceGetHandleByIndex(number): return number
def nvmlDeviceGetUUID(handle): return f"GPU-{{handle}}"
def nvmlDeviceGetName(handle): return GPUS[handle][0]
def nvmlDeviceGetMemoryInfo(handle): return _Memory
def nvmlDeviceGetCudaComputeCapability(handle): return GPUS[handle][1]
def nvmlDeviceGetMaxMigDeviceCount(handle): raise NVMLError("Not Supported")
"""
_TORCH = """
import pathlib
with (pathlib.Path(__file__).parent / "imports").open("a") as file:
    file.write("once\\n")

class version:
    cuda = {cuda!r}

class cuda:
    @staticmethod
    def get_arch_list():
        return {listed!r}

class _C:
    @staticmethod
    def _cuda_getArchFlags():
        return {flags!r}
"""


def make(
    folder: Path,
    *,
    gpus: list[tuple[str, tuple[int, int]]],
    torch: str = "2.11.0+cu128",
    cuda: str | None = "12.8",
    arches: str = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120",
    driver: str = "580.82.07",
    driver_cuda: int = 13000,
    works: bool = True,
) -> Path:
    """Make modules for a machine with these GPUs (name, compute capability) in `folder`, which goes on PYTHONPATH.

    works: whether CUDA does; where it does not, torch's list of what it has code for is empty.
    """
    (folder / "pynvml.py").write_text(_NVML.format(gpus=gpus, driver=driver, driver_cuda=driver_cuda))
    listed = arches.split() if works else []
    _package(folder, "torch", torch, _TORCH.format(cuda=cuda, listed=listed, flags=arches if cuda else None))
    _package(folder, "transformers", "5.1.0", "")
    return folder


def imports(folder: Path) -> int:
    """How many processes have imported the fake torch."""
    path = folder / "torch" / "imports"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _package(folder: Path, name: str, version: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(textwrap.dedent(code))
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
