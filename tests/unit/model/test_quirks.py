# SPDX-License-Identifier: MIT
"""The quirks table: complete rows, a JSON file that replaces defaults, and no switch without an effect in the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import rknpu_userspace.model as model
from rknpu_userspace.model.quirks import BY_NAME, TABLE, Quirks


@pytest.mark.parametrize("quirk", TABLE, ids=[quirk.name for quirk in TABLE])
def test_rows_are_complete(quirk: object) -> None:
    row = BY_NAME[quirk.name]  # type: ignore[attr-defined]
    assert row.alternatives
    assert len(set(row.values)) == len(row.values)
    assert len(row.evidence) > 40
    assert len(row.experiment) > 20


def test_every_quirk_is_read_by_the_model() -> None:
    folder = Path(str(model.__file__)).parent
    source = "\n".join(p.read_text(encoding="utf-8") for p in folder.glob("*.py") if p.name != "quirks.py")
    read = set(re.findall(r'(?:quirks\[|rounding\()"(\w+)"', source))
    read |= {"pad_depthwise", "pad_direct"} if "ctx.quirks[quirk]" in source else set()
    assert read | {"round_bit_set"} == set(BY_NAME)


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_text(json.dumps({"board": "measured", "quirks": {"tie_rounding": "half_away"}}), encoding="utf-8")
    quirks = Quirks.load(path)
    assert quirks["tie_rounding"] == "half_away"
    assert quirks["bn_order"] == "mul_alu"
    path.write_text(json.dumps(quirks.as_dict()), encoding="utf-8")
    assert Quirks.load(path).as_dict() == quirks.as_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "Expecting value"),
        ("[1]", "expected an object"),
        ('{"quirks": {"tie_rounding": 1}}', "expected an object"),
        ('{"colour": "red"}', "unknown quirk 'colour'"),
        ('{"tie_rounding": "red"}', "'red' is not one of half_even, half_up"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "board.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        Quirks.load(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        Quirks.load(tmp_path / "nothing")
