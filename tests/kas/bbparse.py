# SPDX-License-Identifier: MIT
"""The layer's recipes through BitBake's own parser, without OE-core: classes of it are empty stand-ins.

Needs the ``bb`` package, which the wheel of `bitbake-setup` carries. Prints one JSON document: for every recipe and
machine its variables of interest, the files that SRC_URI names and where they were found, and what was wrong.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

for name in ("hashserv", "hashserv.client", "prserv", "prserv.serv"):
    sys.modules.setdefault(name, types.ModuleType(name))

import bb  # noqa: E402 -- after the stand-ins above
import bb.data  # noqa: E402 -- after the stand-ins above
import bb.fetch2  # noqa: E402 -- after the stand-ins above
import bb.parse  # noqa: E402 -- after the stand-ins above
import bb.siggen  # noqa: E402 -- after the stand-ins above
import bb.utils  # noqa: E402 -- after the stand-ins above

STUB = Path(__file__).parent / "stubcore"
VARIABLES = ("PN", "PV", "LICENSE", "SUMMARY", "KERNEL_DEVICETREE", "COMPATIBLE_MACHINE", "NPULAB_PATCHES")


def configuration(layer: Path, machine: str, settings: dict[str, str]) -> Any:
    """A data store as BitBake has it when recipes are parsed: bitbake.conf's stand-in, the layer, the machine."""
    d = bb.data.init()
    d.setVar("MACHINE", machine)
    d.setVar("LAYERDIR", str(layer))
    d.setVar("BBPATH", f"{STUB}:{layer}")
    d = bb.parse.handle(str(layer / "conf/layer.conf"), d, True)
    for variable in ("NPULAB_REPOSITORY", "BBFILES", "BBFILES_DYNAMIC"):
        d.setVar(variable, d.getVar(variable))
    d.delVar("LAYERDIR")
    d.setVar("BBPATH", f"{STUB}:{layer}")
    for variable, value in settings.items():
        d.setVar(variable, value)
    d = bb.parse.handle("conf/bitbake.conf", d, True)
    d.setVar("BB_SIGNATURE_HANDLER", "noop")
    d.setVar("__exportlist", d.getVar("__exportlist", False) or set())
    bb.parse.siggen = bb.siggen.init(d)
    return d


def parse(recipe: Path, base: Any) -> dict[str, Any]:
    """What BitBake makes of a recipe."""
    d = bb.data.createCopy(base)
    d.setVar("__bbclasstype", "recipe")
    result = bb.parse.handle(str(recipe), d, 0)[""]
    skipped = result.getVar("__SKIPPED", False)
    if skipped:
        return {"skipped": skipped, "missing": [], "errors": []}
    files, errors = {}, []
    for uri in (result.getVar("SRC_URI") or "").split():
        kind, _, path, *_ = bb.fetch2.decodeurl(uri)
        if kind == "file" and not path.startswith("/"):
            files[path] = bb.utils.which(result.getVar("FILESPATH"), path)
    for key in list(result):
        if key.startswith("do_") and result.getVarFlag(key, "func", False):
            body = result.getVar(key, False) or ""
            if result.getVarFlag(key, "python", False):
                try:
                    compile("def task(d):\n" + body, key, "exec")
                except SyntaxError as error:
                    errors.append(f"{key}: {error}")
    found: dict[str, Any] = {variable: result.getVar(variable) for variable in VARIABLES}
    found["hashes"] = hashes(result, recipe.name)
    return {**found, "files": files, "missing": [name for name, path in files.items() if not path], "errors": errors}


def hashes(d: Any, name: str) -> dict[str, str]:
    """Base hash of every task, which decides whether a result of another build directory is the same."""
    # the classes that add most tasks are empty here
    d.setVar("__BBTASKS", sorted(key for key in d if key.startswith("do_")))
    ignored = set(d.getVar("BB_BASEHASH_IGNORE_VARS").split())
    tasks, dependencies, values = bb.data.generate_dependencies(d, ignored)
    _, found = bb.data.generate_dependency_hash(tasks, dependencies, values, ignored, name)
    return {key.rpartition(":")[2]: value for key, value in found.items()}


def main(layer: Path, machine: str, settings: dict[str, str]) -> int:
    """Parse every recipe of the layer for a machine."""
    logging.getLogger("BitBake").setLevel(logging.ERROR)
    results: dict[str, Any] = {}
    recipes = sorted([*layer.glob("recipes-*/*/*.bb"), *layer.glob("dynamic-layers/*/recipes-*/*/*.bb")])
    with tempfile.TemporaryDirectory() as top:
        base = configuration(layer, machine, {"TOPDIR": top, **settings})
        for recipe in recipes:
            name = str(recipe.relative_to(layer))
            try:
                results[name] = parse(recipe, base)
            except (bb.BBHandledException, bb.parse.ParseError, bb.data_smart.ExpansionError, SyntaxError) as error:
                results[name] = {"missing": [], "errors": [f"{type(error).__name__}: {error}"]}
    json.dump(results, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}))
