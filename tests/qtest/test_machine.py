# SPDX-License-Identifier: MIT
"""The machine as a whole: memory windows, what is not modelled, the console, and the device tree's changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from board_tree import BOARD, compile_tree, decompile, node
from qtest_client import QTest, QTestError

IO_BASE, HIGH_BASE, MIB = 0xF0000000, 0x1_0000_0000, 1 << 20
UART_LSR, LSR_EMPTY = 0x14, 0x60
Start = Callable[..., QTest]


# -- memory ------------------------------------------------------------------------------------------------------------


def test_both_windows_show_one_backend_in_order(start: Start, tmp_path: Path) -> None:
    ram, size = tmp_path / "ram", 4096 * MIB
    machine = start(**sparse_backend(ram, size))
    places = {0x1000: 0x1000, IO_BASE - 8: IO_BASE - 8, HIGH_BASE: IO_BASE, HIGH_BASE + 256 * MIB - 8: size - 8}
    for number, address in enumerate(places):
        machine.write(address, bytes([number + 1]) * 8)
    with ram.open("rb") as stream:
        for number, offset in enumerate(places.values()):
            stream.seek(offset)
            assert stream.read(8) == bytes([number + 1]) * 8
    machine.write(HIGH_BASE + 256 * MIB, b"12345678")
    assert machine.read(HIGH_BASE + 256 * MIB, 8) == bytes(8), "there is nothing above"


def test_small_machine_has_one_window(start: Start) -> None:
    machine = start(memory="128M")
    for address, held in ((128 * MIB - 8, True), (128 * MIB, False), (HIGH_BASE, False)):
        machine.write(address, b"12345678")
        assert (machine.read(address, 8) == b"12345678") == held


def sparse_backend(path: Path, size: int) -> dict[str, object]:
    """Options for RAM in a sparse file, which needs no memory of the host."""
    backend = f"memory-backend-file,id=ram0,mem-path={path},size={size},share=on"
    return {"args": ["-object", backend], "machine": "rk3588,memory-backend=ram0", "memory": f"{size // MIB}M"}


def test_largest_memory(start: Start, tmp_path: Path) -> None:
    machine = start(**sparse_backend(tmp_path / "ram", 32768 * MIB))
    last = HIGH_BASE + 32768 * MIB - IO_BASE - 8
    machine.write(last, b"12345678")
    assert machine.read(last, 8) == b"12345678"
    with pytest.raises(QTestError, match="33792 MiB of RAM: there is room for 32768"):
        start(**sparse_backend(tmp_path / "more", 33792 * MIB))


def test_sram(machine: QTest) -> None:
    for first, size in ((0xFF001000, 0xEF000), (0xFD600000, 0x100000)):
        for address in (first, first + size - 4):
            machine.writel(address, address)
            assert machine.readl(address) == address


# -- registers ---------------------------------------------------------------------------------------------------------


def test_what_is_not_modelled_reads_zero_and_is_logged(machine: QTest) -> None:
    machine.writel(0xFEA90000, 0x1234)
    assert machine.readl(0xFEA90000) == 0
    assert "rk3588-io: unimplemented device write (size 4, offset 0xea90000, value 0x00001234)" in machine.log()
    assert "rk3588-io: unimplemented device read  (size 4, offset 0xea90000)" in machine.log()


@pytest.mark.parametrize(("register", "hiword"), [(0xFD58C000, True), (0xFD5F0000, True), (0xFDF72008, False)])
def test_register_blocks(machine: QTest, register: int, hiword: bool) -> None:
    """GRF and IOC take a write mask, the QoS generators plain words; both forget at a reset."""
    machine.writel(register, 0x000F_1235)
    assert machine.readl(register) == (0x5 if hiword else 0x000F_1235)
    machine.system_reset()
    assert machine.readl(register) == 0


def test_interrupt_controller(machine: QTest) -> None:
    """A distributor with both security states and 480 shared interrupts."""
    control, kind = machine.readl(0xFE600000), machine.readl(0xFE600004)
    assert not control & 1 << 6, "GICD_CTLR.DS"
    assert kind & 0x1F == (480 + 32) // 32 - 1


def test_virtio_devices_keep_the_order_of_the_command_line(start: Start, tmp_path: Path) -> None:
    arguments = []
    for number, size in enumerate((1, 2)):
        (tmp_path / f"disk{number}").write_bytes(bytes(size * MIB))
        drive = f"if=none,id=disk{number},file={tmp_path}/disk{number},format=raw"
        arguments += ["-drive", drive, "-device", f"virtio-blk-device,drive=disk{number}"]
    machine = start(args=arguments)
    transports = [0xFEF00000 + n * 0x200 for n in range(8)]
    assert [machine.readl(base) for base in transports] == [0x74726976] * 8
    assert [machine.readl(base + 8) for base in transports] == [2, 2] + [0] * 6
    assert [machine.readl(base + 0x100) for base in transports[:2]] == [1 * MIB // 512, 2 * MIB // 512]


# -- device tree -------------------------------------------------------------------------------------------------------


def fixed(start: Start, dtb: Path, report: Path, options: str = "", cpus: int = 2, memory: str = "64M") -> QTest:
    return start(
        args=["-dtb", str(dtb), "-smp", str(cpus)], machine=f"rk3588,dt-report={report}{options}", memory=memory
    )


def test_tree_for_two_cpus(start: Start, board_dtb: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    machine = fixed(start, board_dtb, report)
    assert report.read_text().splitlines() == [
        "disabled /interrupt-controller@fe600000/msi-controller@fe640000 not modelled",
        "disabled /bus/serial@febc0000 not modelled",
        "disabled /i2c@fd880000 not modelled",
        "disabled /camera@fdee0000 not modelled",
        "disabled /pinctrl/gpio@fd8a0000 not modelled",
        "disabled /display-subsystem not modelled",
        "dropped /usb@fc000000 phys",
        "dropped /usb@fc000000 phy-names",
        "disabled /reserved-memory/camera-cma no user",
        "dropped /power-management@fd8d8000/power-controller/power-domain@8 domain-supply",
        "dropped /power-management@fd8d8000/power-controller/power-domain@8/power-domain@9 domain-supply",
        *(f"dropped /npu@{base} {supply}-supply" for base in ("fdab0000", "fdac0000", "fdad0000")
          for supply in ("npu", "sram")),
        *(f"absent /cpus/cpu@{n}00" for n in range(2, 8)),
        "trimmed /interrupt-controller@fe600000/ppi-partitions/interrupt-partition-0 affinity 2 of 4",
        "trimmed /interrupt-controller@fe600000/ppi-partitions/interrupt-partition-1 affinity 0 of 4",
        "npu /npu@fdab0000 okay",
        "npu /npu@fdac0000 okay",
        "npu /npu@fdad0000 disabled",
        *(f"added /virtio_mmio@{0xFEF00000 + n * 0x200:x}" for n in reversed(range(8))),
    ]  # fmt: skip
    text = decompile(machine.read(0, 0x10000))
    for name in ("i2c@fd880000", "gpio@fd8a0000", "display-subsystem", "camera-cma", "msi-controller@fe640000"):
        assert 'status = "disabled"' in node(text, name)
    for name in ("serial@feb50000", "clock-controller@fd7c0000", "kept-cma", "cpu@100", "shmem@10f000", "usb@fc000000"):
        assert "status" not in node(text, name)
    assert 'status = "fail"' in node(text, "cpu@200")
    assert "-supply" not in text
    assert "phys" not in node(text, "usb@fc000000")
    assert "cpu-map" not in text
    assert "interrupt-partition-1" not in text
    assert node(text, "interrupt-partition-0").count("0x") == 2
    assert "reg = <0x00 0x00 0x00 0x4000000>" in node(text, "memory@0"), "the machine's memory, not the tree's"
    transport = node(text, "virtio_mmio@fef00000")
    assert "interrupts = <0x00 0x192 0x01 0x00>" in transport
    assert "reg = <0x00 0xfef00000 0x00 0x200>" in transport


def test_tree_for_all_cpus_keeps_them(start: Start, board_dtb: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    machine = fixed(start, board_dtb, report, cpus=8)
    assert not [line for line in report.read_text().splitlines() if line.split()[0] in ("absent", "trimmed")]
    text = decompile(machine.read(0, 0x10000))
    assert "cpu-map" in text
    assert 'status = "fail"' not in text
    assert node(text, "interrupt-partition-1").count("0x") == 4


def test_strict_supplies_stay(start: Start, board_dtb: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    machine = fixed(start, board_dtb, report, options=",strict-supplies=on")
    assert not re.search(r"dropped .*-supply", report.read_text())
    text = decompile(machine.read(0, 0x10000))
    assert text.count("domain-supply") == 2
    assert text.count("npu-supply") == text.count("sram-supply") == 3


def test_an_interrupt_translation_service_may_be_had(start: Start, board_dtb: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    fixed(start, board_dtb, report, options=",its=on")
    assert "msi-controller" not in report.read_text()


def test_tree_tells_of_the_second_window(start: Start, board_dtb: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    machine = fixed(start, board_dtb, report, memory="6G")
    assert "added /memory@100000000" in report.read_text().splitlines()
    text = decompile(machine.read(0, 0x10000))
    assert "reg = <0x00 0x00 0x00 0xf0000000>" in node(text, "memory@0")
    assert "reg = <0x01 0x00 0x00 0x90000000>" in node(text, "memory@100000000")


@pytest.mark.parametrize(
    ("console", "base"),
    [("serial2:1500000n8", 0xFEB50000), ("serial9:115200n8", 0xFEBC0000), ("/bus/serial@febc0000", 0xFEBC0000)],
)
def test_console_is_where_the_tree_says(start: Start, tmp_path: Path, console: str, base: int) -> None:
    dtb = compile_tree(BOARD.replace("serial2:1500000n8", console), tmp_path / "dtb")
    machine = start(args=["-dtb", str(dtb)])
    for uart in (0xFEB50000, 0xFEBC0000):
        assert (machine.readl(uart + UART_LSR) & LSR_EMPTY == LSR_EMPTY) == (uart == base)


def test_console_without_a_tree(machine: QTest) -> None:
    assert machine.readl(0xFEB50000 + UART_LSR) & LSR_EMPTY == LSR_EMPTY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rockchip,rk3588\"", "rockchip,rk3399\""), "the device tree is not an RK3588 board's"),
        (("arm,gic-v3\"", "arm,gic-400\""), "the device tree has no interrupt controller"),
        (("stdout-path = \"serial2", "stdout-path = \"/i2c@fd880000"), "no UART at the console's address 0xfd880000"),
    ],
)  # fmt: skip
def test_unfit_tree_is_refused(start: Start, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in BOARD
    dtb = compile_tree(BOARD.replace(*change), tmp_path / "dtb")
    with pytest.raises(QTestError, match=message):
        start(args=["-dtb", str(dtb)])


def test_unreadable_tree_is_refused(start: Start, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no tree at all" * 100)
    with pytest.raises(QTestError, match="garbage is not a device tree"):
        start(args=["-dtb", str(garbage)])
    with pytest.raises(QTestError, match="nothing is not a device tree"):
        start(args=["-dtb", str(tmp_path / "nothing")])


def test_kernel_without_tree_is_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(64))
    with pytest.raises(QTestError, match="a kernel needs a board's device tree: -dtb FILE"):
        start(args=["-kernel", str(tmp_path / "image")])


def test_report_that_cannot_be_written(start: Start, board_dtb: Path, tmp_path: Path) -> None:
    with pytest.raises(QTestError, match=r"dt-report: .*No such file or directory"):
        fixed(start, board_dtb, tmp_path / "nowhere" / "report")


def test_cpu_count(start: Start) -> None:
    with pytest.raises(QTestError, match=r"CPUs .*8"):
        start(args=["-smp", "9"])
    machine = start(args=["-smp", "8"])
    types = [machine.qom_get(cpu["qom-path"], "type") for cpu in machine.qmp("query-cpus-fast")]
    assert types == ["cortex-a55-arm-cpu"] * 4 + ["cortex-a76-arm-cpu"] * 4
