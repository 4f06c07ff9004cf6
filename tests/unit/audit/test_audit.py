# SPDX-License-Identifier: MIT
"""`npulab audit`: facts and evidence from kernel trees, comparison of two, and what it does with what is no kernel."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.audit import userspace
from lab.audit.table import BAD, GOOD, INFO, Cell, Column, Fact, Table, changes
from lab.cache import Cache
from lab.cli import main
from lab.errors import ExitCode, KitError
from lab.kernel import parts
from lab.output import Output

HEADER = Path(__file__).with_name("header.h").read_text()
BOARD = Path(__file__).parents[1] / "dtb/board.dts"
DOMAINS = """
#define DOMAIN_RK3588(name, pwr, wakeup, regulator) \\
	DOMAIN_M(name, pwr, wakeup, regulator)
static const struct rockchip_domain_info rk3588_pm_domains[] = {
	[RK3588_PD_GPU]		= DOMAIN_RK3588("gpu", BIT(0), false, true),
	[RK3588_PD_NPU]		= DOMAIN_RK3588("npu", BIT(1), false, true),
};
"""
JOB = "ret = pm_runtime_resume_and_get(core->dev);\niommu_detach_group(NULL, iommu_group_get(core->dev));\n"
FILES = {
    "Makefile": "# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\n",
    "MAINTAINERS": "DRM ACCEL DRIVER FOR ROCKCHIP NPU\nF:\tdrivers/accel/rocket/\n",
    "drivers/accel/rocket/Kconfig": "config DRM_ACCEL_ROCKET\n\ttristate\n",
    "drivers/accel/rocket/rocket_drv.c": (
        'static const struct of_device_id dt_match[] = {\n\t{ .compatible = "rockchip,rk3588-rknn-core" },\n\t{}\n};\n'
    ),
    "drivers/accel/rocket/rocket_job.c": JOB,
    "Documentation/devicetree/bindings/npu/rockchip,rk3588-rknn-core.yaml": "enum:\n  - rockchip,rk3588-rknn-core\n",
    "drivers/pmdomain/rockchip/pm-domains.c": DOMAINS,
    "include/uapi/drm/rocket_accel.h": HEADER,
    "include/dt-bindings/none.h": "",
    "arch/arm64/configs/defconfig": "CONFIG_DRM=m\n",
    "arch/arm64/boot/dts/rockchip/rk3588-base.dtsi": (
        "pd_npu: power-domain@8 {\n};\nnpu@fdab0000 {\n};\nnpu@fdac0000 {\n};\nnpu@fdad0000 {\n};\n"
        "iommu@fdab9000 {\n};\niommu@fdaca000 {\n};\niommu@fdada000 {\n};\n"
    ),
}


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("dtc") is None:
        pytest.skip("dtc is not installed (device-tree-compiler)")
    monkeypatch.setenv("NPULAB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "linux"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    boards = root / "arch/arm64/boot/dts/rockchip"
    source = BOARD.read_text()
    (boards / "rk3588s-orangepi-5.dts").write_text(source)
    (boards / "rk3588-rock-5-itx.dts").write_text(source.replace('status = "okay";', 'status = "disabled";'))
    (boards / "rk3588-other.dts").write_text("/dts-v1/;\n/ { broken\n")
    return root


def audit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    capsys.readouterr()
    code = main(["audit", "--json", "--quiet", "--no-userspace", *arguments])
    return code, json.loads(capsys.readouterr().out)


def cells(document: dict[str, object], label: str = "7.3.4") -> dict[str, dict[str, str]]:
    rows = document["rows"]
    assert isinstance(rows, list)
    return {row["key"]: row["cells"][label] for row in rows}


def test_facts_have_values_and_evidence(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = audit(capsys, "--kernel", str(kernel))
    found = cells(document)
    assert code == ExitCode.OK
    assert all(cell["evidence"] for cell in found.values())
    assert found["driver"] == {"value": "yes", "state": GOOD, "evidence": "drivers/accel/rocket/Kconfig:1"}
    assert found["compatibles"]["value"] == "rockchip,rk3588-rknn-core"
    assert found["npu-regulator"] == {
        "value": "yes",
        "state": GOOD,
        "evidence": "drivers/pmdomain/rockchip/pm-domains.c:6",
    }
    assert found["npu-nodes"]["value"] == found["npu-iommus"]["value"] == "3"
    assert found["board-rk3588s-orangepi-5"]["value"] == "3 cores"
    assert "domain-supply = /i2c@fea90000/regulator@42" in found["board-rk3588s-orangepi-5"]["evidence"]
    assert (found["board-rk3588-rock-5-itx"]["value"], found["board-rk3588-rock-5-itx"]["state"]) == ("off", BAD)
    assert found["board-rk3588-other"]["value"] == "does not compile"
    assert "syntax error" in found["board-rk3588-other"]["evidence"]
    assert found["defconfig-CONFIG_DRM_ACCEL_ROCKET"]["value"] == "n"
    fix = found["fix-accel/rocket: Fix error path handling in rocket_job_run()"]
    assert (fix["value"], fix["evidence"]) == ("has it", "drivers/accel/rocket/rocket_job.c:1")
    assert found["fix-accel/rocket: Don't leak an IOMMU group reference per job"]["state"] == BAD


def test_domain_without_the_regulator_parameter_is_a_no(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = kernel / "drivers/pmdomain/rockchip/pm-domains.c"
    path.write_text(DOMAINS.replace(", regulator)", ")").replace(", false, true)", ", true)"))
    assert cells(audit(capsys, "--kernel", str(kernel))[1])["npu-regulator"]["value"] == "no"


def test_since_shows_only_changes_and_fails_on_a_regression(
    kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(kernel, newer)
    (newer / "MAINTAINERS").write_text("\nDRM ACCEL DRIVER FOR ROCKCHIP NPU\nF:\tdrivers/accel/rocket/\n")
    pair = ("--since", f"old={kernel}", "--kernel", f"new={newer}")
    code, document = audit(capsys, *pair)
    assert (code, document["since"]) == (ExitCode.OK, [{"from": "old", "to": "new", "changes": []}])
    board = newer / "arch/arm64/boot/dts/rockchip/rk3588s-orangepi-5.dts"
    board.write_text(board.read_text().replace("iommus = <&mmu1>;", ""))
    code, document = audit(capsys, *pair)
    assert code == ExitCode.FAILED
    (entry,) = document["since"]  # type: ignore[misc]
    (change,) = entry["changes"]  # type: ignore[index]
    assert change["key"] == "board-rk3588s-orangepi-5"
    assert change["regressed"]
    assert change["is"] == "3 cores, it has no iommus"


def test_rows_that_nothing_relies_on_do_not_fail(
    kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(kernel, newer)
    (newer / "MAINTAINERS").write_text("")
    code, document = audit(capsys, "--since", f"old={kernel}", "--kernel", f"new={newer}")
    assert code == ExitCode.OK
    (entry,) = document["since"]  # type: ignore[misc]
    assert [change["key"] for change in entry["changes"]] == ["maintainers"]  # type: ignore[index]


def test_markdown_and_page_hold_every_row(kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, page = tmp_path / "audit.md", tmp_path / "audit.html"
    arguments = ("--kernel", f"mine={kernel}", "--markdown", str(text), "--html", str(page))
    _, document = audit(capsys, *arguments)
    rows = document["rows"]
    assert isinstance(rows, list)
    for row in rows:
        assert f"| {row['title']} |" in text.read_text()
    assert "**off**<br><sub>rk3588-rock-5-itx.dtb: /npu@fdab0000/status</sub>" in text.read_text()
    assert str(kernel) not in text.read_text()
    assert page.read_text().count("<tr>") > len(rows)


@pytest.mark.parametrize("missing", ["Makefile", "arch/arm64/boot/dts/rockchip"])
def test_what_is_no_kernel_is_one_line_with_the_three_ways(
    kernel: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    path = kernel / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["audit", "--quiet", "--no-userspace", "--kernel", str(kernel)]) == ExitCode.USAGE
    message = capsys.readouterr().err
    assert "is no Linux source tree" in message
    assert "one of three ways" in message


def test_wrong_names_are_refused(kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--kernel", str(kernel), "--kernel", f"7.3.4={kernel}", "--quiet"]) == ExitCode.USAGE
    assert "two kernels are called 7.3.4" in capsys.readouterr().err
    text = tmp_path / "kernel.deb"
    text.write_text("no package")
    assert main(["audit", "--kernel", str(text)]) == ExitCode.USAGE
    assert "no Debian package" in capsys.readouterr().err


def test_tarball_is_unpacked_in_parts_and_damage_leaves_no_entry(
    kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(kernel, folder / "linux-7.3.4")
    (folder / "linux-7.3.4/sound").mkdir()
    (folder / "linux-7.3.4/sound/large.c").write_text("x" * 1000)
    archive = Path(shutil.make_archive(str(tmp_path / "linux"), "xztar", folder, "linux-7.3.4"))
    code, document = audit(capsys, "--kernel", str(archive))
    assert code == ExitCode.OK
    assert cells(document)["driver"]["value"] == "yes"
    (entry,) = (tmp_path / "cache/kernel-parts").iterdir()
    assert not (entry / "sound").exists()
    archive.write_bytes(archive.read_bytes()[:-200])
    assert main(["audit", "--kernel", str(archive), "--quiet"]) == ExitCode.USAGE
    assert [path.name for path in (tmp_path / "cache/kernel-parts").iterdir()] == [entry.name]


def test_versions_are_read(kernel: Path) -> None:
    assert parts.version_of(kernel) == "7.3.4"
    (kernel / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 4\nSUBLEVEL = 0\nEXTRAVERSION = -rc2\n")
    assert parts.version_of(kernel) == "7.4.0-rc2"


def test_moved_evidence_is_no_change() -> None:
    table = Table()
    old, new = Column("old", "old", {}), Column("new", "new", {})
    for column, line in ((old, "a:1"), (new, "a:9")):
        table.add(column, [Fact("g", "k", "t", Cell("yes", GOOD, line)), Fact("g", "i", "t", Cell(line, INFO, ""))])
    assert [change.row.key for change in changes(table, old, new)] == ["i"]


def test_delegate_with_and_without_rocket(tmp_path: Path) -> None:
    assert userspace.examine(b"\0ROCKET_DEBUG\0rocket\0/dev/accel/accel0\0")[0]
    assert not userspace.examine(b"\0ETNA_DEBUG\0etnaviv\0")[0]
    path = tmp_path / "libteflon.so"
    path.write_bytes(b"\0etnaviv\0")
    assert not userspace.from_file(path).rocket
    with pytest.raises(KitError, match="No such file"):
        userspace.from_file(tmp_path / "none.so")


def test_column_of_a_tree_says_what_it_is_and_not_where(kernel: Path, tmp_path: Path) -> None:
    page = tmp_path / "audit.md"
    assert main(["audit", "--kernel", str(kernel), "--no-userspace", "--markdown", str(page)]) == 0
    text = page.read_text()
    before = parts.open_kernel(str(kernel), Cache(), Output(quiet=True)).origin
    assert f"| 7.3.4 | tree, contents {before['contents']} |" in text
    assert str(tmp_path) not in text
    driver = kernel / "drivers/accel/rocket/rocket_job.c"
    driver.write_text(driver.read_text() + "/* edited */\n")
    assert parts.open_kernel(str(kernel), Cache(), Output(quiet=True)).origin != before
    git = ["git", "-C", str(kernel), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert parts.open_kernel(str(kernel), Cache(), Output(quiet=True)).origin["commit"] == head[:12]
