# SPDX-License-Identifier: MIT
"""The kas files: their schema, that they and their locks are in step, and that everything they name is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kconfiglib
import pytest
import yaml
from conftest import KAS, LAYER, MACHINES, REPOSITORY

import kas
from lab import boards

FILES = sorted(KAS.rglob("*.yml"))
SCHEMA = json.loads((Path(kas.__file__).parent / "schema-kas.json").read_text())


def load(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    return document


def repositories(path: Path) -> dict[str, Any]:
    """Repositories of a file with all that it includes."""
    document = load(path)
    found: dict[str, Any] = {}
    for name in document["header"].get("includes", []):
        found.update(repositories(REPOSITORY / name))
    return {**found, **document.get("repos", {})}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KAS)))
def test_schema(path: Path) -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(load(path))


def test_schema_catches_a_misspelt_key() -> None:
    document = load(KAS / "orangepi-5.yml")
    document["machne"] = document.pop("machine")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(document)


def test_every_machine_has_a_file_of_its_name_and_a_lock() -> None:
    assert sorted(path.stem for path in (LAYER / "conf/machine").glob("*.conf")) == MACHINES
    for machine in MACHINES:
        assert load(KAS / f"{machine}.yml")["machine"] == machine
        assert (KAS / f"{machine}.lock.yml").is_file()


def test_every_board_of_the_kit_has_a_machine() -> None:
    for name in boards.names():
        board = boards.load(name)
        if not board.virtual:
            assert (REPOSITORY / board.kas).is_file()
            assert Path(board.kas).stem == name


@pytest.mark.parametrize("machine", MACHINES)
def test_lock_pins_exactly_the_repositories_that_are_fetched(machine: str) -> None:
    fetched = {name: repo for name, repo in repositories(KAS / f"{machine}.yml").items() if repo and "url" in repo}
    pinned = load(KAS / f"{machine}.lock.yml")["overrides"]["repos"]
    assert set(pinned) == set(fetched)
    assert all(len(repo["commit"]) == 40 for repo in pinned.values())


def test_locks_agree() -> None:
    commits: dict[str, set[str]] = {}
    for machine in MACHINES:
        for name, repo in load(KAS / f"{machine}.lock.yml")["overrides"]["repos"].items():
            commits.setdefault(name, set()).add(repo["commit"])
    assert all(len(found) == 1 for found in commits.values())


def test_virtual_board_fetches_no_bsp_layer() -> None:
    names = set(repositories(KAS / "rk3588-virt.yml"))
    assert names == {"npulab", "bitbake", "openembedded-core"}


def test_layers_that_are_ours_exist() -> None:
    for layer in repositories(KAS / "orangepi-5.yml")["npulab"]["layers"]:
        assert (REPOSITORY / layer / "conf/layer.conf").is_file()


@pytest.mark.parametrize("machine", [m for m in MACHINES if m != "rk3588-virt"])
def test_machine_and_board_name_the_same_device_tree(machine: str) -> None:
    text = (LAYER / f"conf/machine/{machine}.conf").read_text()
    tree = boards.load(machine).dtb if machine != "rock-5-itx-plus" else "rockchip/rk3588-rock-5-itx-plus.dtb"
    assert f'KERNEL_DEVICETREE = "{tree}"' in text


def menu() -> kconfiglib.Kconfig:
    return kconfiglib.Kconfig(str(KAS / "Kconfig"))


def chosen(tree: kconfiglib.Kconfig) -> list[str]:
    """Files that kas would join for the present choices."""
    symbols = (sym for sym in tree.unique_defined_syms if sym.name.startswith("KAS_INCLUDE_"))
    return [sym.str_value for sym in symbols if sym.str_value]


def test_menu_offers_every_machine_and_option() -> None:
    offered: set[str] = set()
    for symbol in menu().unique_defined_syms:
        if symbol.name.startswith("KAS_INCLUDE_"):
            offered |= {value.str_value for value, _ in symbol.defaults}
    for name in offered:
        assert (REPOSITORY / name).is_file(), name
    assert {f"kas/{machine}.yml" for machine in MACHINES} <= offered


def test_menu_defaults_to_the_image_of_the_first_board() -> None:
    assert chosen(menu()) == ["kas/rock-5-itx-plus.yml", "kas/opt/kernel-7.3.yml"]


def test_menu_joins_what_is_chosen() -> None:
    tree = menu()
    for name in ("MACHINE_ORANGEPI_5", "KERNEL_6_18", "IMAGE_KERNEL", "GPU"):
        assert tree.syms[name].set_value(2)
    assert chosen(tree) == [
        "kas/orangepi-5.yml",
        "kas/opt/kernel-6.18.yml",
        "kas/opt/kernel-only.yml",
        "kas/opt/gpu.yml",
    ]


def test_menu_offers_this_machines_compiler_for_kernels_only() -> None:
    tree = menu()
    for name in ("HOST_TOOLCHAIN", "ICECC"):
        tree.syms[name].set_value(2)
    assert chosen(tree) == ["kas/rock-5-itx-plus.yml", "kas/opt/kernel-7.3.yml"]
    tree.syms["IMAGE_KERNEL"].set_value(2)
    assert chosen(tree)[2:] == ["kas/opt/kernel-only.yml", "kas/opt/host-toolchain.yml", "kas/opt/icecc.yml"]


def test_menu_and_options_are_the_same() -> None:
    offered = {value.str_value for symbol in menu().unique_defined_syms for value, _ in symbol.defaults}
    files = {f"kas/opt/{path.name}" for path in (KAS / "opt").glob("*.yml")}
    assert {name for name in offered if name.startswith("kas/opt/")} == files


def test_menu_offers_no_loader_for_the_virtual_board() -> None:
    tree = menu()
    tree.syms["LOADER"].set_value(2)
    assert "kas/opt/loader.yml" in chosen(tree)
    tree.syms["MACHINE_RK3588_VIRT"].set_value(2)
    assert "kas/opt/loader.yml" not in chosen(tree)
