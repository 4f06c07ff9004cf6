# SPDX-License-Identifier: MIT
"""The boards' own, unmodified device trees boot on the virtual board, NPU and all.

The kernel is the virtual board's; with NPULAB_BOARD_KERNEL set it is the one for real boards, which takes a build of
its own and probes more devices (its lists are ``NAME.board.txt``).

What the machine does not model must not hang the boot; ``unmodelled/`` holds, for each tree, exactly which devices
those are. A device that is missing more than before fails the test, and so does a line that is not needed any more:
the lists only shrink.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from building import progress

from lab.assemble import board as board_kernel
from lab.assemble.virt import BuildOptions, assemble
from lab.output import Output
from lab.virt.board import BoardConfig
from lab.virt.select import board_config
from lab.virt.session import BoardSession

pytestmark = [pytest.mark.lg_feature("virtual"), pytest.mark.timeout(3600)]
"""The first test of a cold cache builds a kernel."""

LISTS = Path(__file__).parent / "unmodelled"
BOARDS = ("rock-5-itx", "rock-5-itx-plus", "orangepi-5")
CORE = re.compile(r"Rockchip NPU core (\d) version: 1179210309")
FAILED = re.compile(r"^(?:\[[^]]*\] )?(\S+) (\S+): probe with driver \S+ failed with error -\d+$")
HELPER = re.compile(r"regulator\.\d+")
"""Made by the regulator core for a device that is listed itself; its number depends on the order of probing."""
WORKLOADS = ("int8-matmul", "fp16-matmul", "int8-conv1x1")
BOARD_KERNEL = "NPULAB_BOARD_KERNEL"
NEW = "NPULAB_RECORD"
"""Set to write the lists anew instead of comparing."""


@pytest.fixture(scope="module", params=BOARDS)
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, BoardSession]:
    """A board's name and its virtual board at the shell's prompt."""
    with progress(request) as out:
        config = _config(request.param, out)
    session = BoardSession(config, tmp_path_factory.mktemp(request.param))
    session.__enter__()
    request.addfinalizer(lambda: session.__exit__(None, None, None))
    session.to("shell")
    return request.param, session


def _config(board: str, out: Output) -> BoardConfig:
    """What to boot: the virtual board's kernel or the one for real boards, with the board's own tree."""
    virtual = assemble(BuildOptions(), out)
    if not os.environ.get(BOARD_KERNEL):
        return board_config(virtual, board_kernel.dtb_name(board))
    options = board_kernel.BoardKernelOptions(rocket_module=False, jobs=os.cpu_count() or 1)
    built = board_kernel.assemble(board, options, None, out)
    return replace(board_config(virtual, str(built.dtb)), kernel=built.kernel)


def lines(session: BoardSession, command: str, timeout: float = 60.0) -> list[str]:
    found, code = session.run(command, timeout)
    assert code == 0, f"`{command}` ended with {code}: {found}"
    return found


def test_three_cores_are_probed(booted: tuple[str, BoardSession]) -> None:
    _, session = booted
    log = "\n".join(lines(session, "dmesg"))
    assert sorted(CORE.findall(log)) == ["0", "1", "2"]
    assert not re.search(r"WARNING:|BUG:|Oops|Call trace", log)


def test_matmul_and_convolution_are_right(booted: tuple[str, BoardSession]) -> None:
    _, session = booted
    chosen = " ".join(f"--only {name}" for name in WORKLOADS)
    answer = lines(session, f"python3 -m rknpu_userspace.selftest --device /dev/accel/accel0 --json {chosen}", 300.0)
    results = [json.loads(line) for line in answer if line.startswith("{")]
    assert len(results) >= len(WORKLOADS)
    assert all(result.get("ok", True) for result in results), results


def test_devices_that_are_not_modelled_only_get_fewer(booted: tuple[str, BoardSession]) -> None:
    name, session = booted
    report = (session.results / "dt-report.txt").read_text().splitlines()
    missing = {f"disabled {line.split()[1]}" for line in report if line.startswith("disabled ")}
    session.run("test -d /sys/kernel/debug/clk || mount -t debugfs none /sys/kernel/debug")
    waiting = [line.split()[0] for line in lines(session, "cat /sys/kernel/debug/devices_deferred") if line]
    missing |= {f"deferred {device}" for device in waiting if not HELPER.match(device)}
    missing |= {f"failed {found[2]}" for line in lines(session, "dmesg") if (found := FAILED.match(line))}
    path = LISTS / (f"{name}.board.txt" if os.environ.get(BOARD_KERNEL) else f"{name}.txt")
    if os.environ.get(NEW):
        path.write_text("# SPDX-License-Identifier: MIT\n" + "".join(f"{line}\n" for line in sorted(missing)))
    assert path.is_file(), f"no list for this kernel yet: {NEW}=1 writes {path.name}"
    recorded = {line for line in path.read_text().splitlines() if line and not line.startswith("#")}
    assert not missing - recorded, "devices that the machine lost"
    assert not recorded - missing, f"devices that work now: take their lines out of {path.name}"
