# SPDX-License-Identifier: MIT
"""Each fix of kernel-patches/7.3: the defect shows with the driver as mainline has it, and is gone with the fix.

The driver is loaded as a module, once stock and once fixed, on a virtual board with the modular kernel: everything
else is the same. Nothing here can run on a board whose kernel the kit did not build.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fdt
import pytest
from building import progress

from lab.assemble.virt import BuildOptions, assemble
from lab.cache import Cache
from lab.kernel import driver
from lab.virt.board import BoardConfig
from lab.virt.select import board_config
from lab.virt.session import BoardSession

pytestmark = [pytest.mark.lg_feature("virtual"), pytest.mark.timeout(3600)]
"""The first test of a cold cache builds a kernel."""

HERE = Path(__file__).parent
PLACE = "/tmp/fixes"
SOFT_RESET_30 = 0xFD7C0A00 + 4 * 30
"""CRU register with the resets of core 0 (linux drivers/clk/rockchip/rst-rk3588.c)."""
IOMMU_COMMANDS = (0xFDAB9008, 0xFDABA008)
"""Command registers of core 0's two IOMMU banks (linux drivers/iommu/rockchip-iommu.c)."""
WRITE = re.compile(r"memory_region_ops_write .*addr 0x([0-9a-f]+) value 0x([0-9a-f]+)")
DISABLE_PAGING = 1


@dataclass
class Loaded:
    """A board with one variant of the driver loaded."""

    session: BoardSession

    def run(self, command: str, timeout: float = 120.0) -> str:
        """What a command that has to succeed prints."""
        lines, code = self.session.run(command, timeout)
        assert code == 0, f"`{command}` ended with {code}:\n" + "\n".join(lines)
        return "\n".join(lines)

    def defect(self, *words: str) -> dict[str, Any]:
        """The JSON that target/defects.py prints."""
        document: dict[str, Any] = json.loads(
            self.run(f"python3 {PLACE}/defects.py {' '.join(words)}").splitlines()[-1]
        )
        return document

    def log(self) -> str:
        """The kernel's messages."""
        return self.run("dmesg")


@pytest.fixture(scope="module")
def variants(request: pytest.FixtureRequest) -> driver.Variants:
    with progress(request) as out:
        return driver.build(Cache(), out, os.cpu_count() or 1, HERE / "modules")


@pytest.fixture(scope="module")
def config(request: pytest.FixtureRequest) -> BoardConfig:
    # without an initramfs nothing loads the driver before the test does
    with progress(request) as out:
        return replace(board_config(assemble(BuildOptions(rocket_module=True), out)), initrd=None)


Load = Callable[..., Any]


@pytest.fixture
def load(variants: driver.Variants, config: BoardConfig, tmp_path: Path) -> Load:
    """``with load("stock") as board``: boot, load that driver, end."""

    @contextmanager
    def start(variant: str, dtb: Path | None = None) -> Iterator[Loaded]:
        modules = variants.modules(variant, ("groupref.ko",))
        package = tmp_path / f"{variant}.tar"
        with tarfile.open(package, "w") as archive:
            for path in [*modules, *sorted((HERE / "target").glob("*.py"))]:
                archive.add(path, path.name)
        chosen = replace(config, disks=(*config.disks, package), dtb=dtb or config.dtb)
        with BoardSession(chosen, tmp_path / f"results-{variant}") as session:
            session.to("shell")
            board = Loaded(session)
            board.run(f"mkdir -p {PLACE} && tar -xf /dev/vdc -C {PLACE}")
            board.run(" && ".join(f"insmod {PLACE}/{path.name}" for path in modules if path.name != "groupref.ko"))
            yield board

    return start


EXPECTED = [pytest.param("stock", True, id="stock"), pytest.param("fixed", False, id="fixed")]


@pytest.mark.parametrize(("variant", "defective"), EXPECTED)
def test_rejected_jobs_are_reported(load: Load, variant: str, defective: bool) -> None:
    with load(variant) as board:
        answers = board.defect("rejected")
    expected = "none" if defective else "EINVAL"
    assert answers == {"without_tasks": expected, "task_without_words": expected}


@pytest.mark.parametrize(("variant", "defective"), EXPECTED)
def test_jobs_leave_no_reference_to_the_iommu_group(load: Load, variant: str, defective: bool) -> None:
    with load(variant) as board:
        board.run(f"insmod {PLACE}/groupref.ko")
        read = "cat /sys/module/groupref/parameters/references"
        before = int(board.run(read))
        board.defect("jobs", "30")
        gained = int(board.run(read)) - before
    # jobs go to all three cores; the reference counted is the first one's
    assert gained > 0 if defective else gained == 0


@pytest.mark.parametrize(("variant", "defective"), EXPECTED)
def test_clocks_are_taken_by_name(load: Load, variant: str, defective: bool) -> None:
    with load(variant) as board:
        board.run("test -d /sys/kernel/debug/clk || mount -t debugfs none /sys/kernel/debug")
        summary = board.run("cat /sys/kernel/debug/clk/clk_summary")
    names = set(re.findall(r"fdab0000\.npu\s+(\w+)", summary))
    wanted = {"aclk", "hclk", "npu", "pclk"}
    assert not names & wanted if defective else wanted <= names


@pytest.mark.parametrize(("variant", "defective"), EXPECTED)
def test_missing_clock_is_noticed(
    load: Load, config: BoardConfig, tmp_path: Path, variant: str, defective: bool
) -> None:
    tree = fdt.parse_dtb(config.dtb.read_bytes())
    tree.get_node("/npu@fdab0000").set_property("clock-names", ["aclk", "hclk", "npu", "other"])
    dtb = tmp_path / "renamed.dtb"
    dtb.write_bytes(tree.to_dtb(version=17))
    with load(variant, dtb) as board:
        log = board.log()
    complaint = "failed to get clocks for core"
    assert complaint not in log if defective else complaint in log


@pytest.mark.parametrize(("variant", "defective"), EXPECTED)
def test_buffers_may_outlive_their_file(load: Load, variant: str, defective: bool) -> None:
    with load(variant) as board:
        lines, _ = board.session.run(f"python3 {PLACE}/defects.py late", 60.0)
        log = board.log()
    told = "Memory manager not clean during takedown" in log
    assert told == defective, log[-2000:]
    if not defective:
        assert json.loads(lines[-1])["exported"]
        assert "WARNING:" not in log


@pytest.mark.parametrize(("variant", "defective"), EXPECTED)
def test_hung_core_is_reset_before_its_address_space_goes(load: Load, variant: str, defective: bool) -> None:
    with load(variant) as board:
        virtual = board.session.board
        virtual.qmp.human("trace-event memory_region_ops_write on")
        board.defect("hang")
        virtual.qmp.human("trace-event memory_region_ops_write off")
        assert "NPU job timed out" in board.log()
        trace = virtual.machine_log.read_text(errors="replace")
    order = [(int(found[1], 16), int(found[2], 16)) for found in WRITE.finditer(trace)]
    resets = [index for index, (address, value) in enumerate(order) if address == SOFT_RESET_30 and value & 0xFFFF]
    assert resets, "the core was not reset"
    reset = resets[0]
    disables = [
        index
        for index, (address, value) in enumerate(order)
        if address in IOMMU_COMMANDS and value == DISABLE_PAGING and index < reset
    ]
    # before the job the default domain is exchanged for the job's: one disabling; a second one before the reset is the
    # defect
    starts = [index for index, (address, _) in enumerate(order) if address == 0xFDAB0008 and index < reset]
    assert starts, "core 0 ran nothing"
    after_start = [index for index in disables if index > starts[-1]]
    assert bool(after_start) == defective
