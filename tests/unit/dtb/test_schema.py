# SPDX-License-Identifier: MIT
"""Findings of dt-validate: read, and reduced to those that mainline's tree does not have."""

from __future__ import annotations

from pathlib import Path

from lab.kernel import schema

DTB = Path("/somewhere/board.dtb")
OUTPUT = """\
/somewhere/board.dtb: / (test,board): compatible: 'oneOf' conditional failed, one must be fixed:
\t['test,board', 'rockchip,rk3588'] is too long
\t/somewhere/board.dtb: / (test,board): compatible: nested
\tfrom schema $id: http://devicetree.org/schemas/arm/rockchip.yaml#
board.dtb: npu@fdab0000 (rockchip,rk3588-rknn-core): 'npu-supply' is a required property
board.dtb: npu@fdab0000 (rockchip,rk3588-rknn-core): 'npu-supply' is a required property
"""


def test_findings_are_one_line_each() -> None:
    assert schema.findings(OUTPUT, DTB) == [
        "/ (test,board): compatible: 'oneOf' conditional failed, one must be fixed:",
        "npu@fdab0000 (rockchip,rk3588-rknn-core): 'npu-supply' is a required property",
    ]


def test_only_what_the_baseline_lacks_counts() -> None:
    found = schema.findings(OUTPUT, DTB)
    baseline = ["/ (other,board): compatible: 'oneOf' conditional failed, one must be fixed:"]
    assert schema.beyond(found, baseline) == found[1:]
    assert schema.beyond(found, found) == []
