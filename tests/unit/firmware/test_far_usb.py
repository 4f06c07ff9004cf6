# SPDX-License-Identifier: MIT
"""USB of another host: the program that runs there, its frames, its ioctls, and every way in which it gets lost."""

from __future__ import annotations

import ast
import errno
import itertools
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import far_host
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware.rockusb import agent, remote
from lab.firmware.rockusb.client import Rockusb, Timeouts
from lab.firmware.rockusb.link import LinkError, LinkLost, LinkStall
from lab.firmware.rockusb.protocol import Receive, Send
from lab.firmware.rockusb.remote import Connection, RemoteBus, Request
from lab.firmware.rockusb.usb import UDEV_RULE
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.server import Server
from lab.firmware.transports.rockusb import RockusbTransport
from lab.firmware.transports.select import Loader, open_transport

HEADER = Path("/usr/include/linux/usbdevice_fs.h")
NUMBERS = {
    "USBDEVFS_CONTROL": (agent.USB_CONTROL, 0xC0185500),
    "USBDEVFS_BULK": (agent.USB_BULK, 0xC0185502),
    "USBDEVFS_GETDRIVER": (agent.USB_GETDRIVER, 0x41045508),
    "USBDEVFS_CLAIMINTERFACE": (agent.USB_CLAIM, 0x8004550F),
    "USBDEVFS_RELEASEINTERFACE": (agent.USB_RELEASE, 0x80045510),
    "USBDEVFS_IOCTL": (agent.USB_IOCTL, 0xC0105512),
    "USBDEVFS_CLEAR_HALT": (agent.USB_CLEAR_HALT, 0x80045515),
    "USBDEVFS_DISCONNECT": (agent.USB_DISCONNECT, 0x5516),
    "USBDEVFS_CONNECT": (agent.USB_CONNECT, 0x5517),
}
STRUCTS = {
    "usbdevfs_ctrltransfer": agent.CONTROL_TRANSFER,
    "usbdevfs_bulktransfer": agent.BULK_TRANSFER,
    "usbdevfs_getdriver": agent.GET_DRIVER,
    "usbdevfs_ioctl": agent.DRIVER_IOCTL,
}


# ---- the program itself


@pytest.mark.skipif(struct.calcsize("P") != 8, reason="numbers of a 64-bit system")
def test_ioctl_numbers() -> None:
    assert {name: ours for name, (ours, _) in NUMBERS.items()} == {name: known for name, (_, known) in NUMBERS.items()}


@pytest.mark.skipif(not HEADER.exists() or not shutil.which("cc"), reason="needs cc and linux/usbdevice_fs.h")
def test_ioctls_are_those_of_the_kernels_header(tmp_path: Path) -> None:
    lines = [f'printf("%s %lu\\n", "{name}", (unsigned long) {name});' for name in NUMBERS]
    lines += [f'printf("%s %lu\\n", "{name}", (unsigned long) sizeof(struct {name}));' for name in STRUCTS]
    source = tmp_path / "numbers.c"
    body = "\n".join(lines)
    include = "".join(f"#include <{name}.h>\n" for name in ("stdio", "linux/ioctl", "linux/usbdevice_fs"))
    source.write_text(f"{include}int main(void) {{\n{body}\nreturn 0; }}\n")
    subprocess.run(["cc", "-o", tmp_path / "numbers", source], check=True)
    printed = subprocess.run([tmp_path / "numbers"], capture_output=True, text=True, check=True).stdout
    assert {name: int(value) for name, value in (line.split() for line in printed.splitlines())} == {
        **{name: ours for name, (ours, _) in NUMBERS.items()},
        **{name: form.size for name, form in STRUCTS.items()},
    }


def test_it_runs_with_an_old_python_and_nothing_else() -> None:
    tree = ast.parse(Path(agent.__file__).read_text(), feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


requests = st.builds(
    Request,
    operation=st.integers(1, 7),
    device=st.integers(0, 0xFFFF),
    timeout=st.integers(1, 10**6).map(lambda ms: ms / 1000),
    first=st.integers(0, 2**32 - 1),
    second=st.integers(0, 2**32 - 1),
    data=st.binary(max_size=60),
)


@given(
    st.lists(st.tuples(requests, st.integers(0, 2**32 - 1), st.integers(0, 1)), max_size=4),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
)
def test_frames_survive_any_cut(sent: list[tuple[Request, int, int]], steps: list[int]) -> None:
    stream = b"".join(request.frame(number, flags) for request, number, flags in sent)
    parser, got, cuts = agent.Parser(agent.REQUEST), [], itertools.cycle(steps)
    while stream:
        step = next(cuts)
        got += parser.feed(stream[:step])
        stream = stream[step:]
    assert got == [
        (
            (n, r.operation, flags, r.device, round(r.timeout * 1000), r.first, r.second, len(r.data)),
            r.data,
        )
        for r, n, flags in sent
    ]


def test_a_frame_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame of"):
        agent.Parser(agent.ANSWER).feed(agent.ANSWER.pack(1, 0, agent.LONGEST + 1))


def interface(number: int, kind: bytes = b"\xff\x06\x05", alternate: int = 0) -> bytes:
    return bytes([9, 4, number, alternate, 2]) + kind + b"\0"


def endpoint(address: int, kind: int = 2) -> bytes:
    return bytes([7, 5, address, kind, 0, 2, 0])


def configuration(value: int) -> bytes:
    return bytes([9, 2, 0, 0, 1, value, 0, 0x80, 50])


def test_endpoints_of_the_right_interface() -> None:
    other = configuration(1) + interface(0) + endpoint(0x83) + endpoint(0x04)
    storage = interface(0, b"\x08\x06\x50") + endpoint(0x85) + endpoint(0x06)
    ours = interface(3) + endpoint(0x87, 3) + endpoint(0x81) + endpoint(0x02)
    whole = bytes([18, 1]) + bytes(16) + other + configuration(2) + storage + ours
    assert agent.endpoints(whole, 2) == (3, 0x81, 0x02)
    assert agent.endpoints(whole, 1) == (0, 0x83, 0x04)
    for bad in (whole[:18], whole[: 18 + len(other) + 9 + len(storage)], b""):
        with pytest.raises(OSError, match="no rockusb interface"):
            agent.endpoints(bad, 2)


@given(st.binary(max_size=120), st.integers(0, 255))
def test_descriptors_of_nobody(raw: bytes, value: int) -> None:
    try:
        number, into, out = agent.endpoints(raw, value)
    except OSError as error:
        assert error.errno == errno.ENXIO
    else:
        assert into & 0x80 and not out & 0x80 and 0 <= number < 256


class Script:
    """An ioctl that follows a script: what each call of a kind does."""

    def __init__(self, **steps: list[Any]) -> None:
        self.steps, self.seen = steps, list[tuple[str, Any]]()
        self.names = {ours: name.removeprefix("USBDEVFS_") for name, (ours, _) in NUMBERS.items()}

    def __call__(self, fd: int, code: int, buffer: bytearray, mutate: bool = True) -> int:
        name = self.names[code]
        detail: Any = agent.BULK_TRANSFER.unpack(buffer)[:3] if name == "BULK" else None
        if name == "IOCTL":
            detail = self.names[agent.DRIVER_IOCTL.unpack(buffer)[1]]
        self.seen.append((name, detail))
        todo = self.steps.get(name)
        step = todo.pop(0) if todo else (detail[1] if name == "BULK" else 0)
        if isinstance(step, OSError):
            raise step
        if isinstance(step, bytes):
            buffer[:] = agent.GET_DRIVER.pack(0, step)
            return 0
        return int(step)


@pytest.fixture
def folder(tmp_path: Path, drill: Path) -> Path:
    far_host.make_folder(tmp_path / "host", Engine(drill, "loader"))
    return tmp_path / "host"


def opened(folder: Path, script: Script) -> agent.Device:
    return agent.Device(folder / "sys/1-1", folder / "dev", script)


def test_a_driver_steps_aside_and_comes_back(folder: Path) -> None:
    script = Script(CLAIMINTERFACE=[OSError(errno.EBUSY, "")], GETDRIVER=[b"usb-storage"])
    opened(folder, script).close()
    assert [name if name != "IOCTL" else detail for name, detail in script.seen] == [
        *("CLAIMINTERFACE", "GETDRIVER", "DISCONNECT", "CLAIMINTERFACE", "RELEASEINTERFACE", "CONNECT"),
    ]


def test_another_program_does_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "SETTLE_SECONDS", 0.2)
    busy = [OSError(errno.EBUSY, "")] * 20
    script = Script(CLAIMINTERFACE=busy, GETDRIVER=[b"usbfs"] * 20)
    with pytest.raises(OSError) as caught:
        opened(folder, script)
    assert caught.value.errno == errno.EBUSY and ("IOCTL", "DISCONNECT") not in script.seen
    script = Script(CLAIMINTERFACE=busy[:1], GETDRIVER=[OSError(errno.ENODATA, "")])
    opened(folder, script).close()


def test_transfers_go_in_pieces_that_usbfs_takes(folder: Path) -> None:
    none = OSError(errno.ENOMEM, "")
    script = Script(BULK=[none, none])
    device = opened(folder, script)
    device.send(bytes(40000), 2.0)
    lengths = [detail[1] for name, detail in script.seen if name == "BULK"]
    assert lengths == [40000, 32768, 16384, 16384, 7232] and all(n % 512 == 0 for n in lengths[1:4])
    script.seen.clear()
    script.steps["BULK"] = [16384, 100]
    assert len(device.receive(100_000, 0.0)) == 16484, "a short packet ends it"
    assert [detail for name, detail in script.seen if name == "BULK"] == [(0x81, 16384, 1)] * 2, "never without limit"
    script.steps["BULK"] = [none] * 9
    with pytest.raises(OSError) as caught:
        device.receive(512, 1.0)
    assert caught.value.errno == errno.ENOMEM
    device.close()


def test_without_permission_the_rule_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(agent, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(agent.os, "open", refuse)
    host = agent.Agent(0x2207, folder / "sys", folder / "dev")
    fields, body = agent.Parser(agent.REQUEST).feed(Request(agent.OPEN, data=b"1-1").frame(5, 0))[0]
    (number, code, _), text = agent.Parser(agent.ANSWER).feed(host.answer(fields, body))[0]
    assert (number, code) == (5, errno.EACCES)
    told = remote.explain(code, text.decode(), "far")
    assert isinstance(told, KitError) and told.code is ExitCode.NO_DEVICE
    assert "on far" in told.message and UDEV_RULE in told.hint and "70-npulab.rules on far" in told.hint


# ---- against a stand-in, through a process that plays the other host


class Far:
    """A stand-in behind another host. ``lost`` makes every further connection fail."""

    def __init__(self, root: Path, engine: Engine, folder: Path) -> None:
        self.engine, self.folder, self.socket = engine, folder, root / "usb.sock"
        self.lost = False
        self.connections = 0
        self.bus = RemoteBus(self.command, "user@far")

    def command(self) -> list[str]:
        self.connections += 1
        if self.lost:
            return ["sh", "-c", "echo 'ssh: connect to host far port 22: No route to host' >&2; exit 255; #"]
        return [sys.executable, far_host.__file__, str(self.socket), str(self.folder)]

    @property
    def pid(self) -> int:
        return int((self.folder / "pid").read_text())

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def far(tmp_path: Path, drill: Path, folder: Path) -> Iterator[Far]:
    made = Far(tmp_path, Engine(drill, "loader"), folder)
    with Server(made.socket, [made.engine]):
        yield made
        made.bus.close()


def test_it_reads_and_writes_what_is_there(far: Far, board: boards.Board, drill: Path) -> None:
    device = Rockusb(far.bus)
    transport = RockusbTransport(board, device)
    assert transport.name == "rockusb+ssh:user@far,1-1"
    assert transport.identify()["cpu-id"] == far.engine.board.identify()["cpu-id"]
    image = (drill / "emmc.img").read_bytes()
    medium = transport.open("emmc")
    limit = medium.info.readable or medium.info.size
    assert medium.read(0, 5 << 20) == image[: 5 << 20] and medium.read(1000, 77) == image[1000:1077]
    data = os.urandom(300 << 10)
    transport.open("emmc", write=True).write(limit - len(data), data)
    assert (drill / "emmc.img").read_bytes()[limit - len(data) : limit] == data
    assert transport.open("emmc").read(limit - len(data), len(data)) == data
    transport.close()
    assert far.connections == 1
    deadline = time.monotonic() + 5
    while Path(f"/proc/{far.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{far.pid}").exists()


def test_reads_do_not_wait_for_each_other(far: Far, board: boards.Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing is in the pipe the client waits: twice at most for a megabyte, not for each transfer."""
    medium = RockusbTransport(board, Rockusb(far.bus)).open("emmc")
    medium.read(0, 512)
    asked: list[int] = []
    ask = Connection.ask
    monkeypatch.setattr(Connection, "ask", lambda self, *args, **more: (asked.append(1), ask(self, *args, **more))[1])
    answered: list[int] = []
    answer = Connection.answer

    def counted(self: Connection, timeout: float) -> tuple[int, bytes]:
        answered.append(len(asked))
        return answer(self, timeout)

    monkeypatch.setattr(Connection, "answer", counted)
    medium.read(1 << 20, 1 << 20)
    assert len(asked) == len(answered) == 3 * 4, "command, data and status of 256 KiB each"
    assert answered == [12] * 12, "all are asked for before the first answer is waited for"


@pytest.mark.parametrize("kind", ["stall", "short", "tag", "disconnect", "hang", "fail", "slow"])
@pytest.mark.parametrize("operation", ["read", "write"])
def test_faults_are_what_they_are_on_this_host(far: Far, board: boards.Board, kind: str, operation: str) -> None:
    """Lost transfers are repeated, a refusal and a silent device are errors, and the next access is right again."""
    transport = RockusbTransport(board, Rockusb(far.bus, timeouts=Timeouts(0.5, 0.5)))
    medium = transport.open("emmc", write=True)
    data = os.urandom(1 << 20)
    medium.write(2 << 20, data)
    far.engine.options.faults = [faults.Fault(kind, operation, after=2)]
    started = time.monotonic()

    def access() -> None:
        if operation == "write":
            medium.write(2 << 20, data)
        assert medium.read(2 << 20, 1 << 20) == data

    if kind in ("fail", "hang") or (kind, operation) == ("short", "write"):
        with pytest.raises(KitError) as caught:
            access()
        assert caught.value.code is ExitCode.LINK
    else:
        access()
    assert time.monotonic() - started < 30
    if kind != "hang":
        assert medium.read(2 << 20, 1 << 20) == data
    transport.close()


def test_lost_in_the_middle_it_goes_on_in_a_new_connection(far: Far, board: boards.Board, drill: Path) -> None:
    transport = RockusbTransport(board, Rockusb(far.bus))
    medium = transport.open("emmc")
    medium.read(0, 512)
    far.kill()
    assert medium.read(0, 3 << 20) == (drill / "emmc.img").read_bytes()[: 3 << 20]
    assert far.connections == 2
    transport.close()


def test_lost_for_good(far: Far, board: boards.Board) -> None:
    transport = RockusbTransport(board, Rockusb(far.bus))
    medium = transport.open("emmc")
    medium.read(0, 512)
    far.lost = True
    far.kill()
    with pytest.raises(KitError, match="far: ssh: connect to host far port 22: No route to host") as caught:
        medium.read(0, 3 << 20)
    assert caught.value.code is ExitCode.LINK


def test_a_restart_that_nobody_heard_of_is_not_taken_for_one(far: Far) -> None:
    device = Rockusb(far.bus)
    assert device.ready()
    far.kill()
    with pytest.raises(KitError, match="restarting") as caught:
        device.reset()
    assert caught.value.code is ExitCode.LINK and far.engine.log == []


def test_a_host_that_falls_silent(far: Far, board: boards.Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops, as when a cable is pulled; within the time that is stated the link is given up."""
    device = Rockusb(far.bus, timeouts=Timeouts(0.2, 0.2))
    monkeypatch.setattr(remote, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(remote, "START_SECONDS", 0.5)
    os.kill(far.pid, signal.SIGSTOP)
    stopped, started = far.pid, time.monotonic()
    monkeypatch.setattr(far, "command", lambda: ["sh", "-c", "exec sleep 60", "sh"])
    far.bus._command = far.command
    with pytest.raises(KitError, match=r"far: no connection within") as caught:
        device.read(0, 8)
    assert caught.value.code is ExitCode.LINK and time.monotonic() - started < 10
    assert not Path(f"/proc/{stopped}").exists()


def test_what_is_skipped_or_unfit_is_asked_for_anew(far: Far) -> None:
    bus = far.bus
    link = bus.open("1-1")
    ready, query = (remote_command(tag, 0x00) for tag in (1, 2))
    link.post([Send(ready), Receive(13), Send(b"no command"), Receive(13), Receive(13)], 1.0)
    link.send(ready, 1.0)
    assert link.receive(13, 1.0)[:8] == b"USBS" + struct.pack("<I", 1)
    link.send(b"no command", 1.0)
    with pytest.raises(LinkStall):
        link.receive(13, 1.0)
    link.clear()
    link.post([Send(ready), Receive(13)], 1.0)
    link.send(query, 1.0)  # something else than was foreseen
    assert link.receive(13, 1.0)[:8] == b"USBS" + struct.pack("<I", 2)
    link.send(ready, 1.0)
    link.post([Send(query), Receive(13)], 1.0)  # not now: an answer is due
    assert link.receive(13, 1.0)[:8] == b"USBS" + struct.pack("<I", 1)
    with pytest.raises(LinkError):
        bus.open("9-9")
    link.close()
    with pytest.raises(LinkError):
        link.send(ready, 1.0)
        link.receive(13, 1.0)


def remote_command(tag: int, op: int) -> bytes:
    from lab.firmware.rockusb import protocol

    return protocol.encode(op, tag)


def test_an_interrupt_does_not_wait_for_a_silent_device(far: Far) -> None:
    """Whoever stops in the middle of a transfer closes at once, and the device is free."""
    far.engine.options.faults = [faults.Fault("slow", "query", times=0)]
    far.engine.options.slow_seconds = 30.0
    far.engine.delay = time.sleep
    link = far.bus.open("1-1")
    link.send(remote_command(1, 0x00), 60.0)
    started = time.monotonic()
    link.close()
    assert time.monotonic() - started < 8 and not Path(f"/proc/{far.pid}").exists()
    far.engine.options.faults = []


def test_maskrom_and_a_loader(tmp_path: Path, drill: Path, folder: Path, board: boards.Board) -> None:
    import hashlib

    from lab.firmware.rockusb import loaderfile
    from lab.firmware.transports.select import over_usb

    made = Far(tmp_path, Engine(drill, "maskrom"), folder)
    path = tmp_path / "loader.bin"
    path.write_bytes(loaderfile.build(os.urandom(5000), os.urandom(9000)))
    loader = Loader(path, hashlib.sha256(path.read_bytes()).hexdigest())
    with Server(made.socket, [made.engine]):
        with pytest.raises(KitError, match="mask ROM"):
            over_usb(made.bus, None, board, Loader())
        transport = over_usb(made.bus, "1-1", board, loader)
        assert made.engine.mode == "usbplug" and len(transport.storages()) == 2
        transport.close()


# ---- connections that never come to be


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("exec no-such-python3", ExitCode.INFRASTRUCTURE, "far has no python3"),
        ("echo 'Host key verification failed.' >&2; exit 255", ExitCode.LINK, "far: Host key verification failed."),
        ("echo 'user@far: Permission denied (publickey).' >&2; exit 255", ExitCode.LINK, "the login is refused"),
        ("echo 'WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED' >&2; exit 255", ExitCode.REFUSED, "host key"),
        ("echo welcome; exit 0", ExitCode.LINK, "far: the command ended with 0"),
        ("exec sleep 60", ExitCode.LINK, "no connection within"),
        (r"printf '\0npulab usb 1\n\377\377\377\377\377\377\377\377\377\377\377\377'; cat", ExitCode.LINK, "garbles"),
    ],
)
def test_no_connection(command: str, code: ExitCode, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "START_SECONDS", 1.0)
    bus = RemoteBus(lambda: ["sh", "-c", command, "sh"], "far")
    with pytest.raises(KitError, match=words) as caught:
        bus.devices()
    assert caught.value.code is code
    bus.close()


def test_a_host_without_usb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real program, as ssh would run it, on a host that has nothing in its sysfs."""
    script = 's=$(printf %s "$1" | sed \'s,serve(8711),serve(8711\\, "/nowhere"),\'); eval "$s"'
    bus = RemoteBus(lambda: ["sh", "-c", script, "sh"], "far")
    with pytest.raises(KitError, match="USB cannot be used") as caught:
        bus.devices()
    assert caught.value.code is ExitCode.INFRASTRUCTURE
    bus.close()


@pytest.mark.parametrize(
    "where", ["rockusb+ssh", "rockusb+ssh:", "rockusb+ssh:-oProxyCommand=x,1-1", "rockusb+ssh:a b"]
)
def test_destinations_that_are_none(where: str, board: boards.Board) -> None:
    with pytest.raises(KitError, match=r"is not \[USER@\]HOST") as caught:
        open_transport(where, board)
    assert caught.value.code is ExitCode.USAGE


def test_nothing_stays_when_this_side_is_killed(far: Far, tmp_path: Path) -> None:
    """Killed while a transfer hangs there: the program there ends with its input."""
    far.engine.options.faults = [faults.Fault("slow", "query", times=0)]
    far.engine.options.slow_seconds = 20.0
    far.engine.delay = time.sleep
    command = shlex.join([sys.executable, far_host.__file__, str(far.socket), str(far.folder)])
    lines = [
        "from lab.firmware.rockusb.remote import RemoteBus",
        "from lab.firmware.rockusb.client import Rockusb",
        "import shlex, sys",
        f"device = Rockusb(RemoteBus(lambda: shlex.split({command!r}), 'far'))",
        "print('open', flush=True)",
        "device.ready()",
    ]
    child = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"open\n"
    time.sleep(0.3)
    child.kill()
    child.wait()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{far.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{far.pid}").exists()
    child.stdout.close()


def test_silence_of_this_side_ends_it(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life keep it; without them it ends by itself, and a new connection does what is asked."""
    source = Path(agent.__file__).read_text().replace("QUIET_SECONDS = 60.0", "QUIET_SECONDS = 0.6")
    changed = far.folder / "agent.py"
    changed.write_text(source)
    monkeypatch.setattr(remote.agent, "__file__", str(changed))
    monkeypatch.setattr(remote, "ALIVE_SECONDS", 0.1)
    link = far.bus.open("1-1")
    time.sleep(1.2)
    link.send(remote_command(1, 0x00), 1.0)
    assert link.receive(13, 1.0)[:4] == b"USBS"
    far.bus.close()
    monkeypatch.setattr(remote, "ALIVE_SECONDS", 60.0)
    link = far.bus.open("1-1")
    time.sleep(1.2)
    with pytest.raises(LinkLost):
        link.send(remote_command(1, 0x00), 1.0)
        link.receive(13, 1.0)
    assert [found.path for found in far.bus.devices()] == ["1-1"]
