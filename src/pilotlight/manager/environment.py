"""What a worker's environment lets it run in this pool, and what is odd about it: a judgement of facts, nothing else.

Rules and figures: a cubin for sm_XY runs on devices of the same major number and at least that minor one, PTX
(compute_XY) on any newer device whose driver is as new as the CUDA that made it (CUDA C++ Programming Guide, on binary
and PTX compatibility). A build for CUDA x.y runs with every driver made for x (CUDA Compatibility, "Minor Version
Compatibility"). Which builds of torch have code for what: pytorch/pytorch, RELEASE.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pilotlight.wire import DeviceSpec, Environment, minor_of

OF_USE = ("transformers", "python")
"""The runtimes that somebody would start a worker for."""
COMPARED = ("torch", "transformers", "vllm")
"""Packages whose versions change the last digits of answers."""
DRIVER_MIN = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""The first driver for Linux of each major CUDA."""
UP_TO_VOLTA = 75
"""Devices below sm_75 are left out of torch's builds for CUDA 12.8 and newer; those for 12.6 have them."""
FROM_BLACKWELL = 100
"""Devices from sm_100 on are in none older than those for CUDA 12.8."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """lacks: for each device, the runtimes that can't run there, and why. warnings: what else a person should know.
    absences: what is merely not installed, which only matters to who asks for it."""

    lacks: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    warnings: tuple[str, ...] = ()
    absences: tuple[str, ...] = ()

    @property
    def refusal(self) -> str:
        """Why nothing of use can run on any of the worker's devices; empty where something can."""
        if not self.lacks or any(set(OF_USE) - lacks.keys() for lacks in self.lacks.values()):
            return ""
        reasons = dict.fromkeys(why for lacks in self.lacks.values() for why in lacks.values())
        return "; ".join(reasons)

    @property
    def sentences(self) -> list[str]:
        """All of it, each thing once."""
        return [*self.warnings, *self.absences]


def judge(
    found: Environment | None, devices: Sequence[DeviceSpec], pool: Environment, others: Mapping[str, Environment]
) -> Verdict:
    """What a worker with these devices can run in a pool. pool: the manager's own environment. others: of the workers
    that are here. What is not known is not held against anybody."""
    if found is None:
        return Verdict()
    everywhere: dict[str, str] = {}
    if why := _other_python(found, pool):
        everywhere["python"] = why
    absences: list[str] = []
    for runtime, missing in found.missing.items():
        why = f"{' and '.join(missing)} can't be found there: pip install 'pilotlight[{runtime}]'"
        everywhere[runtime] = why
        absences.append(f"it can't run {runtime} contexts: {why}")
    lacks: dict[str, dict[str, str]] = {}
    warnings = [f"it gets no Python functions: {why}"] if (why := everywhere.get("python")) else []
    for device in devices:
        lacks[device.id] = dict(everywhere)
        if why := _unfit(found, device):
            lacks[device.id] |= {runtime: everywhere.get(runtime, why) for runtime in OF_USE}
            warnings.append(f"it can't use {device.id}: {why}")
    return Verdict(lacks, (*warnings, *_differences(found, pool, others)), tuple(absences))


# --- Python, packages


def _other_python(found: Environment, pool: Environment) -> str:
    theirs, ours = minor_of(found.python), minor_of(pool.python)
    if not theirs or not ours or theirs == ours:
        return ""
    return (
        f"it has Python {found.python}, and functions travel as code of this pool's Python {ours}: "
        f"start the worker with Python {ours}"
    )


def _differences(found: Environment, pool: Environment, others: Mapping[str, Environment]) -> list[str]:
    told: list[str] = []
    if found.release and pool.release and found.release != pool.release:
        told.append(f"it has pilotlight {found.release}, and its manager {pool.release}: upgrade the older one")
    for package in COMPARED:
        here = found.packages.get(package, "")
        for name, other in others.items():
            there = other.packages.get(package, "")
            if here and there and _public(here) != _public(there):
                told.append(
                    f"it has {package} {here} and {name} has {there}: answers of the two may differ in the last "
                    "digits; install the same version for runs that must be repeated exactly"
                )
                break
    return told


def _public(version: str) -> str:
    """A version without its build, which differs between CPUs and GPUs in any case."""
    return version.split("+", maxsplit=1)[0]


# --- devices


def _unfit(found: Environment, device: DeviceSpec) -> str:
    torch = found.packages.get("torch", "")
    if device.type != "cuda" or not torch or not found.cuda:
        return ""
    hide = "hide the device from the worker (CUDA_VISIBLE_DEVICES)"
    if found.cuda == "none":
        return (
            f"torch {torch} is a build for CPUs only: install a build for CUDA {found.driver_cuda or ''}".rstrip()
            + (f", or {hide}")
        )
    built, driver = _pair(found.cuda), _pair(found.driver_cuda)
    if driver[0] and driver[0] < built[0]:
        least = DRIVER_MIN.get(built[0], "")
        newer = f"update the driver to {least} or newer" if least else "update the driver"
        return (
            f"NVIDIA's driver {found.driver} there serves CUDA {found.driver_cuda} at most, and torch {torch} is built "
            f"for CUDA {found.cuda}: {newer}, or install a build of torch for CUDA {driver[0]}"
        )
    capability = found.capabilities.get(device.id, "")
    number = _number(capability)
    known = [arch for arch in found.arches if _number(arch)]
    if not number or not known or any(_runs(arch, number, ptx=not driver[0] or driver >= built) for arch in known):
        return ""
    has = f"{known[0]} to {known[-1]}" if len(known) > 2 else " and ".join(known)
    return (
        f"{device.kind} is {capability}, and torch {torch} has code for {has}: "
        f"install {_remedy(number, built)}, or {hide}"
    )


def _remedy(number: int, built: tuple[int, int]) -> str:
    if number < UP_TO_VOLTA and built >= (12, 8):
        return "a build of torch for CUDA 12.6 (pip install torch --index-url https://download.pytorch.org/whl/cu126)"
    if number >= FROM_BLACKWELL and built < (12, 8):
        return "a build of torch for CUDA 12.8 or newer"
    return f"a build of torch whose torch.cuda.get_arch_list() has sm_{number}"


def _runs(arch: str, number: int, *, ptx: bool) -> bool:
    """Whether code for `arch` runs on a device of that compute capability (61: 6.1)."""
    least = _number(arch)
    if arch.startswith("compute_"):
        return ptx and least <= number
    if arch.endswith("a"):  # for that very device
        return least == number
    return least // 10 == number // 10 and least <= number


def _number(arch: str) -> int:
    found = re.fullmatch(r"(?:sm|compute)_([0-9]+)[af]?", arch)
    return int(found[1]) if found else 0


def _pair(version: str) -> tuple[int, int]:
    """Major and minor; (0, 0) where there are none."""
    found = re.match(r"([0-9]+)\.([0-9]+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
