# SPDX-License-Identifier: MIT
"""Results as a board's run leaves them, made up."""

from __future__ import annotations

import copy
from typing import Any

import pytest

CORES = ("fdab0000", "fdac0000", "fdad0000")
IOMMUS = ("fdab9000", "fdaca000", "fdada000")
DOMAINS = ("nputop", "npu1", "npu2")
OUTCOMES = ("failed", "error", "flaky", "xfailed", "passed", "skipped")


def case(
    name: str, outcome: str = "passed", *, suite: str = "board", file: str = "npu_ops", **more: Any
) -> dict[str, Any]:
    """A test of the results."""
    test = f"tests/{suite}/test_{file}.py::{name}"
    return {
        "id": test,
        "suite": suite,
        "area": f"{suite}: {file.replace('_', ' ')}",
        "outcome": outcome,
        "phase": "call" if outcome in ("failed", "error") else "",
        "message": "" if outcome == "passed" else f"{name} {outcome}",
        "detail": f"def {name}():\n>   assert right\nE   AssertionError" if outcome in ("failed", "error") else "",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 1.25,
        "properties": {},
        "kernel_log": [],
        "repeat": f"npulab test {suite} --test '{test}'",
        "attempts": 2 if outcome == "flaky" else 1,
        "expectation": None,
        "measurements": [],
        "numerics": [],
        **more,
    }


def records(*texts: str) -> list[dict[str, Any]]:
    """Kernel messages, those with a capital W or N bad."""
    return [
        {"sequence": n, "seconds": 12.5 + n / 1000, "level": 4, "text": text, "bad": text[:1] in "WN"}
        for n, text in enumerate(texts, 100)
    ]


def _npu(status: str) -> dict[str, Any]:
    cores = [
        {
            "address": core,
            "driver": "rocket",
            "status": status,
            "control": "auto",
            "iommu": iommu,
            "iommu_group": str(number),
            "domain": domain,
            "domain_state": "off-0" if status == "suspended" else "on",
            "version": "1179210309",
            "number": number,
        }
        for number, (core, iommu, domain) in enumerate(zip(CORES, IOMMUS, DOMAINS, strict=True))
    ]
    domains = [{"name": "npu", "state": "off-0", "devices": []}]
    domains += [
        {"name": d, "state": "off-0", "devices": [f"{c}.npu", f"{i}.iommu"]}
        for c, i, d in zip(CORES, IOMMUS, DOMAINS, strict=True)
    ]
    return {"cores": cores, "domains": domains}


def _tests() -> list[dict[str, Any]]:
    kernel = records(
        "rocket fdab0000.npu: resuming",
        "WARNING: drivers/accel/rocket/rocket_job.c:317 at rocket_job_handle_irq+0x1c8/0x210",
        "Modules linked in: rocket gpu_sched drm_shmem_helper",
        "NPU job timed out",
    )
    scaling = [
        {"name": "speedup", "value": v, "unit": "x", "labels": {"cores": n}} for n, v in ((1, 1.0), (2, 1.9), (3, 2.7))
    ]
    rates = [
        {
            "name": "jobs",
            "value": 90.0 + n * (1 if d == "int8" else 2),
            "unit": "jobs/s",
            "labels": {"processes": n, "dtype": d},
        }
        for n in (1, 2, 4, 8)
        for d in ("int8", "float16")
    ]
    throughput = [
        {"name": "throughput", "value": 3.0 + n, "unit": "GOP/s",
         "labels": {"workload": f"w{n}", "operations_per_byte": 10.0 * n, "dtype": ("int8", "float16")[n % 2]}}
        for n in range(1, 7)
    ]  # fmt: skip
    single = [{"name": "resume", "value": 1.75, "unit": "ms", "labels": {"core": "npu1"}}]
    exact = [
        {
            "op": "matmul",
            "dtype": "int8",
            "max_abs": 0.0,
            "max_ulp": None,
            "mismatches": 0,
            "elements": 4096,
            "labels": {},
        }
    ]
    half = [
        {
            "op": "conv2d",
            "dtype": "float16",
            "max_abs": 0.00049,
            "max_ulp": 0.52,
            "mismatches": 12,
            "elements": 153_600,
            "labels": {"kernel": "3x3"},
        }
    ]
    known = {
        "expect": "fail",
        "reason": "the driver leaks a group reference per job",
        "evidence": "https://example.org/1",
        "file": "virt.yaml",
    }
    return [
        case("test_workload[int8-matmul]", numerics=exact, properties={"jobs": 3, "tasks": 12}),
        case("test_workload[fp16-conv3x3]", numerics=half),
        case("test_scaling", file="npu_concurrency", measurements=scaling),
        case("test_processes", file="npu_concurrency", measurements=rates + single + throughput),
        case(
            "test_hang",
            "failed",
            file="npu_recovery",
            kernel_log=kernel,
            message="the kernel said: WARNING: drivers/accel",
        ),
        case("test_fault", "error", file="npu_recovery", message="the board does not answer"),
        case("test_leak", "xfailed", file="npu_recovery", expectation=known),
        case("test_reload", "flaky", file="npu_power", expectation={**known, "expect": "flaky"}),
        case("test_usb", "skipped", file="npu_power", message="unsupported feature(s): usb-otg"),
        case("test_layout", suite="unit", file="layout"),
    ]


def _suite(name: str, tests: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {o: sum(t["outcome"] == o and t["suite"] == name for t in tests) for o in OUTCOMES}
    bad = counts["failed"] + counts["error"]
    return {
        "name": name, "ok": not bad, "complete": True, "exit_code": int(bool(bad)), "seconds": 61.5, "counts": counts,
        "trouble": [],
    }  # fmt: skip


def results(tests: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A whole document."""
    tests = _tests() if tests is None else tests
    suites = [_suite(name, tests) for name in dict.fromkeys(test["suite"] for test in tests)]
    sha = "0123456789abcdef" * 4
    return {
        "schema": "npulab-results",
        "version": 1,
        "id": "test-20260102-030405",
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:14:05+00:00",
        "seconds": 600.0,
        "ok": all(suite["ok"] for suite in suites),
        "command": ["npulab", "test", "board"],
        "kit": {"version": "0.1.0", "commit": "a" * 40, "modified": False},
        "host": {"system": "Linux 6.1", "machine": "x86_64", "python": "3.11.7", "cpus": 2},
        "environment": "virt.yaml",
        "board": {
            "name": "virt", "model": "Xunlong Orange Pi 5", "compatible": ["xunlong,orangepi-5", "rockchip,rk3588s"],
            "virtual": True, "cpus": 2, "memory_kib": 1_018_296, "python": "Python 3.13.5",
            "features": ["npu", "virtual"],
            "place": "", "identity": {"cpu-id": "c0ffee"}, "identity_note": "", "backup": None,
        },
        "kernel": {
            "release": "7.3.4-npulab", "version": "#1 SMP", "cmdline": "root=/dev/vda rw", "srcversion": "", "taint": 0,
            "patches": ["0001-accel-rocket.patch"],
        },
        "npu": _npu("active"),
        "temperatures": {"package": 41.5},
        "boot": {"seconds": 3.6, "bad": []},
        "end": {"taint": 512, "npu": _npu("suspended"), "temperatures": {"package": 44.0}, "deferred": []},
        "artifacts": {
            "key": "1" * 20, "board": "virt", "kit_version": "0.1.0", "dtb": "dtbs/x.dtb",
            "rootfs": "trixie, Python 3.13",
            "kernel": {
                "version": "7.3.4", "release": "7.3.4-npulab", "flavour": "fast", "compiler": "gcc 12.2.0",
                "config_sha256": sha,
                "source": {"kind": "debian", "name": "linux", "version": "7.3.4-1", "sha256": sha},
                "patches": [{"name": "0001-accel-rocket.patch", "sha256": sha}], "modules": [],
            },
            "qemu": {"version": "10.0.2"},
            "files": {"Image": {"sha256": sha, "size": 20_000_000}, "rootfs.ext4": {"sha256": sha, "size": 90_000_000}},
        },
        "suites": suites,
        "tests": copy.deepcopy(tests),
    }  # fmt: skip


@pytest.fixture
def run() -> dict[str, Any]:
    """A run with one of everything."""
    return results()
