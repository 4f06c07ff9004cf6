# SPDX-License-Identifier: MIT
"""Building the fast kernel, with a small tree in place of Linux that has the same make targets and a real dtb."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from lab.assemble import kernel, sources
from lab.assemble.apt import Apt
from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.kernel import figures
from lab.output import Output

BOARD = Path(__file__).parents[1] / "dtb" / "board.dts"
OPTIONS = kernel.KernelOptions(rocket_module=False, jobs=2)
MAKEFILE = r"""
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 4
.RECIPEPREFIX = >
allnoconfig:
> @grep -v '$(DROP)' $(KCONFIG_ALLCONFIG) > $(O)/.config
Image:
> @echo "  CC      init/main.o"
> @test ! -e $(CURDIR)/full || cat $(CURDIR)/Makefile > /dev/full
> @test ! -e $(CURDIR)/broken || { echo "init/main.c:1: error: it is broken"; exit 1; }
> @mkdir -p $(O)/arch/arm64/boot $(O)/include/config
> @echo image > $(O)/arch/arm64/boot/Image
> @echo 7.3.4-npulab > $(O)/include/config/kernel.release
> @printf 'rocket.alias=of:N*T*C$(ALIAS)\0' > $(O)/modules.builtin.modinfo
rockchip/%.dtb:
> @mkdir -p $(O)/arch/arm64/boot/dts/rockchip
> @dtc -q -@ -O dtb -o $(O)/arch/arm64/boot/dts/$@ arch/arm64/boot/dts/rockchip/$*.dts
"""


class Bench:
    """A tree to build, a cache to build in."""

    def __init__(self, root: Path) -> None:
        self.cache = Cache(root / "cache")
        self.log = root / "build.log"
        self.tree = root / "linux"
        boards = self.tree / "arch/arm64/boot/dts/rockchip"
        boards.mkdir(parents=True)
        (boards / "rk3588s-orangepi-5.dts").write_text(BOARD.read_text())
        (self.tree / "Kconfig").write_text("")
        self.makefile()

    def makefile(self, drop: str = "no such line", alias: str = "rockchip,rk3588-rknn-core") -> None:
        (self.tree / "Makefile").write_text(f"DROP = {drop}\nALIAS = {alias}\n{MAKEFILE}")

    def source(self) -> sources.Source:
        return sources.linux(self.tree, self.cache, cast(Apt, None), Output(quiet=True), self.log)

    def build(self) -> Path:
        return kernel.build(self.source(), OPTIONS, cast(Apt, None), self.cache, Output(quiet=True), self.log)

    @property
    def entries(self) -> list[Path]:
        return list((self.cache.root / "kernel-fast").glob("*"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(kernel, "DTS", tmp_path / "no-trees-of-the-kit")
    monkeypatch.setattr(sources.patches, "apply", lambda *arguments: [])
    return Bench(tmp_path)


def test_result_and_what_it_says(bench: Bench) -> None:
    entry = bench.build()
    component = json.loads((entry / "component.json").read_text())
    assert component["release"] == "7.3.4-npulab" and component["rocket"] == "builtin" and component["initrd"] is None
    assert component["dtbs"]["rk3588s-orangepi-5"]["npu"] == "enabled"
    built_in = "modules.builtin.modinfo"
    assert set(component["files"]) == {"Image", "config", built_in, "dtbs/rk3588s-orangepi-5.dtb"}
    assert all((entry / name).is_file() for name in component["files"])
    lines = bench.log.read_text().count("$ nice")
    assert bench.build() == entry
    assert bench.log.read_text().count("$ nice") == lines, "a second run runs nothing"


def test_a_line_that_is_lost_is_named(bench: Bench) -> None:
    bench.makefile(drop="CONFIG_ROCKCHIP_PM_DOMAINS")
    with pytest.raises(KitError, match="CONFIG_ROCKCHIP_PM_DOMAINS=y") as caught:
        bench.build()
    assert caught.value.code == ExitCode.FAILED and bench.entries == []


def test_a_driver_for_another_npu_is_refused(bench: Bench) -> None:
    bench.makefile(alias="rockchip,rk3576-rknn-core")
    with pytest.raises(KitError, match="do not match"):
        bench.build()
    assert bench.entries == []


def test_a_failed_compilation_shows_its_error_and_the_next_run_works(bench: Bench) -> None:
    (bench.tree / "broken").touch()
    with pytest.raises(KitError, match="building the kernel") as caught:
        bench.build()
    assert "it is broken" in caught.value.tail and caught.value.log == bench.log
    assert bench.entries == []
    (bench.tree / "broken").unlink()
    assert (bench.build() / "Image").read_text() == "image\n"


def test_full_disk_in_the_middle_of_a_build_is_said_and_nothing_half_made_is_kept(bench: Bench) -> None:
    (bench.tree / "full").touch()
    with pytest.raises(KitError, match=r"building the kernel: the disk is full \(.*kernel-fast") as caught:
        bench.build()
    assert caught.value.code == ExitCode.INFRASTRUCTURE and "NPULAB_CACHE" in caught.value.hint
    assert bench.entries == []
    (bench.tree / "full").unlink()
    assert (bench.build() / "Image").is_file(), "the next run goes on"


def test_full_disk_while_results_are_copied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patched:
        patched.setattr("lab.assemble.kernel.shutil.copyfile", full)
        with pytest.raises(KitError, match="the disk is full"):
            bench.build()
    assert bench.entries == []
    assert (bench.build() / "Image").is_file()


def test_missing_compiler_is_named_with_its_package(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bench.source()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(KitError, match="aarch64-linux-gnu-gcc is not installed") as caught:
        kernel.build(source, OPTIONS, cast(Apt, None), bench.cache, Output(quiet=True), bench.log)
    assert caught.value.code == ExitCode.INFRASTRUCTURE and "gcc-aarch64-linux-gnu" in caught.value.hint
    assert bench.entries == []


def test_figures_of_builds_leave_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = bench.tree / figures.EDITED
    driver.parent.mkdir(parents=True)
    driver.write_text("int job;\n")
    named, stock = sources.linux, bench.source()
    monkeypatch.setattr(sources, "linux", lambda spec, *rest: named(spec, *rest) if spec else stock)
    monkeypatch.setattr(figures.mirror, "find", lambda name: None)
    monkeypatch.setattr(figures, "Apt", lambda *parts: None)
    monkeypatch.setattr(figures, "Cache", lambda: bench.cache)
    unchanged, edited = figures.measure(Output(quiet=True), quick=False)
    assert unchanged.ok and edited.ok and unchanged.value < edited.value
    assert driver.read_text() == "int job;\n"
    assert len(bench.entries) == 1, "the stock kernel stays, the trial ones go"
    assert not list((bench.cache.root / "work/bench/kernel").iterdir())
    copies = [path.name for path in (bench.cache.root / "work/linux-tree").iterdir()]
    assert copies == [sources.digest(str(bench.tree))]


def test_sibling_with_the_driver_otherwise_gives_its_objects(bench: Bench) -> None:
    bench.build()
    options = replace(OPTIONS, debug=False, rocket_module=True)
    with sources.linux_tree(bench.source(), bench.cache, Output(quiet=True), bench.log) as tree:
        with kernel.workdir(tree, OPTIONS, bench.cache) as first:
            (first / "compiled.o").write_text("object")
        with kernel.workdir(tree, options, bench.cache) as second:
            kernel._seed(tree, second, options, bench.cache, bench.log)
            assert (second / "compiled.o").read_text() == "object"
            # only an empty tree is filled
            (second / "compiled.o").write_text("newer")
            kernel._seed(tree, second, options, bench.cache, bench.log)
            assert (second / "compiled.o").read_text() == "newer"
    assert not list((bench.cache.root / "work/kernel-fast").glob("*.partial"))


def test_an_edit_is_another_kernel(bench: Bench) -> None:
    first = bench.build()
    (bench.tree / "driver.c").write_text("int x;\n")
    assert bench.build() != first


def test_every_fragment_line_is_a_symbol() -> None:
    for path in sorted(kernel.FRAGMENTS.glob("*.cfg")):
        for line in path.read_text().splitlines():
            assert line.startswith(("#", "CONFIG_")), f"{path.name}: {line}"


def test_later_fragments_win_and_every_line_is_there_once() -> None:
    merged = kernel.merge(["# words\nCONFIG_A=y\nCONFIG_B=m\n", 'CONFIG_C="x"\n# CONFIG_A is not set\nCONFIG_B=y\n'])
    assert merged == 'CONFIG_C="x"\n# CONFIG_A is not set\nCONFIG_B=y\n'


def test_debug_kernel_is_the_fast_one_and_more() -> None:
    debug = replace(OPTIONS, debug=True)
    assert debug.fragments == (*OPTIONS.fragments, "debug.cfg")
    assert debug.build_tree != OPTIONS.build_tree
    merged = kernel.merge(path.read_text() for path in kernel.fragment_files(debug)).splitlines()
    assert 'CONFIG_LOCALVERSION="-npulab-debug"' in merged and 'CONFIG_LOCALVERSION="-npulab"' not in merged
    assert {"CONFIG_KASAN=y", "CONFIG_PROVE_LOCKING=y", "CONFIG_DMA_API_DEBUG=y"} < set(merged)


def test_a_series_may_have_a_fragment_of_its_own() -> None:
    names = [path.name for path in kernel.fragment_files(OPTIONS, "6.18.26")]
    assert names == [*OPTIONS.fragments, "linux-6.18.cfg"]
    assert [path.name for path in kernel.fragment_files(OPTIONS, "7.3.4")] == list(OPTIONS.fragments)
