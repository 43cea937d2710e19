"""What a worker's environment lets it run: Pascal and Volta under new builds of torch, old drivers, another Python."""

from __future__ import annotations

import pytest

from pilotlight.manager.environment import judge
from pilotlight.wire import VERSION, DeviceSpec, Environment, other_version

POOL = Environment(python="3.12.4", release="0.2.0")
CU128 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CPU = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1)


def gpu(kind: str = "NVIDIA GeForce GTX 1080 Ti", uuid: str = "GPU-1") -> DeviceSpec:
    return DeviceSpec(id=uuid, kind=kind, type="cuda", memory_bytes=1, visible=uuid)


def found(
    capability: str = "sm_90",
    arches: list[str] = CU128,
    *,
    cuda: str = "12.8",
    driver: str = "580.82.07",
    driver_cuda: str = "13.0",
    torch: str = "2.11.0+cu128",
    python: str = "3.12.7",
    missing: dict[str, list[str]] | None = None,
) -> Environment:
    packages = {"torch": torch, "transformers": "5.1.0"} if torch else {}
    return Environment(
        python=python,
        release="0.2.0",
        packages=packages,
        missing=missing or {},
        cuda=cuda,
        arches=arches,
        driver=driver,
        driver_cuda=driver_cuda,
        capabilities={"GPU-1": capability},
    )


@pytest.mark.parametrize(
    ("capability", "arches", "cuda"),
    [
        ("sm_90", CU128, "12.8"),
        ("sm_89", CU128, "12.8"),  # by sm_86, or sm_80
        ("sm_61", CU126, "12.6"),  # by sm_60
        ("sm_70", CU126, "12.6"),
        ("sm_72", CU126, "12.6"),
        ("sm_121", [*CU128, "compute_120"], "12.8"),
        ("sm_130", [*CU128, "compute_120"], "12.8"),  # PTX, by a driver that is new enough
        ("sm_90", ["sm_90a"], "12.8"),
        ("", CU128, "12.8"),  # not known
        ("sm_61", [], "12.8"),  # not known
        ("sm_61", ["gfx90a", "gfx942"], ""),
    ],
)
def test_devices_that_torch_has_code_for(capability: str, arches: list[str], cuda: str) -> None:
    verdict = judge(found(capability, arches, cuda=cuda), [gpu()], POOL, {})
    assert verdict.lacks == {"GPU-1": {}}
    assert not verdict.refusal
    assert not verdict.sentences


@pytest.mark.parametrize(
    ("kind", "capability"), [("NVIDIA GeForce GTX 1080 Ti", "sm_61"), ("Tesla V100-SXM2-16GB", "sm_70")]
)
def test_a_device_older_than_torchs_build_is_refused_by_name_with_the_build_that_has_it(
    kind: str, capability: str
) -> None:
    verdict = judge(found(capability), [gpu(kind)], POOL, {})
    assert verdict.refusal == (
        f"{kind} is {capability}, and torch 2.11.0+cu128 has code for sm_75 to sm_120: "
        "install a build of torch for CUDA 12.6 "
        "(pip install torch --index-url https://download.pytorch.org/whl/cu126), "
        "or hide the device from the worker (CUDA_VISIBLE_DEVICES)"
    )


@pytest.mark.parametrize(
    ("capability", "arches", "cuda", "driver_cuda", "remedy"),
    [
        ("sm_120", CU126, "12.6", "13.0", "install a build of torch for CUDA 12.8 or newer"),
        ("sm_37", ["sm_50"], "12.6", "13.0", "whose torch.cuda.get_arch_list() has sm_37"),
        ("sm_90", ["sm_100a"], "12.8", "13.0", "get_arch_list() has sm_90"),
        ("sm_86", ["sm_90", "sm_80a"], "12.8", "13.0", "get_arch_list() has sm_86"),
        ("sm_80", ["sm_86"], "12.8", "13.0", "get_arch_list() has sm_80"),
        ("sm_130", ["sm_120", "compute_120"], "12.8", "12.6", "a build of torch for CUDA"),  # PTX, and an older driver
    ],
)
def test_other_devices_without_code(
    capability: str, arches: list[str], cuda: str, driver_cuda: str, remedy: str
) -> None:
    verdict = judge(found(capability, arches, cuda=cuda, driver_cuda=driver_cuda), [gpu()], POOL, {})
    if capability == "sm_130":
        assert verdict.refusal
    else:
        assert remedy in verdict.refusal


def test_a_driver_older_than_torchs_cuda_is_refused_and_a_minor_number_is_none() -> None:
    old = judge(found(cuda="13.0", driver="550.54.15", driver_cuda="12.4", torch="2.11.0"), [gpu()], POOL, {})
    assert "driver 550.54.15 there serves CUDA 12.4 at most, and torch 2.11.0 is built for CUDA 13.0" in old.refusal
    assert "update the driver to 580.65.06 or newer, or install a build of torch for CUDA 12" in old.refusal
    assert not judge(found(cuda="12.8", driver="535.1", driver_cuda="12.2"), [gpu()], POOL, {}).refusal
    assert not judge(found(driver="", driver_cuda=""), [gpu()], POOL, {}).refusal


def test_a_build_for_cpus_does_not_serve_gpus_but_cpus() -> None:
    here = found(cuda="none", torch="2.11.0+cpu", arches=[])
    assert (
        "torch 2.11.0+cpu is a build for CPUs only: install a build for CUDA 13.0"
        in judge(here, [gpu()], POOL, {}).refusal
    )
    assert not judge(here, [CPU], POOL, {}).refusal


def test_of_two_devices_the_one_that_works_is_used() -> None:
    here = Environment(
        python="3.12.1",
        packages={"torch": "2.11.0"},
        cuda="12.8",
        arches=CU128,
        capabilities={"GPU-1": "sm_61", "GPU-2": "sm_90"},
    )
    verdict = judge(here, [gpu(), gpu("NVIDIA H100", "GPU-2")], POOL, {})
    assert not verdict.refusal
    assert set(verdict.lacks["GPU-1"]) == {"transformers", "python"}
    assert verdict.lacks["GPU-2"] == {}
    assert verdict.warnings[0].startswith("it can't use GPU-1: NVIDIA GeForce GTX 1080 Ti is sm_61")


def test_another_python_gets_no_functions_and_models_all_the_same() -> None:
    verdict = judge(found(python="3.11.9"), [gpu()], POOL, {})
    assert not verdict.refusal
    assert set(verdict.lacks["GPU-1"]) == {"python"}
    (warning,) = verdict.warnings
    assert warning == (
        "it gets no Python functions: it has Python 3.11.9, and functions travel as code of this pool's Python 3.12: "
        "start the worker with Python 3.12"
    )
    bare = found(python="3.11.9", torch="", missing={"transformers": ["torch", "transformers"]})
    refusal = judge(bare, [CPU], POOL, {}).refusal
    assert "start the worker with Python 3.12" in refusal
    assert "pip install 'pilotlight[transformers]'" in refusal


def test_a_missing_runtime_is_no_warning_to_who_does_not_want_it() -> None:
    verdict = judge(found(torch="", missing={"transformers": ["torch"]}), [CPU], POOL, {})
    assert set(verdict.lacks["cpu"]) == {"transformers"}
    assert not verdict.warnings
    assert verdict.sentences == [
        "it can't run transformers contexts: torch can't be found there: pip install 'pilotlight[transformers]'"
    ]


def test_other_versions_of_what_changes_answers_are_warned_of_but_for_the_build() -> None:
    others = {"worker-1": found(torch="2.10.1+cu126"), "worker-2": found(torch="2.9.0")}
    assert judge(found(torch="2.10.1+cpu", cuda="none"), [CPU], POOL, {"worker-1": others["worker-1"]}).warnings == ()
    (warning,) = judge(found(), [gpu()], POOL, others).warnings
    assert warning.startswith("it has torch 2.11.0+cu128 and worker-1 has 2.10.1+cu126: answers of the two may differ")
    older = Environment(python="3.12.1", release="0.1.0")
    assert judge(older, [CPU], POOL, {}).warnings == (
        "it has pilotlight 0.1.0, and its manager 0.2.0: upgrade the older one",
    )


def test_what_is_not_known_is_held_against_nobody() -> None:
    assert not judge(None, [gpu()], POOL, {}).sentences
    assert not judge(Environment(), [gpu()], POOL, {"w": found()}).sentences


def test_who_is_to_be_upgraded_is_the_older_one() -> None:
    newer = other_version("w", VERSION + 1, "0.3.0", "0.2.0")
    assert newer == (
        "w has pilotlight 0.3.0, which this pool's manager (pilotlight 0.2.0) does not understand: "
        "upgrade pilotlight to 0.3.0 where the manager runs, and start the pool again"
    )
    older = other_version("w", VERSION - 1, "", "0.2.0")
    assert older.startswith(f"w has message version {VERSION - 1}, which")
    assert older.endswith("upgrade pilotlight to 0.2.0 where the worker runs")
