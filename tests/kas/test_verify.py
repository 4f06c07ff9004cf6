# SPDX-License-Identifier: MIT
"""``npulab kas verify``: what it makes of the tools' output (lines of real runs), and how it goes on and fails."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import KAS, LAYER, MACHINES

from lab.errors import ExitCode, KitError
from lab.kas import host, outputs, verify
from lab.kas.verify_plan import CONFIGURATIONS, STEPS, choose, items, machines
from lab.kas.verify_report import summary
from lab.output import Output

PARSED = (
    "Loaded 0 entries from dependency cache.\nParsing recipes...done.\n"
    "Parsing of 959 .bb files complete (0 cached, 959 parsed). 1980 targets, 63 skipped, 0 masked, 0 errors.\n"
)
TASKS = (
    "2026-11-21 10:13:26 - INFO     - NOTE: Tasks Summary: Attempted 37 tasks of which 13 didn't need to be rerun "
    "and all succeeded.\n"
)
ONE_FAILED = "NOTE: Tasks Summary: Attempted 412 tasks of which 0 didn't need to be rerun and 1 failed.\n"
NO_NETWORK = """\
2026-11-21 11:24:46 - INFO     - Cloning repository meta-arm
2026-11-21 11:24:46 - ERROR    - Command "/w$ git clone -q -- https://git.yoctoproject.org/meta-arm /w/meta-arm" failed:
fatal: unable to access 'https://git.yoctoproject.org/meta-arm/': Could not resolve host: git.yoctoproject.org
2026-11-21 11:24:46 - ERROR    - fetch repos failed: error code 128
"""
REVIEW = """\
Found layers meta-review
Missing CVE tag (/w/meta-review/recipes-kernel/linux/6.18/0005-accel-rocket-fix-UAF.patch)

Total patches found: 23
Patches missing Signed-off-by: 0 (0%)
Patches with malformed Signed-off-by: 0 (0%)
Patches missing CVE: 1 (4%)
Patches missing Upstream-Status: 0 (0%)
Patches with malformed Upstream-Status: 0 (0%)
Patches in Pending state: 9 (39%)
"""
WITHOUT_VERDICT = """\
INFO: Getting initial bitbake variables ...
INFO: Getting initial signatures ...
INFO: Generating signatures failed. This might be due to some parse error and/or general layer incompatibilities.
ERROR: Parsing halted due to errors, see error messages above
"""
FAILED_LAYER = """\
INFO: Summary of results:
INFO: recipes ... FAIL (Generating world signatures)
"""
EDGES = """\
digraph depends {
"busybox.do_build" [label="busybox do_build\\n:1.37.0-r0\\n/w/busybox_1.37.0.bb"]
"busybox.do_build" -> "busybox.do_package"
"busybox.do_package" [label="busybox do_package\\n:1.37.0-r0\\n/w/busybox_1.37.0.bb"]
"mesa.do_build" -> "libdrm.do_build"
}
"""


def test_figures_of_a_parse() -> None:
    assert outputs.parsed(PARSED) == {
        "recipe_files": 959,
        "cached": 0,
        "targets": 1980,
        "skipped": 63,
        "masked": 0,
        "errors": 0,
    }
    assert outputs.parsed("Loaded 1980 entries from dependency cache.") == {}


def test_summary_of_a_run() -> None:
    assert outputs.tasks(TASKS) == {"tasks": 37, "not_rerun": 13, "all_succeeded": True}
    assert outputs.tasks(ONE_FAILED)["all_succeeded"] is False
    assert outputs.tasks(PARSED) == {}


def test_graph_counts_recipes_and_tasks_and_finds_llvm() -> None:
    found = outputs.graph("mesa\nclang-native\nbusybox\nllvm-project-source-22.1.8\nlibclc-native\n", EDGES)
    assert found["recipes"] == 5
    assert found["tasks"] == 3
    assert found["llvm"] == ["clang-native", "libclc-native", "llvm-project-source-22.1.8"]


def test_patch_review() -> None:
    counts = outputs.patch_review(REVIEW)
    assert counts["Total patches found"] == 23
    assert outputs.faulty_patches(counts) == ["Patches missing CVE: 1"]
    assert outputs.faulty_patches({**counts, "Patches missing CVE": 0}) == []


def test_layer_check() -> None:
    assert outputs.layer_check(FAILED_LAYER)["verdicts"] == {"recipes": "FAIL (Generating world signatures)"}
    assert outputs.layer_check(WITHOUT_VERDICT)["verdicts"] == {}
    assert outputs.errors(WITHOUT_VERDICT) == ["Parsing halted due to errors, see error messages above"]


def test_every_option_that_changes_an_image_is_in_a_configuration() -> None:
    known = {path.stem for path in (KAS / "opt").glob("*.yml")}
    used = {name for one in CONFIGURATIONS for name in (*one.options, *one.on_boards)}
    # the default, targets that other items have, and what changes only how a build runs
    others = {"kernel-7.3", "kernel-only", "rescue", "host-toolchain", "offline", "mirrors", "icecc"}
    assert known - others == used


def test_every_image_of_every_machine_is_in_graphs_and_dry_runs() -> None:
    images = {path.stem for path in LAYER.glob("recipes-core/images/*.bb")}
    for step in ("graph", "dryrun"):
        todo = [item for item in items([step], machines()) if item.configuration]
        for machine in MACHINES:
            targets = {name for item in todo if item.machine == machine for name in item.configuration.targets}
            assert images <= targets
            assert any(name.endswith(":do_testimage") for name in targets)


@pytest.mark.parametrize(("what", "name"), [("step", "grap"), ("machine", "rock-5")])
def test_unknown_names_are_told_with_those_that_exist(what: str, name: str) -> None:
    with pytest.raises(KitError) as caught:
        choose(what, [name], list(STEPS) if what == "step" else MACHINES)
    assert caught.value.code == ExitCode.USAGE
    assert name in caught.value.message
    assert "graph" in caught.value.hint or "rock-5-itx" in caught.value.hint


# -- whole runs, with a program in kas's place that prints what the real one printed ----------------------------------

STAND_IN = """\
#!/bin/sh
echo "$@" >> "$KAS_WORK_DIR/asked"
case "$*" in
    *--version*) echo "kas 5.5"; exit ;;
    checkout*orangepi*) [ ! -e "$KAS_WORK_DIR/offline" ] || { cat "$KAS_WORK_DIR/offline"; exit 2; } ;;
    *"bitbake -g"*)
        mkdir -p "$KAS_BUILD_DIR"
        cp "$KAS_WORK_DIR/pn-buildlist" "$KAS_WORK_DIR/task-depends.dot" "$KAS_BUILD_DIR"
        cat "$KAS_WORK_DIR/parsed" ;;
    *"bitbake -n"*) cat "$KAS_WORK_DIR/tasks" ;;
esac
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory whose kas is the stand-in."""
    program = tmp_path / "kas"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    for name, text in (
        ("parsed", PARSED),
        ("tasks", TASKS),
        ("task-depends.dot", EDGES),
        ("pn-buildlist", "busybox\n"),
    ):
        (folder / name).write_text(text)
    monkeypatch.setattr(host, "find_kas", lambda: program)
    monkeypatch.setattr(host, "check_locale", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(verify, "SPACE", 1)
    return folder


def run(work: Path, *steps: str, fresh: bool = False) -> dict[str, Any]:
    options = verify.Options(steps=steps, machines=["orangepi-5", "rk3588-virt"], work=work, fresh=fresh)
    return verify.Verification(options, Output(quiet=True)).run()


def asked(work: Path) -> list[str]:
    """What kas was asked since the last time, its version left out."""
    path = work / "asked"
    lines = [line for line in path.read_text().splitlines() if "--version" not in line] if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_run_asks_for_every_image_and_its_facts_are_in_the_summary(work: Path) -> None:
    document = run(work, "checkout", "graph", "dryrun")
    assert document["ok"]
    lines = asked(work)
    assert "checkout kas/rk3588-virt.yml" in lines
    assert "shell kas/orangepi-5.yml:kas/opt/offline.yml -c bitbake -n npu-bringup-image npu-rescue-initramfs" in lines
    assert any("kas/opt/loader.yml" in line for line in lines if "orangepi-5" in line)
    assert not any("kas/opt/loader.yml" in line for line in lines if "rk3588-virt" in line)
    page = (work / verify.REPORT).read_text()
    assert "| orangepi-5 | none | `npu-bringup-image`, `npu-rescue-initramfs` | 959 | 1 | 3 | no |" in page
    assert "| rk3588-virt | testimage | 37 | all succeeded |" in page
    assert "- graph rock-5-itx images" in page
    assert "- board" in page


def test_second_run_does_only_what_is_left(work: Path) -> None:
    run(work, "checkout")
    asked(work)
    assert run(work, "checkout", "dryrun")["ok"]
    lines = asked(work)
    assert lines
    assert not any(line.startswith("checkout") for line in lines)
    run(work, "checkout", fresh=True)
    assert len(asked(work)) == 2


def test_everything_is_done_again_when_the_files_changed(work: Path) -> None:
    run(work, "checkout")
    asked(work)
    state = json.loads((work / verify.STATE).read_text())
    (work / verify.STATE).write_text(json.dumps({**state, "inputs": "another tree"}))
    run(work, "checkout")
    assert len(asked(work)) == 2


def test_failure_is_one_line_and_the_rest_goes_on(work: Path) -> None:
    (work / "offline").write_text(NO_NETWORK)
    document = run(work, "checkout")
    assert not document["ok"]
    failed, passed = (document["items"][f"checkout {name}"] for name in ("orangepi-5", "rk3588-virt"))
    assert not failed["ok"]
    assert "git.yoctoproject.org" in failed["wrong"]
    assert "\n" not in failed["wrong"]
    assert passed["ok"]
    assert "**Not passed**" in (work / verify.REPORT).read_text()
    (work / "offline").unlink()
    asked(work)
    assert run(work, "checkout")["ok"]
    assert asked(work) == ["checkout kas/orangepi-5.yml"]


def test_llvm_without_gpu_drivers_is_a_failure(work: Path) -> None:
    (work / "pn-buildlist").write_text("busybox\nllvm-native\n")
    found = run(work, "graph")["items"]
    assert "llvm-native" in found["graph orangepi-5 images"]["wrong"]
    assert found["graph orangepi-5 options"]["ok"], "it asks for GPU drivers"


def test_another_kernel_or_the_vendor_s_firmware_is_a_failure(work: Path) -> None:
    (work / "pn-buildlist").write_text("busybox\nlinux-yocto-fitimage\nrockchip-rkbin-tf-a\nlinux-rocket\n")
    found = run(work, "graph")["items"]["graph orangepi-5 images"]
    assert found["wrong"] == "it builds linux-yocto-fitimage, rockchip-rkbin-tf-a"


def test_dry_run_with_a_failed_task_does_not_pass(work: Path) -> None:
    (work / "tasks").write_text(ONE_FAILED)
    assert not run(work, "dryrun")["items"]["dryrun orangepi-5 images"]["ok"]


def test_root_is_refused_before_anything_runs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(KitError) as caught:
        run(work, "graph")
    assert caught.value.code == ExitCode.REFUSED
    assert asked(work) == []


def test_too_small_a_disk_is_told_before_anything_runs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SPACE", 1 << 60)
    with pytest.raises(KitError) as caught:
        run(work, "graph")
    assert "GB" in caught.value.message
    assert asked(work) == []


def test_second_run_at_the_same_time_is_refused(work: Path) -> None:
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(KitError) as caught:
            run(work, "graph")
    assert "another kas verify" in caught.value.message
    assert asked(work) == []


def test_set_without_a_manifest_is_told(work: Path, tmp_path: Path) -> None:
    options = verify.Options(steps=["kernel"], machines=["orangepi-5"], work=work, artifacts=tmp_path)
    entry = verify.Verification(options, Output(quiet=True)).run()["items"]["kernel"]
    assert not entry["ok"]
    assert "no artifact set" in entry["wrong"]


def test_board_without_a_kernel_is_told(work: Path) -> None:
    entry = run(work, "board")["items"]["board"]
    assert "no kernel of BitBake's" in entry["wrong"]


def test_summary_of_layer_check_kernel_and_board() -> None:
    base = {"machine": "", "ok": True, "seconds": 61.4, "wrong": ""}
    document = {
        "versions": {"kas": "5.5", "bitbake": "2.18.0", "bitbake commit": "fae9db3"},
        "items": {
            "layer": {**base, "step": "layer", "verdicts": {"recipes": "PASS"}, "tests": 16},
            "kernel": {**base, "step": "kernel", "reused": False, "release": "7.3.4-npulab", "rocket": "module"},
            "board": {
                **base,
                "step": "board",
                "tree": "rk3588s-orangepi-5",
                "quick": True,
                "tests": 9,
                "failures": 0,
                "skipped": 1,
            },
        },
        "not_executed": [],
    }
    page = summary(document)
    assert "Run with kas 5.5, bitbake 2.18.0." in page
    assert "yocto-check-layer: recipes PASS, 16 tests (61 s)." in page
    assert "built by BitBake with this machine's compiler: Linux 7.3.4-npulab, rocket module (61 s)." in page
    assert "a selection of the board suite (`--quick`), 9 tests, 0 failed, 1 skipped (61 s)." in page
    assert "Not executed" not in page
