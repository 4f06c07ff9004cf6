# SPDX-License-Identifier: MIT
"""What the NPU hangs on in a device tree: cores, IOMMUs, power domains, clocks, resets, supplies, and what is wrong.

Every reference is followed until it ends at an enabled node. An ``error`` keeps the NPU from working with mainline's
rocket driver; a ``warning`` names something that works only by luck or for a while. Evidence: linux
Documentation/devicetree/bindings/npu/rockchip,rk3588-rknn-core.yaml, drivers/accel/rocket/rocket_core.c,
drivers/pmdomain/rockchip/pm-domains.c (``need_regulator`` of the NPU), drivers/regulator/core.c
(``regulator_late_cleanup``), drivers/of/property.c (supplies become device links).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from lab.kernel.fdtree import Node, Reference, Tree

CORE = "rockchip,rk3588-rknn-core"
VENDOR_CORE = "rockchip,rk3588-rknpu"
"""The vendor kernel's single node for all three cores; mainline has no driver for it."""
IOMMU_DRIVER = "rockchip,rk3568-iommu"
"""The compatible that the mainline IOMMU driver matches; rk3588's nodes name it as their second."""
CORE_ADDRESSES = (0xFDAB0000, 0xFDAC0000, 0xFDAD0000)
REGIONS = ("pc", "cna", "core")
CLOCKS = ("aclk", "hclk", "npu", "pclk")
RESETS = ("srst_a", "srst_h")
SUPPLIES = ("npu-supply", "sram-supply")
RATE_HZ = 200_000_000
"""The only NPU clock rate that firmware reaches without touching registers inside the powered-down domain."""


@dataclass(frozen=True)
class Finding:
    """Something wrong: how bad, where, what, and what it means."""

    level: str
    path: str
    what: str
    why: str


@dataclass(frozen=True)
class Edge:
    """A reference from one node to another. ``target`` is a path, empty when it leads nowhere."""

    source: str
    target: str
    kind: str
    label: str
    ok: bool


@dataclass
class Graph:
    """The NPU's part of a device tree."""

    model: str
    compatible: list[str]
    symbols: bool
    cores: list[str] = field(default_factory=list)
    disabled_cores: list[str] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    """Path to kind of node: core, iommu, domain, clock, reset, supply, controller."""

    @property
    def state(self) -> str:
        """``enabled`` (every core), ``partial``, ``disabled`` or ``absent``."""
        if not self.cores:
            return "disabled" if self.disabled_cores else "absent"
        return "partial" if self.disabled_cores else "enabled"

    @property
    def errors(self) -> list[Finding]:
        """What keeps the NPU from working."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def ok(self) -> bool:
        """All cores enabled and nothing missing."""
        return self.state == "enabled" and not self.errors

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "model": self.model,
            "compatible": self.compatible,
            "npu": self.state,
            "ok": self.ok,
            "symbols": self.symbols,
            "cores": self.cores,
            "disabled_cores": self.disabled_cores,
            "findings": [asdict(finding) for finding in self.findings],
            "edges": [asdict(edge) for edge in self.edges],
        }


def examine(tree: Tree) -> Graph:
    """The NPU's graph of a tree of any board."""
    return _Examiner(tree).run()


class _Examiner:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.graph = Graph(tree.model, tree.compatible, tree.has_symbols)
        self._done: set[str] = set()

    def run(self) -> Graph:
        for core in self.tree.matching(CORE):
            (self.graph.cores if core.enabled else self.graph.disabled_cores).append(core.path)
        self._presence()
        for path in self.graph.cores + self.graph.disabled_cores:
            self._core(self.tree.by_path[path])
        self.graph.findings = list(dict.fromkeys(self.graph.findings))
        self.graph.edges = list(dict.fromkeys(self.graph.edges))
        return self.graph

    def error(self, node: Node | str, what: str, why: str) -> None:
        self._find("error", node, what, why)

    def warn(self, node: Node | str, what: str, why: str) -> None:
        self._find("warning", node, what, why)

    def _find(self, level: str, node: Node | str, what: str, why: str) -> None:
        path = node if isinstance(node, str) else node.path
        self.graph.findings.append(Finding(level, path, what, why))

    # --- the cores ---------------------------------------------------------------------------------------------------

    def _presence(self) -> None:
        graph = self.graph
        vendor = [node for node in self.tree.matching(VENDOR_CORE) if node.enabled]
        if vendor:
            self.error(
                vendor[0],
                f"the NPU is described as {VENDOR_CORE}",
                "that is the vendor kernel's node; mainline's rocket driver does not bind to it: boot mainline's dtb",
            )
        if not graph.cores and not graph.disabled_cores:
            why = "mainline trees have the nodes from 6.18 on: this tree comes from an older or a vendor kernel"
            self.error("/", f"there is no {CORE} node", why)
        for path in graph.disabled_cores:
            self.error(path, "the core is disabled", "the driver does not see it: use a newer dtb, or an overlay")
        have = {int(path.rsplit("@", 1)[-1], 16) for path in graph.cores + graph.disabled_cores if "@" in path}
        for address in CORE_ADDRESSES if have else ():
            if address not in have:
                self.error("/", f"there is no core at {address:x}", "the RK3588 has three; the others still work")
        order = [int(path.rsplit("@", 1)[-1], 16) for path in graph.cores if "@" in path]
        if order != sorted(order):
            self.warn("/", "the cores are not in address order", "the driver numbers them in the order they are probed")

    def _core(self, core: Node) -> None:
        self.graph.kinds[core.path] = "core"
        names = core.strings("reg-names")
        for region in REGIONS:
            if region not in names:
                self.error(core, f"reg-names lacks {region}", "the driver maps its registers by name")
        if not core.words("interrupts") and "interrupts-extended" not in core.properties:
            self.error(core, "it has no interrupt", "no job would ever complete")
        self._clocks(core, CLOCKS)
        self._resets(core)
        for reference in self._expect(core, "iommus", "#iommu-cells", "iommu"):
            if reference.target is not None:
                self._iommu(reference.target)
        self._power(core)
        for supply in SUPPLIES:
            self._supply(core, supply, "the binding requires it; the kernel waits for the regulator it names")
        self._rate(core)

    def _rate(self, core: Node) -> None:
        rates = core.words("assigned-clock-rates")
        for rate in rates:
            if rate > RATE_HZ:
                self.warn(
                    core,
                    f"assigned-clock-rates asks for {rate / 1e6:.0f} MHz",
                    "applied while the domain is off; above 200 MHz firmware writes registers inside that domain",
                )

    def _resets(self, core: Node) -> None:
        self._named(core, "reset-names", RESETS, "the driver takes its resets by name")
        for index, reference in enumerate(self._expect(core, "resets", "#reset-cells", "reset")):
            label = (core.strings("reset-names")[index : index + 1] or ["reset"])[0]
            if reference.target is not None:
                self._provider(core, reference.target, "reset", label)

    # --- what they need ----------------------------------------------------------------------------------------------

    def _clocks(self, node: Node, names: Iterable[str] = ()) -> None:
        if names:
            self._named(node, "clock-names", names, "the binding names them")
            given = node.strings("clock-names")
            if given and given[0] != "aclk" and "aclk" in given:
                why = "up to 7.3 the driver takes the first clock whatever its name is"
                self.warn(node, "aclk is not the first clock", why)
        labels = node.strings("clock-names")
        for index, reference in enumerate(self._expect(node, "clocks", "#clock-cells", "clock")):
            label = (labels[index : index + 1] or [str(index)])[0]
            if reference.target is None:
                continue
            number = ",".join(str(argument) for argument in reference.arguments)
            self._provider(node, reference.target, "clock", f"{label} {number}".strip())

    def _provider(self, node: Node, target: Node, kind: str, label: str) -> None:
        self.graph.kinds.setdefault(target.path, kind)
        if not self._once(f"{kind} {target.path}"):
            return
        protocol = target.parent
        if kind == "clock" and protocol is not None and "arm,scmi-smc" in protocol.strings("compatible"):
            for reference in self._expect(protocol, "shmem", None, "shmem"):
                if reference.target is not None:
                    self.graph.kinds.setdefault(reference.target.path, "controller")

    def _iommu(self, iommu: Node) -> None:
        self.graph.kinds[iommu.path] = "iommu"
        if not self._once(iommu.path):
            return
        if IOMMU_DRIVER not in iommu.strings("compatible"):
            found = ", ".join(iommu.strings("compatible"))
            self.error(iommu, f"compatible is {found}", f"mainline's driver matches {IOMMU_DRIVER}")
        if iommu.words("#iommu-cells")[:1] != [0]:
            self.error(iommu, "#iommu-cells is not 0", "the reference of the core cannot be resolved")
        self._clocks(iommu)
        self._power(iommu)

    def _power(self, node: Node) -> None:
        for reference in self._expect(node, "power-domains", "#power-domain-cells", "power-controller"):
            controller = reference.target
            if controller is None or not reference.arguments:
                continue
            self.graph.kinds[controller.path] = "controller"
            number = reference.arguments[0]
            domain = next((child for child in controller.walk() if child.words("reg") == [number]), None)
            if domain is None or domain is controller:
                why = "the power controller cannot switch the NPU on; the core is never probed"
                self.error(node, f"power domain {number} has no node", why)
                continue
            self._edge(node, domain, "power-domains", f"domain {number}", domain.enabled)
            self._domains(domain, controller, node)

    def _domains(self, domain: Node, controller: Node, user: Node) -> None:
        """The chain of domains up to the controller; the outermost has the supply."""
        while True:
            self.graph.kinds[domain.path] = "domain"
            if not domain.enabled:
                self.error(domain, "the power domain is disabled", f"{user.path} is never probed")
            if self._once(domain.path) and "clocks" in domain.properties:
                self._clocks(domain)
            parent = domain.parent
            if parent is None or parent is controller:
                break
            self._edge(domain, parent, "parent", "inside", True)
            domain = parent
        if not self._once(f"supply of {domain.path}"):
            return
        self._edge(domain, controller, "parent", "of", controller.enabled)
        if "domain-supply" in domain.properties:
            self._supply(domain, "domain-supply", "")
        else:
            self._unsupplied(domain, user)

    def _unsupplied(self, domain: Node, user: Node) -> None:
        rails = self._npu_rails(user)
        always = [rail for rail in rails if "regulator-always-on" in rail.properties]
        rail = (always or rails)[0].path if rails else "the NPU's rail"
        why = f"{rail} is not always on: the kernel cuts unused rails 30 s after boot, under the NPU"
        if always:
            why = f"works only because {rail} is always on: the kernel cannot switch the NPU's rail"
        self.warn(domain, "it has no domain-supply", why)

    def _npu_rails(self, user: Node) -> list[Node]:
        """The cores' regulator; without one, what is called an NPU's rail."""
        for node in (user, *self.tree.matching(CORE)):
            for reference in self.tree.references(node, SUPPLIES[0], None):
                if reference.target is not None:
                    return [reference.target]
        return [node for node in self.tree.nodes if "npu" in "".join(node.strings("regulator-name"))]

    def _supply(self, node: Node, name: str, why: str) -> None:
        if name not in node.properties:
            self.warn(node, f"it has no {name}", why)
            return
        for reference in self._expect(node, name, None, "regulator"):
            target = reference.target
            if target is None:
                continue
            self.graph.kinds[target.path] = "supply"
            if not self._once(target.path):
                continue
            if "regulator-name" not in target.properties and "regulator-fixed" not in target.strings("compatible"):
                self.error(target, f"{name} of {node.path} names it, but it is no regulator", "see the board's dts")
            if "vin-supply" in target.properties:
                self._supply(target, "vin-supply", "")

    # --- following ---------------------------------------------------------------------------------------------------

    def _once(self, key: str) -> bool:
        if key in self._done:
            return False
        self._done.add(key)
        return True

    def _edge(self, source: Node, target: Node | None, kind: str, label: str, ok: bool) -> None:
        self.graph.edges.append(Edge(source.path, target.path if target else "", kind, label, ok))

    def _named(self, node: Node, prop: str, wanted: Iterable[str], why: str) -> None:
        have = node.strings(prop)
        for name in wanted:
            if name not in have:
                self.error(node, f"{prop} lacks {name}", why)

    def _expect(self, node: Node, name: str, cells: str | None, what: str) -> list[Reference]:
        """Follow a property that must be there and lead to enabled nodes."""
        if name not in node.properties:
            self.error(node, f"it has no {name}", f"the device is not complete without its {what}")
            return []
        references = self.tree.references(node, name, cells)
        if not references:
            self.error(node, f"{name} is empty", f"the device is not complete without its {what}")
        for reference in references:
            target = reference.target
            label = name.removesuffix("s") if cells else name
            self._edge(node, target, name, label, target is not None and target.enabled)
            if target is None:
                why = f"no node has the phandle {reference.phandle:#x}; the device is never probed"
                self.error(node, f"{name} leads nowhere", why)
                continue
            blocked = target.disabled_at
            if blocked is not None:
                where = "it" if blocked is target else blocked.path
                why = f"{where} has status {blocked.own_status}: the device waits for it for ever"
                self.error(node, f"{name}: {target.path} is disabled", why)
        return references
