# SPDX-License-Identifier: MIT
"""What was tested: kernel, NPU and identity, asked of the board itself with one script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lab import boards
from lab.errors import KitError
from lab.firmware.store.store import Store, default_root
from lab.firmware.transports.linux import LinuxTransport
from lab.report.kmsg import Record

SCRIPT_SECONDS = 60.0
PLACE = "/tmp/npulab-facts"
CONSOLE_STEP, SSH_STEP = 600, 24_000
"""Characters of a command line: busybox's line editor takes 1024 on a console."""

HELPERS = r"""
get() { [ -r "$1" ] && tr '\000\n|' '   ' < "$1"; }
row() { echo "$1|$(get "$2")"; }
"""
FACTS = r"""
echo "release|$(uname -r)"; echo "version|$(uname -v)"; echo "cpus|$(nproc)"
row model /proc/device-tree/model; row compatible /proc/device-tree/compatible; row cmdline /proc/cmdline
row srcversion /sys/module/rocket/srcversion; echo "python|$(python3 -V 2>&1)"
while read -r key value _; do [ "$key" = MemTotal: ] && echo "memory|$value"; done < /proc/meminfo
"""
STATE = r"""
row taint /proc/sys/kernel/tainted
[ -e /sys/kernel/debug/devices_deferred ] || mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
for d in /sys/bus/platform/devices/*.npu; do [ -e "$d" ] || continue
  link() { [ -e "$d/$1" ] && basename "$(readlink "$d/$1")"; }
  n=${d##*/}; p=$d/power
  echo "core|${n%.npu}|$(link driver)|$(get $p/runtime_status)|$(link iommu)|$(link iommu_group)|$(get $p/control)"
done
sed 's/^/genpd|/' /sys/kernel/debug/pm_genpd/pm_genpd_summary 2>/dev/null
for d in /sys/class/thermal/thermal_zone*; do [ -e "$d/temp" ] && echo "temperature|$(get $d/type)|$(get $d/temp)"; done
sed 's/^/deferred|/' /sys/kernel/debug/devices_deferred 2>/dev/null
echo "end|"
"""


class Shell(Protocol):
    """Something that runs a command on the board."""

    def run(self, command: str, timeout: float = 60.0) -> tuple[list[str], int]:
        """Lines and exit code."""


def run_script(shell: Shell, script: str, step: int = CONSOLE_STEP) -> list[str]:
    """The output of a shell script, brought to the board in pieces that any console takes."""
    text = base64.b64encode(script.encode()).decode()
    for start in range(0, len(text), step):
        redirect = ">>" if start else ">"
        shell.run(f"printf %s {text[start : start + step]} {redirect} {PLACE}", timeout=SCRIPT_SECONDS)
    lines, _ = shell.run(f"base64 -d {PLACE} | sh; rm -f {PLACE}", timeout=SCRIPT_SECONDS)
    return lines


class _Remote:
    """The board's shell as the firmware transports want one."""

    name = "the board under test"

    def __init__(self, shell: Shell, step: int) -> None:
        self._shell, self.step = shell, step

    def run(self, script: str, stdin: bytes = b"", *, timeout: float = 30) -> bytes:
        return "\n".join(run_script(self._shell, script, self.step)).encode()

    def stream(self, script: str) -> None:
        return None

    def close(self) -> None:
        """Nothing to end."""


def _rows(lines: Sequence[str]) -> list[list[str]]:
    return [[field.strip() for field in line.split("|")] for line in lines if "|" in line]


def parse_domains(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Power domains of ``pm_genpd_summary`` (linux drivers/pmdomain/core.c): a domain's line begins in the first
    column, its devices' lines are indented, and so are lists of its children."""
    domains: list[dict[str, Any]] = []
    for line in lines:
        words = line.split()
        if not words or words[0] in ("domain", "/device") or set(line.strip()) == {"-"}:
            continue
        if not line.startswith(" "):
            domains.append({"name": words[0], "state": words[1] if len(words) > 1 else "", "devices": []})
        elif domains and len(words) > 1 and words[1] in ("active", "suspended", "suspending", "resuming", "error"):
            domains[-1]["devices"].append(words[0])
    return domains


def parse_npu(lines: Sequence[str]) -> dict[str, Any]:
    """Cores, their IOMMUs and power domains, from the output of `STATE`."""
    domains = parse_domains([line.partition("|")[2] for line in lines if line.startswith("genpd|")])
    by_device = {device: domain for domain in domains for device in domain["devices"]}
    cores = []
    for row in _rows(lines):
        if row[0] != "core" or len(row) < 7:
            continue
        _, address, driver, status, iommu, group, control = row[:7]
        domain = by_device.get(f"{address}.npu", {})
        cores.append(
            {
                "address": address,
                "driver": driver,
                "status": status,
                "control": control,
                "iommu": iommu.removesuffix(".iommu"),
                "iommu_group": group,
                "domain": domain.get("name", ""),
                "domain_state": domain.get("state", ""),
                "version": "",
            }
        )
    npu = [domain for domain in domains if any(device.endswith((".npu", ".iommu")) for device in domain["devices"])]
    names = {domain["name"] for domain in npu}
    npu += [domain for domain in domains if "npu" in domain["name"] and domain["name"] not in names]
    return {"cores": cores, "domains": npu}


def read_state(shell: Shell, *, fast: bool) -> dict[str, Any]:
    """What changes: taint, the NPU's power, temperatures in degrees Celsius."""
    step = SSH_STEP if fast else CONSOLE_STEP
    return _state(run_script(shell, HELPERS + STATE, step))


def _state(lines: Sequence[str]) -> dict[str, Any]:
    rows = _rows(lines)
    values = {row[0]: row[1] for row in rows if len(row) == 2}
    found = [(row[1], row[2]) for row in rows if row[0] == "temperature" and len(row) > 2]
    temperatures = {name: int(value) / 1000 for name, value in found if value.lstrip("-").isdecimal()}
    taint = values.get("taint", "")
    return {
        "taint": int(taint) if taint.isdecimal() else None,
        "npu": parse_npu(lines),
        "temperatures": temperatures,
        "deferred": [row[1].split()[0] for row in rows if row[0] == "deferred" and row[1]],
    }


def read_facts(shell: Shell, boot: Sequence[Record], *, fast: bool, virtual: bool) -> dict[str, Any]:
    """Board, kernel and NPU for the results. ``fast``: the link takes long command lines; ``boot``: the kernel's log
    since its start, for the versions that the driver has read."""
    step = SSH_STEP if fast else CONSOLE_STEP
    lines = run_script(shell, HELPERS + FACTS + STATE, step)
    values = {row[0]: row[1] for row in _rows(lines) if len(row) == 2}
    state = _state(lines)
    for number, core in enumerate(state["npu"]["cores"]):
        found = [r.text for r in boot if f"{core['address']}.npu" in r.text and "version:" in r.text]
        core["version"] = found[-1].rpartition("version:")[2].strip() if found else ""
        core["number"] = number
    compatible = values.get("compatible", "").split()
    name = _name(compatible, virtual=virtual)
    identity, note = _identity(shell, name, step)
    return {
        "board": {
            "name": name,
            "model": values.get("model", ""),
            "compatible": compatible,
            "virtual": virtual,
            "cpus": int(values["cpus"]) if values.get("cpus", "").isdecimal() else None,
            "memory_kib": int(values["memory"]) if values.get("memory", "").isdecimal() else None,
            "python": values.get("python", ""),
            "identity": identity,
            "identity_note": note,
            "backup": _backup(identity) if identity and not virtual else None,
        },
        "kernel": {
            "release": values.get("release", ""),
            "version": values.get("version", ""),
            "cmdline": values.get("cmdline", ""),
            "srcversion": values.get("srcversion", ""),
            "taint": state["taint"],
        },
        "npu": state["npu"],
        "temperatures": state["temperatures"],
    }


def _name(compatible: Sequence[str], *, virtual: bool) -> str:
    """The kit's name for the board, or nothing."""
    if virtual:
        return "virt"
    for name in boards.names():
        board = boards.load(name)
        if not board.virtual and board.compatible[0] in compatible[:1]:
            return name
    return ""


def _identity(shell: Shell, name: str, step: int) -> tuple[dict[str, str], str]:
    if not name:
        return {}, "the kit does not know this board"
    try:
        return dict(LinuxTransport(boards.load(name), _Remote(shell, step)).identify()), ""
    except KitError as error:
        return {}, error.message


def _backup(identity: dict[str, str], root: Path | None = None) -> dict[str, Any] | None:
    """The newest backup of that very board in the user's store."""
    try:
        found = Store(root or default_root()).of_device(identity, [key.partition(":")[2] for key in identity])
    except (KitError, OSError):
        return None
    if not found:
        return None
    newest = found[0]
    return {
        "id": newest.id,
        "created": newest.created,
        "verified": newest.verified,
        "complete": newest.complete,
    }
