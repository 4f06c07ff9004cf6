# SPDX-License-Identifier: MIT
"""The firmware's SCMI: messages in shared memory, rung through the device's doorbell; and the SMC calls themselves."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from qtest_client import QTest

SHMEM = 0x0010F000
PATH = "/machine/soc/scmi"
BASE, CLOCK, RESET = 0x10, 0x14, 0x16
NPU, MHZ = 6, 1_000_000
NOT_SUPPORTED, INVALID, NOT_FOUND, OUT_OF_RANGE, PROTOCOL_ERROR = -1, -2, -4, -5, -10
TOKEN = 0x155 << 18


def put(machine: QTest, protocol: int, message: int, *words: int, length: int | None = None) -> None:
    """Lay a request into shared memory, channel taken, as drivers/firmware/arm_scmi/shmem.c does."""
    size = 4 + 4 * len(words) if length is None else length
    payload = struct.pack(f"<{len(words)}I", *words)
    machine.write(SHMEM, struct.pack("<7I", 0, 0, 0, 0, 0, size, TOKEN | protocol << 10 | message) + payload)


def call(
    machine: QTest, protocol: int, message: int, *words: int, length: int | None = None
) -> tuple[int, tuple[int, ...]]:
    """One message: (status, reply words)."""
    put(machine, protocol, message, *words, length=length)
    machine.qom_set(PATH, "doorbell", True)
    status, size, header = struct.unpack("<4xI12xII", machine.read(SHMEM, 28))
    assert status & 1, "the channel is free again"
    assert header == TOKEN | protocol << 10 | message, "the header is echoed"
    result, *reply = struct.unpack(f"<i{(size - 8) // 4}I", machine.read(SHMEM + 28, size - 4))
    return result, tuple(reply)


def name(words: tuple[int, ...]) -> str:
    return struct.pack("<4I", *words).rstrip(b"\0").decode()


def rate(words: tuple[int, ...]) -> int:
    return words[0] | words[1] << 32


def test_channel_is_free_at_start_and_after_reset(machine: QTest) -> None:
    assert machine.readl(SHMEM + 4) == 1
    machine.writel(SHMEM + 4, 0)
    machine.system_reset()
    assert machine.readl(SHMEM + 4) == 1


def test_base(machine: QTest) -> None:
    assert call(machine, BASE, 0) == (0, (0x20000,))
    assert call(machine, BASE, 1) == (0, (2 | 1 << 8,))
    status, vendor = call(machine, BASE, 3)
    assert (status, name(vendor)) == (0, "rockchip")
    assert call(machine, BASE, 6, 0) == (0, (2, CLOCK | RESET << 8))
    assert call(machine, BASE, 6, 1) == (0, (1, RESET))
    assert call(machine, BASE, 6, 2) == (0, (0,))
    assert call(machine, BASE, 6, 3) == (INVALID, ())
    assert call(machine, BASE, 7, 0)[1][0] == 0
    status, agent = call(machine, BASE, 7, 1)
    assert (status, agent[0], name(agent[1:])) == (0, 1, "OSPM")
    assert call(machine, BASE, 7, 2) == (NOT_FOUND, ())


def test_clock_names_fit_and_differ(machine: QTest) -> None:
    """Linux registers them globally under these 15 characters."""
    status, (attributes,) = call(machine, CLOCK, 1)
    assert (status, attributes & 0xFFFF) == (0, 24)
    names = []
    for clock in range(24):
        status, reply = call(machine, CLOCK, 3, clock)
        if status == 0:
            assert reply[0] & 1, "firmware leaves it on"
            names.append(name(reply[1:]))
        else:
            assert (status, clock in {7, 8, 14, 15, 16, 17, 18}) == (NOT_FOUND, True), "only for secure agents"
    assert len(set(names)) == len(names) == 17
    assert all(0 < len(text) < 16 for text in names)
    assert names[NPU] == "scmi_clk_npu"


def test_npu_clock(machine: QTest) -> None:
    assert rate(call(machine, CLOCK, 6, NPU)[1]) == 200 * MHZ
    status, (flags, *rates) = call(machine, CLOCK, 4, NPU, 0)
    assert (status, flags) == (0, 9), "nine rates as a list, none remaining"
    assert [rate(tuple(rates[i : i + 2])) for i in range(0, 18, 2)] == [n * 100 * MHZ for n in range(2, 11)]
    assert call(machine, CLOCK, 4, NPU, 9) == (OUT_OF_RANGE, ())
    assert call(machine, CLOCK, 5, 0, NPU, 1000 * MHZ, 0) == (0, ())
    assert rate(call(machine, CLOCK, 6, NPU)[1]) == 1000 * MHZ
    for low, high in ((250 * MHZ, 0), (0, 0), (200 * MHZ, 1)):
        assert call(machine, CLOCK, 5, 0, NPU, low, high) == (INVALID, ())
    assert rate(call(machine, CLOCK, 6, NPU)[1]) == 1000 * MHZ, "a refused rate changes nothing"


@pytest.mark.parametrize("clock", [4, 13, 22, 23])
def test_fixed_clock(machine: QTest, clock: int) -> None:
    now = rate(call(machine, CLOCK, 6, clock)[1])
    assert call(machine, CLOCK, 4, clock, 0) == (0, (1, now, 0))
    assert call(machine, CLOCK, 5, 0, clock, now, 0)[0] == 0
    assert call(machine, CLOCK, 5, 0, clock, now + 1, 0)[0] == INVALID


def test_divided_clock_takes_any_rate(machine: QTest) -> None:
    assert call(machine, CLOCK, 5, 0, 9, 37 * MHZ, 0)[0] == 0
    assert rate(call(machine, CLOCK, 6, 9)[1]) == 37 * MHZ


def test_every_rate_list_fits_linux_messages(machine: QTest) -> None:
    """Linux takes at most 104 bytes of payload over this transport."""
    for clock in range(24):
        status, reply = call(machine, CLOCK, 4, clock, 0)
        if status == 0:
            assert 4 + 4 * len(reply) <= 104
            assert reply[0] >> 12 == 0
            assert len(reply) == 1 + 2 * reply[0]


def test_clock_state(machine: QTest) -> None:
    assert call(machine, CLOCK, 7, NPU, 0) == (0, ())
    assert call(machine, CLOCK, 3, NPU)[1][0] == 0
    assert call(machine, CLOCK, 3, NPU - 1)[1][0] == 1
    assert call(machine, CLOCK, 7, NPU, 1) == (0, ())
    assert call(machine, CLOCK, 3, NPU)[1][0] == 1


def test_reset_domains(machine: QTest) -> None:
    assert call(machine, RESET, 0) == (0, (0x10000,))
    assert call(machine, RESET, 1) == (0, (54,))
    status, reply = call(machine, RESET, 3, 48)
    assert (status, name(reply[2:])) == (0, "scmi_sr_t_trng")
    assert call(machine, RESET, 3, 0) == (NOT_FOUND, ())
    assert call(machine, RESET, 3, 54) == (NOT_FOUND, ())
    assert call(machine, RESET, 4, 48, 2, 0) == (0, ())
    assert call(machine, RESET, 4, 48, 0, 0) == (0, ())
    assert call(machine, RESET, 4, 48, 1, 0) == (NOT_SUPPORTED, ())


@pytest.mark.parametrize(
    ("protocol", "known", "unknown"), [(BASE, range(8), (8, 0xFF)), (CLOCK, range(8), (8,)), (RESET, range(5), (5,))]
)
def test_message_attributes(machine: QTest, protocol: int, known: range, unknown: tuple[int, ...]) -> None:
    for message in known:
        assert call(machine, protocol, 2, message) == (0, (0,))
    for message in unknown:
        assert call(machine, protocol, 2, message) == (NOT_FOUND, ())
        assert call(machine, protocol, message) == (NOT_SUPPORTED, ())


def test_bad_messages(machine: QTest) -> None:
    assert call(machine, 0x13, 0) == (NOT_SUPPORTED, ())
    assert call(machine, CLOCK, 6) == (PROTOCOL_ERROR, ()), "too short"
    assert call(machine, CLOCK, 6, NPU, 0) == (PROTOCOL_ERROR, ()), "too long"
    for length in (0, 3, 7, 0xFFFFFFFF, 0x1000):
        assert call(machine, CLOCK, 6, NPU, length=length) == (PROTOCOL_ERROR, ())
    assert call(machine, CLOCK, 6, 24) == (NOT_FOUND, ())
    assert call(machine, CLOCK, 6, 0xFFFFFFFF) == (NOT_FOUND, ())


def test_no_message(machine: QTest) -> None:
    put(machine, CLOCK, 5, 0, NPU, 300 * MHZ, 0)
    machine.writel(SHMEM + 4, 1)
    machine.qom_set(PATH, "doorbell", True)
    assert machine.readl(SHMEM + 28) == 0, "not answered"
    assert "rk3588-scmi: rung with no message" in machine.log()
    assert rate(call(machine, CLOCK, 6, NPU)[1]) == 200 * MHZ


def test_machine_reset_restores_rates(machine: QTest) -> None:
    assert call(machine, CLOCK, 5, 0, NPU, 900 * MHZ, 0)[0] == 0
    assert call(machine, CLOCK, 7, NPU, 0)[0] == 0
    machine.system_reset()
    assert rate(call(machine, CLOCK, 6, NPU)[1]) == 200 * MHZ
    assert call(machine, CLOCK, 3, NPU)[1][0] == 1


# -- the calls, made by a guest CPU ------------------------------------------------------------------------------------

MAILBOX = 0x200000
CALLS = {
    "SMCCC_VERSION": (0x80000000, 0),
    "PSCI_FEATURES(SMCCC_VERSION)": (0x8400000A, 0x80000000),
    "PSCI_FEATURES(CPU_ON)": (0x8400000A, 0xC4000003),
    "PSCI_VERSION": (0x84000000, 0),
    "SIP that is not there": (0x82000099, 0),
    "SCMI": (0x82000010, 0),
}


def caller_image() -> bytes:
    """A64 code that makes every call, stores each x0 at MAILBOX + 8n, and at last a mark."""
    words = [0xD2A00000 | MAILBOX >> 16 << 5 | 10]  # movz x10, MAILBOX
    for number, (function, argument) in enumerate([*CALLS.values()]):
        for register, value in ((0, function), (1, argument)):
            words.append(0xD2800000 | (value & 0xFFFF) << 5 | register)  # movz
            words.append(0xF2A00000 | value >> 16 << 5 | register)  # movk, lsl 16
        words.append(0xD4000003)  # smc #0
        words.append(0xF9000000 | number << 10 | 10 << 5 | 0)  # str x0, [x10, #8n]
    words.append(0xF9000000 | len(CALLS) << 10 | 10 << 5 | 10)  # str x10, [x10, #8n]
    words += [0xD503207F, 0x17FFFFFF]  # wfi; b .-4
    return struct.pack(f"<{len(words)}I", *words)


def test_smc_calls_of_a_guest(start: Callable[..., QTest], tmp_path: Path, board_dtb: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(caller_image())
    machine = start(args=["-S", "-kernel", str(image), "-dtb", str(board_dtb)], accel="tcg")
    put(machine, CLOCK, 5, 0, NPU, 600 * MHZ, 0)
    machine.qmp("cont")
    deadline = time.monotonic() + 30
    while machine.readl(MAILBOX + 8 * len(CALLS)) != MAILBOX:
        assert time.monotonic() < deadline, "the guest does not come to its end"
        time.sleep(0.01)
    results = struct.unpack(f"<{len(CALLS)}q", machine.read(MAILBOX, 8 * len(CALLS)))
    assert dict(zip(CALLS, results, strict=True)) == {
        "SMCCC_VERSION": 0x10002,
        "PSCI_FEATURES(SMCCC_VERSION)": 0,
        "PSCI_FEATURES(CPU_ON)": 0,
        "PSCI_VERSION": 0x10001,
        "SIP that is not there": -1,
        "SCMI": 0,
    }
    assert machine.readl(SHMEM + 4) == 1, "the message was taken"
    assert machine.readl(SHMEM + 28) == 0, "and carried out"
    assert rate(call(machine, CLOCK, 6, NPU)[1]) == 600 * MHZ
