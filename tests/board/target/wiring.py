# SPDX-License-Identifier: MIT
"""How the kernel sees the NPU: its device tree's references followed, sysfs and debugfs beside them, as JSON."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

TREE = Path("/proc/device-tree")
DEVICES = Path("/sys/bus/platform/devices")
DEBUG = Path("/sys/kernel/debug")
CORES = ("fdab0000", "fdac0000", "fdad0000")


def cells(path: Path) -> list[int]:
    """A property of 32-bit big-endian numbers."""
    data = path.read_bytes() if path.exists() else b""
    return list(struct.unpack(f">{len(data) // 4}I", data[: len(data) // 4 * 4]))


def words(path: Path) -> list[str]:
    """A property of strings."""
    return path.read_bytes().decode().rstrip("\0").split("\0") if path.exists() else []


def nodes() -> dict[int, Path]:
    """Every node of the tree by its phandle."""
    found = {}
    for folder, _, names in os.walk(TREE):
        if "phandle" in names:
            found[cells(Path(folder) / "phandle")[0]] = Path(folder)
    return found


def core(address: str, known: dict[int, Path]) -> dict[str, Any]:
    """One core."""
    node, device = TREE / f"npu@{address}", DEVICES / f"{address}.npu"

    def name(phandle: int) -> str:
        return str(known[phandle].relative_to(TREE)) if phandle in known else ""

    supplies = {path.name: name(cells(path)[0]) for path in sorted(node.glob("*-supply"))}
    domain = cells(node / "power-domains")
    suppliers = sorted(path.name.removeprefix("supplier:") for path in device.glob("supplier:*"))
    return {
        "modalias": (device / "modalias").read_text().strip(),
        "reg_names": words(node / "reg-names"),
        "clock_names": words(node / "clock-names"),
        "clock_providers": sorted({name(cell) for cell in cells(node / "clocks")[::2]}),
        "reset_names": words(node / "reset-names"),
        "resets": len(cells(node / "resets")) // 2,
        "iommu": [name(cell) for cell in cells(node / "iommus")],
        "domain": name(domain[0]) if domain else "",
        "supplies": supplies,
        "suppliers": suppliers,
    }


def clock_rate() -> int | None:
    """Rate of the clock that firmware gives the NPU's arithmetic, in Hz."""
    path = DEBUG / "clk/scmi_clk_npu/clk_rate"
    return int(path.read_text()) if path.exists() else None


def domains() -> dict[str, list[str]]:
    """Power domains of the NPU and the devices in them."""
    found: dict[str, list[str]] = {}
    for name in ("npu", "nputop", "npu1", "npu2"):
        path = DEBUG / "pm_genpd" / name / "devices"
        if path.exists():
            found[name] = sorted(re.findall(r"\S+", path.read_text()))
    return found


def main() -> None:
    """All of it."""
    known = nodes()
    interrupts = [line.split() for line in Path("/proc/interrupts").read_text().splitlines() if ".npu" in line]
    modules = [str(path) for path in Path("/sys/bus/platform/drivers/rocket").glob("module")]
    print(
        json.dumps(
            {
                "cores": {address: core(address, known) for address in CORES},
                "interrupts": {line[-1]: " ".join(line[-4:-1]) for line in interrupts},
                "clock_rate": clock_rate(),
                "domains": domains(),
                "modules": modules,
            }
        )
    )


main()
