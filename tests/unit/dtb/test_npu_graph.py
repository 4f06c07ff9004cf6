# SPDX-License-Identifier: MIT
"""`npulab dtb check`: what is missing for the NPU is found, named and explained; what is whole passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.cli import main
from lab.errors import ExitCode, KitError
from lab.kernel import fdtree, graph, picture

Compile = Callable[..., Path]


def examine(path: Path) -> graph.Graph:
    return graph.examine(fdtree.load_rk3588(path))


def test_whole_board_passes(board: Compile) -> None:
    found = examine(board())
    assert found.ok
    assert found.findings == []
    assert found.state == "enabled"
    kinds = {edge.kind for edge in found.edges}
    assert {"iommus", "power-domains", "parent", "clocks", "resets", "npu-supply", "domain-supply"} <= kinds
    assert found.kinds["/i2c@fea90000/regulator@42"] == "supply"


BROKEN = [
    pytest.param(("interrupts = <0 110 4 0>;\n\t\t", ""), "/npu@fdab0000", "it has no interrupt", id="interrupt"),
    pytest.param(("iommus = <&mmu0>;", ""), "/npu@fdab0000", "it has no iommus", id="no iommu"),
    pytest.param(("iommus = <&mmu0>;", "iommus = <0x7777>;"), "/npu@fdab0000", "iommus leads nowhere", id="dangling"),
    pytest.param(
        ("power-domains = <&power 9>;\n\t\tiommus", "power-domains = <&power 77>;\n\t\tiommus"),
        "/npu@fdab0000",
        "power domain 77 has no node",
        id="no domain",
    ),
    pytest.param(
        ('"srst_a", "srst_h"', '"srst_a", "other"'), "/npu@fdab0000", "reset-names lacks srst_h", id="reset name"
    ),
    pytest.param(
        ('"aclk", "hclk", "npu", "pclk"', '"aclk", "hclk", "npu"'),
        "/npu@fdab0000",
        "clock-names lacks pclk",
        id="clock name",
    ),
    pytest.param(('"pc", "cna", "core"', '"pc", "cna"'), "/npu@fdab0000", "reg-names lacks core", id="region"),
    pytest.param(
        ('"rockchip,rk3588-iommu", "rockchip,rk3568-iommu"', '"rockchip,rk3588-iommu"'),
        "/iommu@fdab9000",
        "compatible is rockchip,rk3588-iommu",
        id="iommu compatible",
    ),
    pytest.param(
        ('regulator-name = "vdd_npu_s0";', ""),
        "/i2c@fea90000/regulator@42",
        "domain-supply of /power-management@fd8d8000/power-controller/power-domain@8 names it, but it is no regulator",
        id="no regulator",
    ),
]


@pytest.mark.parametrize(("change", "path", "what"), BROKEN)
def test_each_broken_reference_is_an_error(board: Compile, change: tuple[str, str], path: str, what: str) -> None:
    found = examine(board(change))
    assert (path, what) in [(finding.path, finding.what) for finding in found.errors]
    assert not found.ok


def test_disabled_bus_above_the_regulator_is_seen(board: Compile) -> None:
    found = examine(board(('i2c@fea90000 {\n\t\tstatus = "okay";', 'i2c@fea90000 {\n\t\tstatus = "disabled";')))
    (first, *_) = found.errors
    assert "/i2c@fea90000/regulator@42 is disabled" in first.what
    assert "/i2c@fea90000 has status disabled" in first.why


def test_disabled_iommu_blocks_its_core_only(board: Compile) -> None:
    change = (
        'power-domains = <&power 10>;\n\t\tstatus = "okay";',
        'power-domains = <&power 10>;\n\t\tstatus = "disabled";',
    )
    found = examine(board(change))
    assert [finding.path for finding in found.errors] == ["/npu@fdac0000"]


def test_disabled_cores_are_reported_with_what_else_they_lack(board: Compile) -> None:
    text = 'npu-supply = <&rail>;\n\t\tsram-supply = <&rail>;\n\t\tstatus = "okay";'
    found = examine(board((text, 'status = "disabled";')))
    assert found.state == "partial"
    whats = [finding.what for finding in found.findings if finding.path == "/npu@fdab0000"]
    assert whats == ["the core is disabled", "it has no npu-supply", "it has no sram-supply"]


@pytest.mark.parametrize(
    ("rail", "why"),
    [("", "kernel cuts unused rails 30 s after boot"), ("regulator-always-on;", "works only because")],
)
def test_domain_without_supply_is_a_warning_that_says_what_happens(board: Compile, rail: str, why: str) -> None:
    name = 'regulator-name = "vdd_npu_s0";'
    found = examine(board(("domain-supply = <&rail>;", ""), (name, f"{name} {rail}")))
    (finding,) = found.findings
    assert (finding.level, finding.what) == ("warning", "it has no domain-supply")
    assert why in finding.why
    assert "/i2c@fea90000/regulator@42" in finding.why


def test_clock_order_and_rate_are_warnings(board: Compile) -> None:
    found = examine(
        board(
            ('"aclk", "hclk", "npu", "pclk"', '"hclk", "aclk", "npu", "pclk"'),
            ("<200000000>", "<1000000000>"),
        )
    )
    assert found.ok
    assert [finding.what for finding in found.findings] == [
        "aclk is not the first clock",
        "assigned-clock-rates asks for 1000 MHz",
    ]


def test_vendor_node_and_missing_node_are_explained(board: Compile) -> None:
    path = board()
    data = path.read_bytes().replace(b"rockchip,rk3588-rknn-core\0", b"rockchip,rk3588-xxxx-core\0")
    path.write_bytes(data)
    found = examine(path)
    assert found.state == "absent"
    assert "6.18" in found.errors[0].why
    vendor = examine(
        board(('compatible = "rockchip,rk3588-rknn-core"', 'compatible = "rockchip,rk3588-rknpu"'), name="v")
    )
    assert "vendor kernel" in vendor.errors[0].why


def test_missing_core_is_an_error_but_the_others_are_followed(board: Compile) -> None:
    source = board().with_suffix(".dts").read_text()
    cut = source.index("\tnpu@fdad0000")
    found = examine(board((source[cut:], "};\n"), name="two"))
    assert [finding.what for finding in found.errors] == ["there is no core at fdad0000"]
    assert len(found.cores) == 2


def test_truncated_and_foreign_files_are_one_line(board: Compile, tmp_path: Path) -> None:
    whole = board()
    cut = tmp_path / "cut.dtb"
    cut.write_bytes(whole.read_bytes()[:500])
    other = board(('"rockchip,rk3588"', '"rockchip,rk3576"'), name="other")
    text = tmp_path / "text.dtb"
    text.write_text("no device tree\n" * 10)
    for path, words in ((cut, "cut off at 500"), (other, "not an RK3588 board"), (text, "not a compiled device tree")):
        with pytest.raises(KitError, match=words) as caught:
            fdtree.load_rk3588(path)
        assert caught.value.code is ExitCode.USAGE


def test_damage_anywhere_never_ends_in_a_traceback(board: Compile, tmp_path: Path) -> None:
    blob = board().read_bytes()
    path = tmp_path / "damaged.dtb"
    outcomes = set()
    for position in range(40, len(blob), 97):
        path.write_bytes(blob[:position] + bytes([blob[position] ^ 0xFF]) + blob[position + 1 :])
        try:
            graph.examine(fdtree.load_rk3588(path))
            outcomes.add("parsed")
        except KitError as error:
            assert error.code is ExitCode.USAGE
            outcomes.add("refused")
    assert outcomes == {"parsed", "refused"}


def test_command_prints_a_document_draws_and_fails_on_errors(
    board: Compile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = board(), board(("iommus = <&mmu0>;", ""), name="bad")
    pattern = tmp_path / "graph-%s.svg"
    assert main(["dtb", "check", str(good), str(bad), "--picture", str(pattern), "--json"]) == ExitCode.FAILED
    document = json.loads(capsys.readouterr().out)
    assert [tree["ok"] for tree in document["trees"]] == [True, False]
    for name in ("graph-board.svg", "graph-bad.svg"):
        assert "<svg" in (tmp_path / name).read_text()
    assert main(["dtb", "check", str(good)]) == ExitCode.OK


def test_strict_makes_warnings_fail(board: Compile) -> None:
    path = board(("domain-supply = <&rail>;", ""))
    assert main(["dtb", "check", str(path)]) == ExitCode.OK
    assert main(["dtb", "check", "--strict", str(path)]) == ExitCode.FAILED


def test_picture_of_an_unknown_format_is_refused(board: Compile, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"\.svg or \.png"):
        picture.draw(examine(board()), tmp_path / "graph.gif")
