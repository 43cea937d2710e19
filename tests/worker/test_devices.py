"""CUDA_VISIBLE_DEVICES is read as CUDA reads it; CPUs and memory are what this process may use."""

from __future__ import annotations

import os

import pytest

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
