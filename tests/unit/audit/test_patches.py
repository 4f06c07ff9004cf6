# SPDX-License-Identifier: MIT
"""The kit's patches and what applies them: skipped where the kernel has the change, explained where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import ExitCode, KitError
from lab.kernel import patches

FILE = "drivers/accel/rocket/rocket_job.c"
ORIGINAL = "int first(void)\n{\n\treturn 1;\n}\n\nint second(void)\n{\n\treturn 2;\n}\n"
PATCH = """From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: Some Body <some@body.invalid>
Date: Sat, 21 Nov 2026 05:00:00 +0000
Subject: [PATCH 1/2] accel/rocket: Return three
 from second()

Two is wrong.

Signed-off-by: Some Body <some@body.invalid>
---
Upstream-Status: Pending
Kit-Group: fix
Kit-Applies: 7.2 - 7.3
Kit-Drop-When: mainline has it
Kit-Probe: drivers/accel/rocket/rocket_job.c: return (3|drei);
Kit-Reason: two is wrong

 drivers/accel/rocket/rocket_job.c | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)

diff --git a/drivers/accel/rocket/rocket_job.c b/drivers/accel/rocket/rocket_job.c
--- a/drivers/accel/rocket/rocket_job.c
+++ b/drivers/accel/rocket/rocket_job.c
@@ -5,5 +5,5 @@ int first(void)
\x20
 int second(void)
 {
-\treturn 2;
+\treturn 3;
 }
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "kernel-patches/7.3"
    folder.mkdir(parents=True)
    (folder / "0001-three.patch").write_text(PATCH)
    (folder / "series").write_text("# comment\n0001-three.patch  # trailing\n")
    return folder.parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "linux" / FILE
    path.parent.mkdir(parents=True)
    path.write_text(ORIGINAL)
    return tmp_path / "linux"


def test_header_is_read(root: Path) -> None:
    (patch,) = patches.selected("7.3.4", ("fix",), root)
    assert patch.subject == "accel/rocket: Return three from second()"
    assert patch.author == "Some Body <some@body.invalid>"
    assert (patch.status, patch.reason, patch.group) == ("Pending", "two is wrong", "fix")


@pytest.mark.parametrize(
    ("version", "group", "count"),
    [("7.3.4", "fix", 1), ("7.2.12", "fix", 1), ("7.1", "fix", 0), ("7.4", "fix", 0), ("7.3", "board", 0)],
)
def test_selection_by_version_and_group(root: Path, version: str, group: str, count: int) -> None:
    assert len(patches.selected(version, (group,), root)) == count


def test_applies_once_and_is_then_recognised(root: Path, tree: Path) -> None:
    said: list[str] = []
    (first,) = patches.apply(tree, "7.3.4", ("fix",), said.append, root)
    assert first.state == "applied"
    assert "return 3;" in (tree / FILE).read_text()
    (second,) = patches.apply(tree, "7.3.4", ("fix",), said.append, root)
    assert second.state == "upstream"
    assert second.why == f"the kernel has it: {FILE}:8"
    assert said == [
        "7.3/0001-three.patch: applied (two is wrong)",
        f"7.3/0001-three.patch: upstream (the kernel has it: {FILE}:8)",
    ]


def test_trial_tries_each_onto_those_before_it_and_leaves_the_tree_alone(root: Path, tree: Path) -> None:
    second = PATCH.replace("return 3;", "return 4;").replace("return 2;", "return 3;").replace("(3|drei)", "4")
    (root / "7.3/0002-four.patch").write_text(second)
    misfit = PATCH.replace("return 2;", "return 9;").replace("return 3;", "return 10;").replace("(3|drei)", "10")
    (root / "7.3/0003-ten.patch").write_text(misfit)
    (root / "7.3/series").write_text("0001-three.patch\n0003-ten.patch\n0002-four.patch\n")
    outcomes = patches.trial(tree, "7.3.4", ("fix",), root)
    assert [outcome.state for outcome in outcomes] == ["applies", "does not apply", "applies"]
    assert "hunk 1 of" in outcomes[1].why
    assert (tree / FILE).read_text() == ORIGINAL
    # a patch onto another one does not apply alone
    (root / "7.3/series").write_text("0002-four.patch\n")
    (alone,) = patches.trial(tree, "7.3.4", ("fix",), root)
    assert alone.state == "does not apply"


def test_same_change_in_other_words_is_recognised_by_the_probe(root: Path, tree: Path) -> None:
    (tree / FILE).write_text(ORIGINAL.replace("return 2;", "return drei;"))
    (outcome,) = patches.apply(tree, "7.3.4", ("fix",), root=root)
    assert outcome.state == "upstream"
    assert "drei" in (tree / FILE).read_text()


def test_change_that_the_probe_misses_is_recognised_by_taking_it_out(root: Path, tree: Path) -> None:
    path = root / "7.3/0001-three.patch"
    path.write_text(path.read_text().replace("return (3|drei);", "never there"))
    (tree / FILE).write_text(ORIGINAL.replace("return 2;", "return 3;"))
    (outcome,) = patches.apply(tree, "7.3.4", ("fix",), root=root)
    assert outcome.why == "the kernel has it: the patch can be taken out"


def test_misfit_names_the_hunk_and_what_is_there(root: Path, tree: Path) -> None:
    text = ORIGINAL.replace("return 2;", "return compute(2);")
    (tree / FILE).write_text(text)
    with pytest.raises(KitError) as caught:
        patches.apply(tree, "7.3.4", ("fix",), root=root)
    assert caught.value.code is ExitCode.FAILED
    message = caught.value.message
    assert f"7.3/0001-three.patch does not apply: hunk 1 of {FILE} in int first(void); at line 5" in message
    assert "- \treturn 2;" in message
    assert "+ \treturn compute(2);" in message
    assert (tree / FILE).read_text() == text


def test_misfit_on_a_missing_file_says_so(root: Path, tree: Path) -> None:
    (tree / FILE).unlink()
    with pytest.raises(KitError, match=f"the kernel has no {FILE}"):
        patches.apply(tree, "7.3.4", ("fix",), root=root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("Kit-Probe: ", "Other: "), "no Kit-Probe"),
        (("Kit-Group: fix", "Kit-Group: misc"), "Kit-Group is one of"),
        (("return (3|drei);", "return (3"), "Kit-Probe"),
        (("Signed-off-by", "Seen-by"), "sign-off"),
        (("Kit-Applies: 7.2", "Kit-Applies: seven"), "seven is no kernel version"),
    ],
)
def test_incomplete_header_is_refused(root: Path, change: tuple[str, str], words: str) -> None:
    path = root / "7.3/0001-three.patch"
    path.write_text(PATCH.replace(*change))
    with pytest.raises(KitError, match=words) as caught:
        patches.selected("7.3", ("fix",), root)
    assert caught.value.code is ExitCode.USAGE


def test_series_that_names_a_missing_file_is_refused(root: Path) -> None:
    (root / "7.3/series").write_text("0002-none.patch\n")
    with pytest.raises(KitError, match="0002-none"):
        patches.selected("7.3", ("fix",), root)


@pytest.mark.parametrize("base", ["6.18", "7.3"])
def test_the_kits_own_series_are_complete(base: str) -> None:
    found = patches.read_series(patches.FOLDER / base)
    listed = {patch.path.name for patch in found if patch.path.parent.name == base}
    assert listed == {path.name for path in (patches.FOLDER / base).glob("*.patch")}
    for patch in found:
        # a patch for kernels before the folder's own goes there too: the folder serves them
        assert patch.covers(base) or patch.last < patches.series_of(base)
        assert ".invalid" not in patch.path.read_text(), "a sign-off at an address that cannot exist"
        assert patch.hunks()
        kind = patch.status.split()[0].rstrip(";")
        assert kind in ("Backport", "Submitted", "Pending", "Inappropriate")
        added = "\n".join(line[1:] for hunk in patch.hunks() for line in hunk.lines if line[:1] in " +")
        if patch.probe.file.endswith((".dts", ".yaml")) or "[^" not in patch.probe.pattern.pattern:
            assert patch.probe.pattern.search(added), f"the probe of {patch.name} does not see the patch itself"


def test_board_patches_are_stock_on_6_18_only() -> None:
    assert [patch.group for patch in patches.selected("6.18.9", patches.STOCK)] == ["board"]
    assert patches.selected("7.3.4", patches.STOCK) == []
    assert len(patches.selected("7.3.4", patches.WITH_FIXES)) == 5
    table = "accel-rocket-Look-for-cores-in-the-whole-table.patch"
    for version in ("6.18.9", "7.2.13", "7.3.4"):
        found = [patch.path.name.partition("-")[2] for patch in patches.selected(version, patches.WITH_FIXES)]
        assert found.count(table) == (version != "7.3.4")
