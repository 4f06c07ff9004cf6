# SPDX-License-Identifier: MIT
"""labgrid environment files, generated from the board files: one per board and way to reach it.

``virtual`` boots the board's device tree on the virtual board, ``local`` reaches a board on the desk by serial adapter,
switched supply and Ethernet, ``place`` takes whatever an acquired place of a labgrid coordinator has. The files of
`FOLDER` are the output of ``npulab board env --all``; a test compares them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lab import boards
from lab.boards import Board
from lab.errors import ExitCode, KitError

FOLDER = Path(__file__).parent / "env"
TRANSPORTS = ("virtual", "local", "place")
VIRTUAL = "virt"
"""The board file of the virtual board; it has no ``local`` environment."""


@dataclass(frozen=True)
class Desk:
    """How a board on the desk is reached; the defaults are placeholders (addresses of RFC 5737)."""

    serial: str = "/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_XXXXXXXX-if00-port0"
    power_model: str = "simplerest"
    power: str = "http://192.0.2.10/relay/{index}/{value}"
    power_index: str = "1"
    address: str = "192.0.2.20"
    user: str = "root"
    key: str = "~/.ssh/id_ed25519"


def file_name(board: Board, transport: str) -> str:
    """``orangepi-5.yaml`` is the desk's, ``virt.yaml`` the virtual board's; others carry their transport."""
    plain = transport == ("virtual" if board.virtual else "local")
    return f"{board.name}.yaml" if plain else f"{board.name}-{transport}.yaml"


def transports(board: Board) -> tuple[str, ...]:
    """The ways to reach a board."""
    return ("virtual", "place") if board.virtual else TRANSPORTS


def everything() -> dict[str, str]:
    """Text by file name, of every board and way."""
    known = [boards.load(name) for name in boards.names()]
    return {file_name(board, way): text(board, way) for board in known for way in transports(board)}


def text(board: Board, transport: str, desk: Desk | None = None) -> str:
    """An environment file; KitError (usage) when there is no such way to this board."""
    if transport not in transports(board):
        known = " ".join(transports(board))
        raise KitError(ExitCode.USAGE, f"{board.name} cannot be reached by {transport}", f"one of: {known}")
    virtual = board.virtual or transport == "virtual"
    features = boards.load(VIRTUAL).features if virtual else board.features
    parts = [_head(board, transport), "imports:\n  - lab.labgrid\n", f"features: [{', '.join(features)}]\n"]
    parts += ["targets:\n  main:\n    resources:\n", _resources(board, transport, desk or Desk())]
    parts += ["    drivers:\n", _drivers(board, transport, desk or Desk()), _common(virtual, transport, desk or Desk())]
    return "".join(parts)


def _head(board: Board, transport: str) -> str:
    made = f"# Made by: npulab board env {board.name} --transport {transport}\n"
    name = file_name(board, transport)
    run = f"# Use: npulab test board --env {name}, or pytest --lg-env {name} tests/board\n"
    about = {
        "virtual": f"# {board.title}{'' if board.virtual else ' as a virtual board'}. NPULAB_ARTIFACTS, NPULAB_KERNEL"
        " and NPULAB_MEMORY choose what is booted;\n# see lab/labgrid/qemudriver.py.\n",
        "local": f"# {board.title} on a desk: serial adapter at {board.console.baud} baud on the debug header, relay in"
        " its supply, Ethernet.\n# The addresses are placeholders: give yours to npulab board env, or edit.\n",
        "place": f"# {board.title}, a place of a labgrid coordinator: LG_COORDINATOR and LG_PLACE say which.\n"
        f"# npulab farm run --tag board={board.name} sets both, waits for a turn and gives the place back.\n",
    }[transport]
    return f"# SPDX-License-Identifier: MIT\n{about}{made}{run}"


def _resources(board: Board, transport: str, desk: Desk) -> str:
    if transport == "place":
        return "      RemotePlace:\n        name: !template '$LG_PLACE'\n"
    if transport == "virtual":
        return (
            "      NetworkService:\n        # the driver fills in the port that QEMU forwards\n"
            "        address: 127.0.0.1\n        username: root\n"
        )
    usb = f"        match:\n          ID_VENDOR_ID: '{board.usb[0]:04x}'\n"
    return (
        f"      RawSerialPort:\n        port: {_word(desk.serial)}\n        speed: {board.console.baud}\n"
        f"      NetworkPowerPort:\n        model: {_word(desk.power_model)}\n        host: '{desk.power}'\n"
        f"        index: '{desk.power_index}'\n"
        f"      NetworkService:\n        address: {_word(desk.address)}\n        username: {_word(desk.user)}\n"
        + (f"      RKUSBLoader:\n{usb}" if "usb-otg" in board.features else "")
    )


def _word(value: str) -> str:
    """A value that YAML takes as text."""
    return value if re.fullmatch(r"[A-Za-z/~][\w./~-]*|\d+(\.\d+){3}", value) else "'" + value.replace("'", "''") + "'"


def _drivers(board: Board, transport: str, desk: Desk) -> str:
    if board.virtual or transport == "virtual":
        options = []
        if transport == "place":
            options.append("        # the place's ssh port is the board's\n        slot: true\n")
        if not board.virtual:
            options.append(f"        board: {Path(board.dtb).stem}\n")
        return f"      KitQEMUDriver:\n{''.join(options)}" if options else "      KitQEMUDriver: {}\n"
    lines = "      NetworkPowerDriver:\n        delay: 3.0\n      SerialDriver: {}\n"
    # mainline U-Boot's prompt; the state is used only when it is asked for
    lines += "      UBootDriver:\n        prompt: '=> '\n        boot_timeout: 60\n"
    if "usb-otg" in board.features:
        lines += f"      RockusbDriver:\n        board: {board.name}\n"
    lines += f"      BackupDriver:\n        board: {board.name}\n"
    return lines


def _common(virtual: bool, transport: str, desk: Desk) -> str:
    key = "" if virtual else f"        keyfile: {_word(desk.key)}\n"
    return (
        "      ShellDriver:\n        prompt: 'root@[\\w-]+:[^ ]+ '\n        login_prompt: ' login: '\n"
        "        username: root\n        login_timeout: 120\n"
        f"      SSHDriver:\n{key}        connection_timeout: 60.0\n        stderr_merge: true\n"
        "      KernelLogDriver: {}\n"
        "      KitStrategy: {}\n"
    )


def write_all(folder: Path = FOLDER) -> list[Path]:
    """Write every file; returns those that changed."""
    changed = []
    for name, content in everything().items():
        path = folder / name
        if not path.is_file() or path.read_text() != content:
            path.write_text(content)
            changed.append(path)
    return changed
