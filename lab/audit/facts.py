# SPDX-License-Identifier: MIT
"""The facts about one kernel: driver, binding, device trees of every RK3588 board, fixes, configuration, other SoCs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lab.audit.table import BAD, GOOD, INFO, NONE, Cell, Fact
from lab.cache import Cache
from lab.errors import KitError
from lab.kernel import check, dtsource, fdtree, graph, patches, uapi
from lab.kernel.parts import Kernel
from lab.output import Output

DRIVER = "drivers/accel/rocket"
BINDING = "Documentation/devicetree/bindings/npu/rockchip,rk3588-rknn-core.yaml"
BASE_DTSI = "arch/arm64/boot/dts/rockchip/rk3588-base.dtsi"
OLD_DTSI = "arch/arm64/boot/dts/rockchip/rk3588s.dtsi"
DOMAINS = "drivers/pmdomain/rockchip/pm-domains.c"
DEFCONFIG = "arch/arm64/configs/defconfig"
SYMBOLS = ("CONFIG_DRM_ACCEL", "CONFIG_DRM_ACCEL_ROCKET")
KIT_BOARDS = ("rk3588-rock-5-itx", "rk3588s-orangepi-5")
"""Boards that the kit stands on: a kernel in which their NPU goes off is a regression."""

EXTRA_FIXES = (
    (
        "IOMMU: stale page fault acknowledged, operations per device",
        patches.Probe("drivers/iommu/rockchip-iommu.c", re.compile(r"iommu->rk_ops")),
    ),
)
"""Changes in mainline that no patch of the kit carries back."""


def facts(kernel: Kernel, config: Path | None, cache: Cache, out: Output) -> Iterator[Fact]:
    """Every fact about a kernel. ``config``: the distribution's configuration, when there is one."""
    if not kernel.built:
        yield from _driver(kernel)
        yield from _soc(kernel)
    yield from _boards(kernel, cache, out)
    if not kernel.built:
        yield from _fixes(kernel)
        yield from _defconfig(kernel)
    yield from _distribution(kernel, config)
    if not kernel.built:
        yield from _others(kernel)


def find(kernel: Kernel, name: str, pattern: str) -> tuple[re.Match[str] | None, str]:
    """First match of a multi-line pattern in a file, and its ``file:line`` (or why there is none)."""
    text = kernel.text(name)
    if text is None:
        return None, f"no {name}"
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        return None, f"not in {name}"
    return match, f"{name}:{text.count(chr(10), 0, match.start()) + 1}"


def present(kernel: Kernel, name: str, pattern: str, value: str = "yes") -> Cell:
    """Good with ``value`` when the pattern is in the file, bad otherwise."""
    match, evidence = find(kernel, name, pattern)
    return Cell(value if match else "no", GOOD if match else BAD, evidence)


# --- driver and SoC --------------------------------------------------------------------------------------------------


def _driver(kernel: Kernel) -> Iterator[Fact]:
    group = "driver"
    yield Fact(group, "driver", "rocket driver", present(kernel, f"{DRIVER}/Kconfig", "config DRM_ACCEL_ROCKET"), True)
    text = kernel.text(f"{DRIVER}/rocket_drv.c") or ""
    table = re.search(r"of_device_id \w+\[\] = \{(.*?)\};", text, re.DOTALL)
    names = re.findall(r'compatible = "([^"]+)"', table[1]) if table else []
    evidence = f"{DRIVER}/rocket_drv.c, of_device_id"
    cell = (
        Cell(", ".join(names), GOOD if graph.CORE in names else BAD, evidence) if names else Cell("no", BAD, evidence)
    )
    yield Fact(group, "compatibles", "compatibles it binds to", cell, True)
    yield Fact(group, "maintainers", "MAINTAINERS entry", present(kernel, "MAINTAINERS", rf"^F:\s+{DRIVER}/?$"))
    yield Fact(group, "binding", "device tree binding", present(kernel, BINDING, graph.CORE), True)
    header = kernel.text(uapi.HEADER)
    try:
        interface = uapi.parse(header) if header is not None else None
    except ValueError as error:
        yield Fact(group, "uapi", "user interface", Cell("not understood", BAD, f"{uapi.HEADER}: {error}"), True)
        return
    if interface is None:
        missing = Cell("no", BAD, f"no {uapi.HEADER}")
        yield Fact(group, "uapi", "user interface: ioctls", missing, True)
        yield Fact(group, "uapi-hash", "user interface: hash without comments", missing)
        return
    ioctls = ", ".join(f"{name} {number:#x}" for name, number in interface.ioctls.items())
    yield Fact(group, "uapi", "user interface: ioctls", Cell(ioctls, GOOD, uapi.HEADER), True)
    cell = Cell(interface.fingerprint, INFO, f"{uapi.HEADER}, comments stripped")
    yield Fact(group, "uapi-hash", "user interface: hash without comments", cell)


def _soc(kernel: Kernel) -> Iterator[Fact]:
    group = "RK3588 device tree"
    base = BASE_DTSI if kernel.text(BASE_DTSI) is not None else OLD_DTSI
    yield Fact(group, "pd-npu", "power domain label pd_npu", present(kernel, base, r"pd_npu:\s*power-domain@"), True)
    text = kernel.text(base) or ""
    for key, title, pattern in (
        ("npu-nodes", "NPU core nodes", r"npu@fd[0-9a-f]+ \{"),
        ("npu-iommus", "NPU IOMMU nodes", r"iommu@fda(?:b9|ca|da)000 \{"),
    ):
        count = len(re.findall(pattern, text))
        cell = Cell(str(count), GOOD if count == 3 else BAD, f"{base}, {pattern.split('@')[0]}@")
        yield Fact(group, key, title, cell, True)
    on, evidence = _switches_regulator(kernel, "RK3588")
    cell = Cell("yes" if on else "no", GOOD if on else BAD, evidence)
    yield Fact(group, "npu-regulator", "NPU domain switches its regulator", cell, True)


def _switches_regulator(kernel: Kernel, soc: str) -> tuple[bool, str]:
    """Whether the power domain of a SoC's NPU is marked as needing its regulator, and where that stands.

    The mark is the argument of the domain's macro whose parameter is called ``regulator``.
    """
    domain, evidence = find(kernel, DOMAINS, rf"\[{soc}_PD_NPU\]\s*=\s*DOMAIN_{soc}\((.*)\),\s*$")
    macro, _ = find(kernel, DOMAINS, rf"#define DOMAIN_{soc}\(([^)]*)\)")
    if domain is None or macro is None:
        return False, evidence
    names = [name.strip() for name in macro[1].split(",")]
    values = [value.strip() for value in domain[1].split(",")]
    marks = dict(zip(names, values, strict=False))
    return marks.get("regulator") == "true", evidence


# --- boards ----------------------------------------------------------------------------------------------------------


def _boards(kernel: Kernel, cache: Cache, out: Output) -> Iterator[Fact]:
    if kernel.built:
        trees = {path.stem: path for path in kernel.root.rglob("rk3588*.dtb")}
    else:
        folder = dtsource.compile_boards(kernel.root, cache, out, f"Linux {kernel.version}")
        trees = {path.stem: path for path in sorted(folder.iterdir())}
    order = [*[name for name in KIT_BOARDS if name in trees], *sorted(set(trees) - set(KIT_BOARDS))]
    for name in order:
        yield Fact("boards", f"board-{name}", name, board(trees[name]), name in KIT_BOARDS)


def board(path: Path) -> Cell:
    """The NPU of one board from its dtb (or the compiler's complaint)."""
    if path.suffix == ".error":
        return Cell("does not compile", BAD, path.read_text())
    try:
        found = graph.examine(fdtree.load_rk3588(path))
    except KitError as error:
        return Cell("no RK3588 board", NONE, error.message)
    if found.state == "absent":
        return Cell("no NPU nodes", BAD, f"{path.name}: no {graph.CORE}")
    if found.state == "disabled":
        return Cell("off", BAD, f"{path.name}: {found.disabled_cores[0]}/status")
    faults = [finding for finding in found.findings if finding.level == "error"]
    notes = [finding for finding in found.findings if finding.level == "warning"]
    if faults:
        return Cell(f"{len(found.cores)} cores, {faults[0].what}", BAD, f"{path.name}: {faults[0].path}")
    if notes:
        note = f"{path.name}: {notes[0].path}; {notes[0].why}"
        return Cell(f"{len(found.cores)} cores, {notes[0].what}", INFO, note)
    supply = next((edge for edge in found.edges if edge.kind == "domain-supply"), None)
    evidence = f"{path.name}: status of {', '.join(core.strip('/') for core in found.cores)}"
    if supply is not None:
        evidence += f"; domain-supply = {supply.target}"
    return Cell(f"{len(found.cores)} cores", GOOD, evidence)


# --- fixes, configuration, other SoCs --------------------------------------------------------------------------------


def _fixes(kernel: Kernel) -> Iterator[Fact]:
    carried = [patch for folder in ("6.18", "7.3") for patch in patches.read_series(patches.FOLDER / folder)]
    unique = {patch.subject: patch for patch in carried if patch.group == "fix"}
    has_driver = kernel.text(f"{DRIVER}/Kconfig") is not None
    rows = [(patch.subject, patch.probe, patch.status.split()[0]) for patch in unique.values()]
    rows += [(title, probe, "Backport") for title, probe in EXTRA_FIXES]
    for title, probe, status in sorted(rows, key=lambda row: row[2] != "Backport"):
        group = "fixes in mainline" if status == "Backport" else "defects still open in mainline 7.3"
        where = probe.find(kernel.root)
        cell = Cell("has it", GOOD, where) if where else Cell("lacks it", BAD, f"not in {probe.file}")
        if not has_driver:
            cell = Cell("no driver", NONE, f"no {DRIVER}")
        yield Fact(group, f"fix-{title}", title, cell, status == "Backport")


def _config_cell(values: dict[str, str], symbol: str, evidence: str) -> Cell:
    value = values.get(symbol, "n")
    return Cell(value, GOOD if value in ("y", "m") else BAD, f"{evidence}: {symbol}")


def _defconfig(kernel: Kernel) -> Iterator[Fact]:
    path = kernel.root / DEFCONFIG
    if not path.is_file():
        return
    values = check.read_config(path)
    for symbol in SYMBOLS:
        cell = _config_cell(values, symbol, DEFCONFIG)
        yield Fact("configuration", f"defconfig-{symbol}", f"arm64 defconfig: {symbol.removeprefix('CONFIG_')}", cell)


def _distribution(kernel: Kernel, config: Path | None) -> Iterator[Fact]:
    if config is None and kernel.built:
        config = check.collect(kernel.root).config
    if config is None:
        return
    values = check.read_config(config)
    for symbol in SYMBOLS:
        cell = _config_cell(values, symbol, config.name)
        title = f"Debian arm64: {symbol.removeprefix('CONFIG_')}"
        yield Fact("configuration", f"debian-{symbol}", title, cell)


def _others(kernel: Kernel) -> Iterator[Fact]:
    group = "other SoCs"
    dts = "arch/arm64/boot/dts/rockchip"
    rk356x = next((name for name in ("rk356x-base.dtsi", "rk356x.dtsi") if kernel.text(f"{dts}/{name}")), "rk356x.dtsi")
    for soc, dtsi in (("RK3576", "rk3576.dtsi"), ("RK3568", rk356x)):
        match, evidence = find(kernel, f"{dts}/{dtsi}", r"compatible = \"rockchip,rk35\d\d-rknn-core\"")
        cell = Cell("yes" if match else "no", INFO, evidence)
        yield Fact(group, f"node-{soc}", f"{soc}: NPU node", cell)
        match, evidence = find(kernel, f"{DRIVER}/rocket_drv.c", rf"rockchip,{soc.lower()}-rknn-core")
        yield Fact(group, f"driver-{soc}", f"{soc}: driver binds to it", Cell("yes" if match else "no", INFO, evidence))
        on, evidence = _switches_regulator(kernel, soc)
        cell = Cell("yes" if on else "no", INFO, evidence)
        yield Fact(group, f"regulator-{soc}", f"{soc}: NPU domain switches its regulator", cell)
