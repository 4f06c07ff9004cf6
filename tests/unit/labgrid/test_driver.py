# SPDX-License-Identifier: MIT
"""The virtual board's driver and the strategy, with real labgrid and programs that misbehave."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from labgrid import Environment
from labgrid.driver.exception import ExecutionError
from labgrid.resource.networkservice import NetworkService
from labgrid.strategy.common import StrategyError
from pexpect import TIMEOUT

from lab.errors import ExitCode, KitError
from lab.labgrid import KitQEMUDriver, Status

# labgrid 26 cannot log a write to a console that nothing was read from yet (SerialLoggingReporter.flush)
pytestmark = pytest.mark.filterwarnings("ignore:unhandled exception during event notification")

MakeEnvironment = Callable[..., Environment]


def kill_qemu(driver: KitQEMUDriver, number: int) -> None:
    assert driver.virtual_board is not None and driver.virtual_board._supervisor is not None
    pid = driver.virtual_board._supervisor.program_pid("qemu")
    assert pid is not None
    os.kill(pid, number)
    deadline = time.monotonic() + 5
    while driver.status and time.monotonic() < deadline:
        time.sleep(0.02)
    assert driver.status == 0


def test_shell_commands_and_off(make_environment: MakeEnvironment) -> None:
    target = make_environment().get_target()
    strategy = target.get_driver("KitStrategy")
    strategy.transition("shell")
    assert strategy.boot_seconds > 0
    shell = target.get_driver("ShellDriver")
    assert shell.run_check("echo $((6*7))") == ["42"]
    assert shell.run("exit 3")[2] == 3
    service = target.get_resource(NetworkService)
    assert (service.address, service.port) == ("127.0.0.1", 45678)
    driver = target.get_driver("KitQEMUDriver")
    strategy.transition("off")
    assert strategy.status is Status.off and driver.status == 0
    strategy.transition("shell")
    assert target.get_driver("ShellDriver").run_check("echo again") == ["again"]


def test_qemu_that_refuses_its_options_does_not_block(make_environment: MakeEnvironment) -> None:
    strategy = make_environment(qemu="exit").get_target().get_driver("KitStrategy")
    started = time.monotonic()
    with pytest.raises(StrategyError):
        strategy.transition("shell")
    assert time.monotonic() - started < 10
    assert isinstance(strategy.broken, KitError)
    assert "unsupported machine type" in strategy.broken.tail


def test_crash_is_an_error_and_on_starts_anew(make_environment: MakeEnvironment) -> None:
    driver = make_environment().get_target().get_driver("KitQEMUDriver")
    driver.on()
    driver.expect("root@fake:~# ", timeout=10)
    kill_qemu(driver, signal.SIGKILL)
    with pytest.raises(KitError, match="QEMU was killed by SIGKILL"):
        driver.expect("never", timeout=5)
    failure = driver.failure()
    assert failure is not None and "SIGKILL" in failure.message
    driver.on()
    assert driver.status == 1
    driver.expect("root@fake:~# ", timeout=10)
    driver.off()
    driver.off()


def test_cycle_after_a_crash(make_environment: MakeEnvironment) -> None:
    driver = make_environment().get_target().get_driver("KitQEMUDriver")
    driver.on()
    kill_qemu(driver, signal.SIGKILL)
    driver.cycle()
    driver.expect("root@fake:~# ", timeout=10)


def test_guest_that_switches_itself_off(make_environment: MakeEnvironment) -> None:
    driver = make_environment(qemu="poweroff").get_target().get_driver("KitQEMUDriver")
    driver.on()
    driver.wait_powered_off(timeout=10)
    assert driver.status == 0
    assert driver.failure() is None
    with pytest.raises(ExecutionError, match="switched itself off"):
        driver.write(b"hello")


def test_megabytes_to_the_console_arrive_whole(make_environment: MakeEnvironment) -> None:
    driver = make_environment(qemu="count").get_target().get_driver("KitQEMUDriver")
    driver.on()
    assert driver.write(b"x" * 3_999_999 + b"\n") == 4_000_000
    driver.expect("4000000 bytes", timeout=20)


def test_silence_is_a_timeout(make_environment: MakeEnvironment) -> None:
    driver = make_environment(qemu="deaf").get_target().get_driver("KitQEMUDriver")
    driver.on()
    with pytest.raises(TIMEOUT):
        driver.expect("never", timeout=0.5)


def test_monitor_reset_and_port_forwards(make_environment: MakeEnvironment) -> None:
    driver = make_environment().get_target().get_driver("KitQEMUDriver")
    with pytest.raises(ExecutionError, match="switched off"):
        driver.monitor_command("query-status")
    driver.on()
    assert driver.monitor_command("query-status") == {}
    driver.reset()
    # the stand-in answers every line of the human monitor with words, and words are an error
    with pytest.raises(ExecutionError, match="HOST_FORWARD"):
        driver.add_port_forward("tcp", "127.0.0.1", 1, "10.0.2.15", 2)


def test_output_of_an_earlier_boot_is_forgotten(make_environment: MakeEnvironment) -> None:
    driver = make_environment().get_target().get_driver("KitQEMUDriver")
    driver.on()
    driver.expect("Linux version", timeout=10)
    with pytest.raises(TIMEOUT):
        driver.expect("never", timeout=0.5)
    driver.cycle()
    _, before, _, _ = driver.expect("Linux version", timeout=10)
    assert b"root@fake" not in before


@pytest.mark.parametrize(
    ("mode", "words", "hint"),
    [
        ("deaf", "the console is silent", "powered"),
        ("noise", "the console sends garbage", "baud rate"),
        ("stopped", "the last line is 'sh-5.2# '", "prompts"),
    ],
)
def test_a_boot_without_a_prompt_is_explained(
    make_environment: MakeEnvironment, mode: str, words: str, hint: str
) -> None:
    target = make_environment(qemu=mode).get_target()
    shell = target.get_driver("ShellDriver", activate=False)
    shell.login_timeout, shell.await_login_timeout = 2, 1
    strategy = target.get_driver("KitStrategy")
    started = time.monotonic()
    with pytest.raises(StrategyError):
        strategy.transition("shell")
    assert time.monotonic() - started < 20
    error = strategy.broken
    assert isinstance(error, KitError) and error.code is ExitCode.INFRASTRUCTURE
    assert "booting to the shell" in error.message and words in error.message and hint in error.hint
    assert mode != "stopped" or "emergency mode" in error.tail


@pytest.mark.parametrize(("program", "mode"), [("model", "exit"), ("model", "die"), ("qemu", "die"), ("qemu", "close")])
def test_programs_that_die_at_each_stage(make_environment: MakeEnvironment, program: str, mode: str) -> None:
    strategy = make_environment(**{program: mode}).get_target().get_driver("KitStrategy")
    started = time.monotonic()
    with pytest.raises((StrategyError, KitError)):
        strategy.transition("shell")
        # the model dies a second after the guest has begun
        shell = strategy.target.get_driver("ShellDriver")
        while time.monotonic() - started < 20:
            shell.run("echo still there", timeout=5.0)
    assert time.monotonic() - started < 20
    failure = strategy.target.get_driver("KitQEMUDriver", activate=False).failure() or strategy.broken
    assert isinstance(failure, KitError) and failure.code is ExitCode.INFRASTRUCTURE
    assert failure.tail or failure.log


def test_logs_stay(make_environment: MakeEnvironment, tmp_path: Path) -> None:
    driver = make_environment().get_target().get_driver("KitQEMUDriver")
    driver.on()
    driver.off()
    assert (driver.results_dir / "qemu.log").exists()
    assert driver.results_dir.parent == tmp_path / "results"
