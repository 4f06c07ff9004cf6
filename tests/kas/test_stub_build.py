# SPDX-License-Identifier: MIT
"""The real kas on these files, against small stand-ins of the repositories: what it asks BitBake to do, and how."""

from __future__ import annotations

from pathlib import Path

import pytest
import stubs
from conftest import MACHINES
from stubs import Kas


@pytest.fixture
def kas(tmp_path: Path, programs: Path) -> Kas:
    return stubs.make(tmp_path, programs)


def asked(kas: Kas) -> str:
    return (kas.top / "build/asked").read_text().strip()


@pytest.mark.parametrize("machine", MACHINES)
def test_build_asks_for_the_image_of_the_machine(kas: Kas, machine: str) -> None:
    kas.run("build", f"kas/{machine}.yml")
    assert asked(kas) == "-c build npu-bringup-image"
    local, layers = kas.configuration("local.conf"), kas.configuration("bblayers.conf")
    assert f'MACHINE ??= "{machine}"' in local
    assert 'DISTRO ??= "nodistro"' in local
    assert ("meta-rockchip" in layers) == (machine != "rk3588-virt")
    assert "project/recipes" in layers
    assert "openembedded-core/meta" in layers


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("kernel-6.18", 'PREFERRED_VERSION_linux-rocket = "6.18%"'),
        ("kernel-debug", 'NPULAB_KERNEL_DEBUG = "1"'),
        ("without-fixes", 'NPULAB_FIXES = "0"'),
        ("rocket-builtin", 'NPULAB_ROCKET = "builtin"'),
        ("gpu", 'NPULAB_GPU = "1"'),
        ("loader", 'NPULAB_LOADER = "1"'),
        ("offline", 'BB_NO_NETWORK = "1"'),
        ("mirrors", 'BB_SIGNATURE_HANDLER = "OEEquivHash"'),
        ("icecc", 'CCACHE:pn-linux-rocket = "icecc "'),
        ("testimage", 'IMAGE_CLASSES += "testimage"'),
        ("host-toolchain", "require conf/include/npulab-host-toolchain.inc"),
    ],
)
def test_option_reaches_the_configuration(kas: Kas, option: str, line: str) -> None:
    kas.run("build", f"kas/orangepi-5.yml:kas/opt/{option}.yml")
    assert line in kas.configuration("local.conf")


@pytest.mark.parametrize(("option", "target"), [("rescue", "npu-rescue-initramfs"), ("kernel-only", "virtual/kernel")])
def test_option_changes_the_target(kas: Kas, option: str, target: str) -> None:
    kas.run("build", f"kas/rk3588-virt.yml:kas/opt/{option}.yml")
    assert asked(kas) == f"-c build {target}"


def test_later_kernel_choice_wins(kas: Kas) -> None:
    kas.run("build", "kas/orangepi-5.yml:kas/opt/kernel-6.18.yml:kas/opt/kernel-7.3.yml")
    text = kas.configuration("local.conf")
    assert '"7.3%"' in text
    assert '"6.18%"' not in text


def test_lock_pins_what_is_fetched(kas: Kas) -> None:
    kas.run("lock", "kas/rk3588-virt.yml")
    text = (kas.top / "project/kas/rk3588-virt.lock.yml").read_text()
    assert text.count("commit:") == 2
    dumped = kas.run("dump", "--resolve-refs", "kas/rk3588-virt.yml")
    assert dumped.count("commit:") >= 2


def test_missing_commit_is_told(kas: Kas) -> None:
    lock = kas.top / "project/kas/orangepi-5.lock.yml"
    lock.write_text(f'header:\n  version: 14\noverrides:\n  repos:\n    meta-arm:\n      commit: "{"0" * 40}"\n')
    assert "0" * 40 in kas.run("build", "kas/orangepi-5.yml", ok=False)
