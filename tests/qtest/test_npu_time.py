# SPDX-License-Identifier: MIT
"""Guest time stands still while a job is at the model, then runs on by the modelled time.

The qtest accelerator has a clock of its own, so a guest CPU under TCG watches its counter here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from guest import Guest
from npu_peer import (
    CNA_S_POINTER,
    DPU_0,
    JOB,
    NPU,
    OUTCOME_FAULT,
    OUTCOME_HANG,
    PC_INT_RAW,
    READ,
    RESET,
    Frame,
    Peer,
    npu_path,
    soft_reset,
    submit,
    wait_until,
)
from qtest_client import QTest

HOST_PAUSE_S = 0.2
MODELLED_S = 0.3


@pytest.fixture
def guest(start: Callable[..., QTest], peer: Peer) -> Guest:
    return Guest(start(args=[*peer.arguments(), *Guest.ARGUMENTS], accel="tcg"))


def start_job(guest: Guest, peer: Peer, core: int = 0) -> Frame:
    submit(guest.machine, core)
    job = peer.expect(JOB, core)
    wait_until(lambda: bool(guest.machine.qom_get(npu_path(core), "time-frozen")), "the freeze")
    return job


def is_frozen(guest: Guest) -> bool:
    """Whether the guest's counter moves at all in a while of host time (the CPU itself keeps running)."""
    before = guest.load(0).counter
    time.sleep(HOST_PAUSE_S)
    return guest.load(0).counter == before


def test_time_runs_without_a_job(guest: Guest) -> None:
    assert not is_frozen(guest)


def test_time_stands_still_during_a_job(guest: Guest, peer: Peer) -> None:
    job = start_job(guest, peer)
    before = guest.seconds()
    assert is_frozen(guest)
    peer.finish(guest.machine, job, interrupts=DPU_0)
    assert not is_frozen(guest)
    wait_until(lambda: guest.load(NPU[0] + PC_INT_RAW).value == DPU_0, "the interrupt")
    assert guest.seconds() - before >= HOST_PAUSE_S


def test_interrupt_comes_after_the_modelled_time(guest: Guest, peer: Peer) -> None:
    job = start_job(guest, peer)
    before = guest.seconds()
    peer.finish(guest.machine, job, interrupts=DPU_0, ns=int(MODELLED_S * 1e9))
    while not (access := guest.load(NPU[0] + PC_INT_RAW)).value:
        # the counter is read after the register, so allow for what passes in between on a busy host
        assert guest.seconds() - before < MODELLED_S + 5
    assert access.counter / 24e6 - before >= MODELLED_S


def test_stop_and_cont_do_not_thaw(guest: Guest, peer: Peer) -> None:
    job = start_job(guest, peer)
    before = guest.load(0).counter
    for _ in range(2):
        guest.machine.qmp("stop")
        guest.machine.qmp("cont")
    assert is_frozen(guest)
    assert guest.load(0).counter - before < 24_000 * 100, "cont lets through moments, not the host's time"
    peer.finish(guest.machine, job, interrupts=DPU_0)
    assert not is_frozen(guest)


def test_answer_while_the_machine_is_stopped(guest: Guest, peer: Peer) -> None:
    job = start_job(guest, peer)
    before = guest.seconds()
    guest.machine.qmp("stop")
    peer.finish(guest.machine, job, interrupts=DPU_0, ns=1000)
    time.sleep(HOST_PAUSE_S)
    assert guest.machine.readl(NPU[0] + PC_INT_RAW) == 0, "the answer must not start a stopped machine's clock"
    guest.machine.qmp("cont")
    assert guest.seconds() - before < HOST_PAUSE_S
    wait_until(lambda: guest.load(NPU[0] + PC_INT_RAW).value == DPU_0, "the interrupt")
    assert not is_frozen(guest)


def test_every_core_must_be_done(guest: Guest, peer: Peer) -> None:
    jobs = [start_job(guest, peer, core) for core in range(3)]
    for job in jobs:
        assert is_frozen(guest)
        peer.finish(guest.machine, job, interrupts=DPU_0)
    assert not is_frozen(guest)


@pytest.mark.parametrize("outcome", [OUTCOME_HANG, OUTCOME_FAULT])
def test_time_runs_on_after_a_hang(guest: Guest, peer: Peer, outcome: int) -> None:
    peer.finish(guest.machine, start_job(guest, peer), outcome)
    assert not is_frozen(guest)
    assert guest.load(NPU[0] + PC_INT_RAW).value == 0


def test_time_runs_on_after_the_model_died(guest: Guest, peer: Peer) -> None:
    start_job(guest, peer)
    peer.hang_up(0)
    wait_until(lambda: not guest.machine.qom_get(npu_path(0), "time-frozen"), "the thaw")
    assert not is_frozen(guest)


def test_time_runs_on_after_a_soft_reset(guest: Guest, peer: Peer) -> None:
    start_job(guest, peer)
    soft_reset(guest.machine, 30, 6, True)
    soft_reset(guest.machine, 30, 6, False)
    assert not is_frozen(guest)


def test_time_runs_on_after_a_machine_reset(guest: Guest, peer: Peer) -> None:
    jobs = [start_job(guest, peer, core) for core in range(2)]
    guest.machine.system_reset()
    peer.expect(RESET, 0, 2)
    assert not is_frozen(guest)
    peer.forget()
    # and the count of the cores is right: one job freezes, its end thaws
    assert jobs
    job = start_job(guest, peer)
    assert is_frozen(guest)
    peer.finish(guest.machine, job)
    assert not is_frozen(guest)


@pytest.mark.parametrize("during_job", [False, True])
def test_time_stands_still_while_an_answer_is_waited_for(guest: Guest, peer: Peer, during_job: bool) -> None:
    job = start_job(guest, peer, core=1) if during_job else None
    peer.delay_s[READ] = 1.0
    before = guest.seconds()
    started = time.monotonic()
    assert guest.load(NPU[0] + CNA_S_POINTER).syndrome == 0
    assert time.monotonic() - started >= 1.0
    assert guest.seconds() - before < 0.5
    assert is_frozen(guest) == during_job, "the wait leaves another core's freeze alone"
    if job:
        peer.finish(guest.machine, job)
        assert not is_frozen(guest)
