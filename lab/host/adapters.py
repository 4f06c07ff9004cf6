# SPDX-License-Identifier: MIT
"""Serial adapters and boards on USB: are they fit for an RK3588's console, and may this user open them?

Every path is below ``Host.root``, so that a test can lay out a host of its own.
"""

from __future__ import annotations

import grp
import os
from dataclasses import dataclass
from pathlib import Path

from lab.host import Check

RULES = "70-npulab.rules"
SHIPPED_RULES = f"lab/labgrid/examples/{RULES}"
VENDOR, PRODUCT = "2207", "350b"
"""Rockchip's RK3588 in mask ROM and loader mode."""


@dataclass(frozen=True)
class Chip:
    """A USB serial chip: what it is, and whether it does 1.5 Mbaud (None: depends on the exact part)."""

    name: str
    fast: bool | None
    note: str = ""


CHIPS = {
    ("0403", "6001"): Chip("FTDI FT232R", True),
    ("0403", "6010"): Chip("FTDI FT2232", True),
    ("0403", "6011"): Chip("FTDI FT4232H", True),
    ("0403", "6014"): Chip("FTDI FT232H", True),
    ("0403", "6015"): Chip("FTDI FT-X", True),
    ("10c4", "ea60"): Chip("Silicon Labs CP210x", None, "a CP2102N does 3 Mbaud, a CP2102 ends at 1 Mbaud"),
    ("067b", "2303"): Chip("Prolific PL2303", None, "an HXD does 12 Mbaud, older ones end at 1.2 Mbaud"),
    ("1a86", "7523"): Chip("WCH CH340", False, "it loses bytes at 1.5 Mbaud"),
    ("1a86", "5523"): Chip("WCH CH341", False, "it loses bytes at 1.5 Mbaud"),
    ("1a86", "55d3"): Chip("WCH CH343", True),
    ("1a86", "55d4"): Chip("WCH CH9102", True),
    ("2341", "0043"): Chip("Arduino Uno", False, "no adapter for a board's console"),
}
"""USB ids of the kernel's drivers (drivers/usb/serial/{ftdi_sio,cp210x,pl2303,ch341}.c); speeds of the data sheets."""


@dataclass(frozen=True)
class Host:
    """Where this host's files are, and who asks."""

    root: Path = Path("/")
    uid: int = -1
    groups: frozenset[str] = frozenset()

    @staticmethod
    def this() -> Host:
        """The host we run on."""
        names = set()
        for number in {*os.getgroups(), os.getegid()}:
            try:
                names.add(grp.getgrgid(number).gr_name)
            except KeyError:
                continue  # a group without a name cannot be in a rule either
        return Host(Path("/"), os.geteuid(), frozenset(names))

    def path(self, absolute: str) -> Path:
        """A path of this host."""
        return self.root / absolute.lstrip("/")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _usb_device(tty: Path) -> Path | None:
    """The USB device that a tty belongs to: the first parent with an ``idVendor``."""
    place = (tty / "device").resolve()
    while place != place.parent:
        if (place / "idVendor").is_file():
            return place
        place = place.parent
    return None


def _accessible(host: Host, device: Path) -> str:
    """Why this user cannot open a device; empty when it can."""
    try:
        state = device.stat()
    except OSError:
        return f"{device.name} is not in /dev"
    if host.uid == 0 or os.access(device, os.R_OK | os.W_OK):
        return ""
    try:
        group = grp.getgrgid(state.st_gid).gr_name
    except KeyError:
        group = str(state.st_gid)
    if group in host.groups:
        return f"group {group} may not write to it"
    return f"it belongs to group {group}"


def serial_adapters(host: Host) -> list[Check]:
    """One line per USB serial adapter; one line that says so when there is none."""
    found = []
    for tty in sorted(host.path("/sys/class/tty").glob("tty[UA][SC][BM]*")):
        usb = _usb_device(tty)
        if usb is not None:
            found.append(_adapter(host, tty.name, usb))
    if not found:
        return [Check("serial adapters", True, "none: the virtual board needs none", needed=False)]
    return found


def _adapter(host: Host, name: str, usb: Path) -> Check:
    ids = (_read(usb / "idVendor"), _read(usb / "idProduct"))
    chip = CHIPS.get(ids, Chip(f"unknown chip {ids[0]}:{ids[1]}", None, "try it at 1500000 baud"))
    product = _read(usb / "product")
    fast = True if "CP2102N" in product else chip.fast
    what = f"{chip.name}{f' ({product})' if product else ''}"
    problem = _accessible(host, host.path("/dev") / name)
    todo = ""
    if fast is False:
        todo = f"{chip.note}; take an FT232R, FT232H, CP2102N or CH343 for the console (1.5 Mbaud)"
    elif problem:
        todo = (
            f"{problem}: sudo usermod -aG {problem.split()[-1]} $USER, then log in again"
            if "group" in problem
            else problem
        )
    elif fast is None:
        todo = chip.note
    return Check(f"adapter {name}", fast is not False and not problem, what, todo, needed=False)


def usb_boards(host: Host) -> list[Check]:
    """RK3588 boards in USB download mode, and whether they can be opened."""
    checks = []
    for device in sorted(host.path("/sys/bus/usb/devices").glob("*")):
        if _read(device / "idVendor") != VENDOR or _read(device / "idProduct") != PRODUCT:
            continue
        bus, number = _read(device / "busnum"), _read(device / "devnum")
        node = host.path("/dev/bus/usb") / f"{int(bus or 0):03}" / f"{int(number or 0):03}"
        problem = _accessible(host, node)
        todo = f"{problem}: sudo cp {SHIPPED_RULES} /etc/udev/rules.d/; sudo udevadm control --reload; plug it in again"
        checks.append(
            Check(f"board at {device.name}", not problem, "RK3588 on USB", todo if problem else "", needed=False)
        )
    return checks or [Check("boards on USB", True, "none in mask ROM or loader mode", needed=False)]


def udev_rules(host: Host) -> Check:
    """Whether some rule lets users open boards on USB."""
    folders = [host.path(path) for path in ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d")]
    rules = [path for folder in folders for path in sorted(folder.glob("*.rules"))]
    fitting = [path for path in rules if VENDOR in (text := _read(path)) and PRODUCT in text]
    if host.uid == 0:
        return Check("udev rules", True, "not needed as root", needed=False)
    todo = f"for real boards: sudo cp {SHIPPED_RULES} /etc/udev/rules.d/; sudo udevadm control --reload"
    found = fitting[0].name if fitting else f"no rule names {VENDOR}:{PRODUCT}"
    return Check("udev rules", bool(fitting), found, "" if fitting else todo, needed=False)


def modem_manager(host: Host) -> Check:
    """ModemManager opens new serial ports and types into them, a board's console too."""
    running = any(_read(path) == "ModemManager" for path in host.path("/proc").glob("[0-9]*/comm"))
    todo = f"it types into a board's console: use {SHIPPED_RULES} (ID_MM_DEVICE_IGNORE), or stop it"
    return Check(
        "ModemManager", not running, "runs" if running else "does not run", todo if running else "", needed=False
    )
