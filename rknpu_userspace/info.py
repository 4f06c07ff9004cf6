# SPDX-License-Identifier: MIT
"""What NPU there is: ``python3 -m rknpu_userspace info``. Device node, driver, cores, IOMMUs, power, clocks, limits.

Everything about cores comes from sysfs, the device tree, and, where they may be read, the kernel's log and debugfs; a
value that cannot be seen is None. Nothing is run on the NPU and nothing is switched on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .backend.kernel_log import KMSG, core_versions
from .errors import DeviceError
from .formats import COMBINATIONS
from .plan import limits

COMPATIBLE = "rockchip,rk3588-rknn-core"
KNOWN_VERSION = 0x46495245
"""PC_VERSION + PC_VERSION_NUM of every RK3588 (boot logs of boards)."""
CLOCKS = ("scmi_clk_npu", "clk_npu", "aclk_npu{core}")
"""Names of clocks in debugfs: the firmware's clock of all cores, and the bus clock of one."""
EXIT_OK, EXIT_NO_DEVICE = 0, 4


@dataclass
class Core:
    """One core. ``clock_hz`` is what the clock runs at (debugfs), ``assigned_hz`` what the device tree asks for."""

    address: str
    number: int
    driver: str | None = None
    version: int | None = None
    iommu: str | None = None
    iommu_driver: str | None = None
    iommu_group: str | None = None
    domain: str | None = None
    power: str | None = None
    iommu_power: str | None = None
    control: str | None = None
    active_ms: int | None = None
    suspended_ms: int | None = None
    clock_hz: int | None = None
    assigned_hz: int | None = None


@dataclass
class Info:
    """Everything. ``problem`` says why the device can not be used, empty when it can."""

    device: str
    problem: str = ""
    hint: str = ""
    driver: str | None = None
    driver_version: str | None = None
    kernel: str | None = None
    board: str | None = None
    nodes: list[str] = field(default_factory=list)
    cores: list[Core] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)
    quirks: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def from_document(document: dict[str, Any]) -> Info:
    """What ``document`` made, from JSON."""
    known = {name: value for name, value in document.items() if name in Info.__dataclass_fields__}
    return Info(**{**known, "cores": [Core(**core) for core in document["cores"]]})


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None


def _link(path: Path) -> str | None:
    try:
        return path.resolve(strict=True).name
    except OSError:
        return None


def _u32(path: Path) -> int | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return int.from_bytes(data[:4], "big") if len(data) >= 4 else None


def _is_core(node: Path) -> bool:
    try:
        return COMPATIBLE.encode() in (node / "compatible").read_bytes().split(b"\0")
    except OSError:
        return False


def _core(device: Path, number: int, root: Path) -> Core:
    core = Core(device.name.split(".")[0], number)
    power = device / "power"
    core.driver = _link(device / "driver")
    core.power = _text(power / "runtime_status")
    core.control = _text(power / "control")
    core.active_ms = _number(power / "runtime_active_time")
    core.suspended_ms = _number(power / "runtime_suspended_time")
    core.assigned_hz = _u32(device / "of_node/assigned-clock-rates")
    core.iommu_group = _link(device / "iommu_group")
    core.domain = _text(device / "iommu_group/type")
    mmu = _iommu_of(device)
    if mmu is not None:
        core.iommu, core.iommu_driver = mmu.name, _link(mmu / "driver")
        core.iommu_power = _text(mmu / "power/runtime_status")
    for name in CLOCKS:
        rate = _number(root / "sys/kernel/debug/clk" / name.format(core=number) / "clk_rate")
        if rate is not None:
            core.clock_hz = rate
            break
    return core


def _iommu_of(device: Path) -> Path | None:
    """The platform device of a core's IOMMU: ``iommu`` leads to the class device below it."""
    with contextlib.suppress(OSError):
        place = (device / "iommu").resolve(strict=True)
        named = [parent for parent in (place, *place.parents) if parent.name.endswith(".iommu")]
        if named:  # the class device has the name of the platform device that it lies in
            return named[-1]
    suppliers = sorted(device.glob("supplier:platform:*.iommu"))
    if suppliers:
        mmu = device.parent / suppliers[0].name.split(":")[-1]
        return mmu if mmu.is_dir() else None
    return None


def cores(root: Path = Path("/"), log: Path = KMSG) -> tuple[list[Core], list[str]]:
    """The cores that the kernel has devices for, by address, and nodes of the device tree that are disabled."""
    folder = root / "sys/bus/platform/devices"
    devices = sorted(path for path in folder.glob("*") if _is_core(path / "of_node"))
    found = [_core(device, number, root) for number, device in enumerate(devices)]
    versions = core_versions(log)
    for core in found:
        core.version = versions.get(core.number)
    tree = root / "proc/device-tree"
    nodes = [node for node in sorted(tree.glob("npu@*")) if _is_core(node)]
    disabled = [node.name for node in nodes if (_text(node / "status") or "okay") not in ("okay", "ok")]
    return found, disabled


def hardware_limits() -> dict[str, Any]:
    """What one task can do; the planner cuts larger problems to fit."""
    return {
        "CBUF": f"{limits.CBUF_BANKS} banks of {limits.BANK_BYTES // 1024} KiB",
        "input width and height of a task": limits.MAX_WIDTH,
        "kernel": limits.MAX_KERNEL,
        "stride": limits.MAX_STRIDE,
        "padding": limits.MAX_PAD,
        "dilation": limits.MAX_DILATION,
        "bytes of a kernel": limits.MAX_BYTES_PER_KERNEL,
        "output channels of a task": limits.MAX_TASK_KERNELS,
        "address space": "4 GiB a file",
        "formats": {form: list(outs) for form, outs in COMBINATIONS.items()},
    }


def _advice(info: Info) -> str:
    """What to do about a device that cannot be used, from what is there."""
    others = [node for node in info.nodes if node != info.device]
    path = Path(info.device)
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return "the device is there, only the permission is missing"
    if not info.cores and not info.disabled:
        return "this machine's device tree has no RK3588 NPU; --device model works anywhere"
    if not info.cores:
        return f"the device tree disables {', '.join(info.disabled)}: use one that enables them (npulab dtb check)"
    if not any(core.driver for core in info.cores):
        return "the NPU has no driver: load it (modprobe rocket); the kernel's log says why if it does not start"
    return f"there is {', '.join(others)}" if others else "the kernel's log may say more"


def gather(
    device: str = "/dev/accel/accel0", root: Path = Path("/"), log: Path = KMSG, quirks: Path | None = None
) -> Info:
    """Look at a device, or at the model with the answers in ``quirks``.

    Never fails because of the device: ``problem`` says what is wrong. ValueError for a file that is no quirks file.
    """
    info = Info(device, limits=hardware_limits())
    if device == "model":
        from .model.machine import CORES, DEFAULT_CLOCK_HZ
        from .model.quirks import Quirks

        chosen = Quirks.load(quirks) if quirks is not None else Quirks()
        info.driver, info.quirks = "model", chosen.as_dict()
        info.cores = [Core("model", number, clock_hz=DEFAULT_CLOCK_HZ) for number in range(CORES)]
        return info
    from .uapi import Accel

    info.kernel = platform.release()
    info.board = _text(root / "proc/device-tree/model")
    info.nodes = [str(path) for path in sorted(Path("/dev/accel").glob("accel*"))]
    info.cores, info.disabled = cores(root, log)
    try:
        accel = Accel(device)
    except DeviceError as error:
        info.problem = str(error)
        info.hint = _advice(info)
        return info
    info.driver, info.driver_version = "rocket", accel.version
    accel.close()
    return info


def _version(version: int | None) -> str:
    if version is None:
        return "not seen"
    known = " (RK3588)" if version == KNOWN_VERSION else ", not the RK3588's"
    return f"{version:#010x}{known}"


def _megahertz(rate: int | None) -> str:
    return "not seen" if rate is None else f"{rate / 1e6:g} MHz"


COLUMNS = ("core", "address", "driver", "version", "power", "clock", "IOMMU", "its driver, power, group, domain")


def core_rows(info: Info) -> list[list[str]]:
    """A table of the cores, with ``COLUMNS``."""
    rows = []
    for core in info.cores:
        asked = f", device tree {_megahertz(core.assigned_hz)}" if core.assigned_hz else ""
        used = f", active {core.active_ms / 1000:.1f} s" if core.active_ms is not None else ""
        control = f", control {core.control}" if core.control and core.control != "auto" else ""
        mmu = (core.iommu_driver, core.iommu_power, core.iommu_group, core.domain)
        rows.append(
            [
                str(core.number),
                core.address,
                core.driver or ("-" if info.driver != "model" else "model"),
                _version(core.version) if info.driver != "model" else "-",
                f"{core.power or '-'}{control}{used}",
                _megahertz(core.clock_hz) + asked,
                core.iommu or "-",
                ", ".join(part or "-" for part in mmu),
            ]
        )
    return rows


def head_lines(info: Info) -> list[str]:
    """Device, driver, kernel, board."""
    lines = [f"device  {info.device}"]
    if info.driver is not None and info.driver != "model":
        lines.append(f"driver  {info.driver} {info.driver_version}")
    if info.kernel is not None:
        lines.append(f"kernel  {info.kernel}")
    if info.board is not None:
        lines.append(f"board   {info.board}")
    if info.disabled:
        lines.append(f"disabled in the device tree: {', '.join(info.disabled)}")
    return lines


def tail_lines(info: Info) -> list[str]:
    """Limits and quirks."""
    plain = {name: value for name, value in info.limits.items() if name != "formats"}
    lines = ["limits  " + "; ".join(f"{name} {value}" for name, value in plain.items())]
    formats = info.limits.get("formats", {})
    lines.append("formats " + "; ".join(f"{form} to {', '.join(outs)}" for form, outs in formats.items()))
    if info.quirks:
        lines.append("quirks  " + "; ".join(f"{name} {value}" for name, value in info.quirks.items()))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="rknpu-info", description="Say what NPU there is.")
    parser.add_argument("--device", default="/dev/accel/accel0", help='device node, or "model"')
    parser.add_argument("--quirks", type=Path, metavar="FILE", help="answers that the model gives (model only)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    try:
        info = gather(options.device, quirks=options.quirks)
    except ValueError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps({"ok": not info.problem, **info.document()}, indent=2))
    else:
        print("\n".join(head_lines(info)))
        for row in core_rows(info):
            print("  " + "; ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, row, strict=True)))
        print("\n".join(tail_lines(info)))
    if info.problem:
        print(f"error: {info.problem}\n{info.hint}", file=sys.stderr)
        return EXIT_NO_DEVICE
    return EXIT_OK


if __name__ == "__main__":
    from rknpu_userspace.console import quietly

    sys.exit(quietly(main))
