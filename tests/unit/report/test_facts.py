# SPDX-License-Identifier: MIT
"""What a board says of itself: the scripts run in a real shell, and power domains as the kernel prints them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lab.report import facts
from lab.report.kmsg import Record

SUMMARY = """domain                          status          children        performance
    /device                         runtime status                  managed by
------------------------------------------------------------------------------
npu2                            off-0                           0
    fdada000.iommu                  suspended                   0           SW
    fdad0000.npu                    suspended                   0           SW
nputop                          on                              0
                                                npu1, npu2
    fdab9000.iommu                  active                      0           SW
    fdab0000.npu                    active                      0           SW
npu                             on                              0
                                                nputop
gpu                             off-0                           0
"""


class LocalShell:
    """This host's shell, as a board that is no RK3588."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.longest = 0
        # the script mounts debugfs where it is not; this host stays as it is
        stub = place / "bin" / "mount"
        stub.parent.mkdir()
        stub.write_text("#!/bin/sh\nexit 1\n")
        stub.chmod(0o755)
        self._variables = {**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}"}

    def run(self, command: str, timeout: float = 60.0) -> tuple[list[str], int]:
        self.longest = max(self.longest, len(command))
        command = command.replace(facts.PLACE, str(self._place / "facts"))
        words = ["sh", "-c", command]
        done = subprocess.run(words, env=self._variables, capture_output=True, text=True, timeout=timeout, check=False)
        return done.stdout.splitlines(), done.returncode


def test_power_domains() -> None:
    npu = facts.parse_npu(
        [f"genpd|{line}" for line in SUMMARY.splitlines()]
        + ["core|fdab0000|rocket|active|fdab9000.iommu|0|auto", "core|fdad0000||suspended||1|auto", "core|torn"]
    )
    assert [(core["domain"], core["domain_state"], core["driver"], core["iommu"]) for core in npu["cores"]] == [
        ("nputop", "on", "rocket", "fdab9000"),
        ("npu2", "off-0", "", ""),
    ]
    assert [domain["name"] for domain in npu["domains"]] == ["npu2", "nputop", "npu"]


@pytest.mark.parametrize("fast", [True, False])
def test_a_board_without_an_npu_says_what_it_is(tmp_path: Path, fast: bool) -> None:
    shell = LocalShell(tmp_path)
    found = facts.read_facts(shell, [], fast=fast, virtual=False)
    assert found["kernel"]["release"] == subprocess.check_output(["uname", "-r"], text=True).strip()
    assert found["board"]["cpus"] >= 1
    assert found["board"]["memory_kib"] > 0
    assert found["npu"] == {"cores": [], "domains": found["npu"]["domains"]}
    assert found["board"]["identity_note"] == "the kit does not know this board"
    state = facts.read_state(shell, fast=fast)
    assert isinstance(state["taint"], int)
    # busybox's line editor takes 1024 characters
    assert fast or shell.longest < 1000


def test_versions_are_those_that_the_driver_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "run_script", lambda *_: ["core|fdab0000|rocket|active|fdab9000.iommu|0|auto", "end|"])
    boot = [Record(1, 0.5, 6, "rocket fdab0000.npu: Rockchip NPU core 0 version: 1179210309")]
    (core,) = facts.read_facts(LocalShell(tmp_path), boot, fast=True, virtual=False)["npu"]["cores"]
    assert (core["number"], core["version"]) == (0, "1179210309")


def test_devices_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "taint|0",
        "deferred|fdab0000.npu\tplatform: wait for supplier /regulator",
        "deferred|a41000000.pcie",
        "end|",
    ]
    monkeypatch.setattr(facts, "run_script", lambda *_: lines)
    assert facts.read_state(LocalShell(tmp_path), fast=True)["deferred"] == ["fdab0000.npu", "a41000000.pcie"]
