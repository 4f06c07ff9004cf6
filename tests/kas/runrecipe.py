# SPDX-License-Identifier: MIT
"""What the kernel recipe does up to its device trees, done without OE-core: by BitBake's parser and its own tasks.

Reads a JSON document from stdin: ``layer``, ``machine``, ``recipe`` (below the layer), ``work`` (becomes WORKDIR),
``source`` (the pristine kernel tree, which is patched), ``settings`` (variables) and ``steps``. The steps: ``patch``
(local files fetched, patches applied in SRC_URI's order, between the prefuncs and postfuncs that the recipe gives
do_patch), ``configure`` (do_configure), ``check`` (the check of the fragments), ``trees`` (KERNEL_DEVICETREE with
KERNEL_DTC_FLAGS, as OE-core's kernel-devicetree class calls make). Prints what was done as JSON; errors end it with 1
and BitBake's words on stderr.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bbparse  # puts the stand-ins into place that the imports below need

# isort: split
import bb
import bb.build
import bb.data
import bb.fetch2
import bb.parse


class Recipe:
    """One kernel recipe and the directories that it works in."""

    def __init__(self, spec: dict[str, Any]) -> None:
        layer, work = Path(spec["layer"]), Path(spec["work"])
        self.source, self.work = Path(spec["source"]), work
        base = bbparse.configuration(layer, spec["machine"], {"TOPDIR": str(work / "top"), **spec["settings"]})
        base.setVar("__bbclasstype", "recipe")
        self.d = bb.parse.handle(str(layer / spec["recipe"]), base, 0)[""]
        self.d.setVar("WORKDIR", str(work))
        self.d.setVar("UNPACKDIR", str(work / "sources"))
        self.d.setVar("T", str(work / "temp"))
        self.d.setVar("S", str(self.source))
        self.d.setVar("B", str(work / "build"))
        (work / "build").mkdir(parents=True, exist_ok=True)
        self.done: dict[str, Any] = {}

    def local_files(self) -> list[str]:
        """The local files of SRC_URI in their order."""
        uris = [bb.fetch2.decodeurl(uri) for uri in self.d.getVar("SRC_URI").split()]
        return [path for kind, _, path, *_ in uris if kind == "file" and not path.startswith("/")]

    def patch(self) -> None:
        """do_fetch and do_unpack of local files, and do_patch with what the recipe puts around it."""
        for name in self.local_files():
            target = self.work / "sources" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bb.utils.which(self.d.getVar("FILESPATH"), name), target)
        for function in (self.d.getVarFlag("do_patch", "prefuncs") or "").split():
            bb.build.exec_func(function, self.d)
        applied = [name for name in self.local_files() if name.endswith(".patch")]
        for name in applied:
            command = ["patch", "-p1", "--force", "--no-backup-if-mismatch", "-d", str(self.source)]
            answer = subprocess.run([*command, "-i", str(self.work / "sources" / name)], stdout=sys.stderr, check=False)
            if answer.returncode:
                bb.fatal(f"Applying patch '{name}' on target directory '{self.source}'")
        for function in (self.d.getVarFlag("do_patch", "postfuncs") or "").split():
            bb.build.exec_func(function, self.d)
        self.done["patches"] = applied

    def configure(self) -> None:
        """The recipe's own task."""
        bb.build.exec_func("do_configure", self.d)
        self.done["merged"] = (self.work / "npulab.cfg").read_text()

    def check(self) -> None:
        """The recipe's own task."""
        bb.build.exec_func("do_npulab_check_config", self.d)

    def trees(self) -> None:
        """The machine's device trees."""
        names = self.d.getVar("KERNEL_DEVICETREE").split()
        flags = self.d.getVar("KERNEL_DTC_FLAGS")
        words = " ".join(["-C ${S}", "O=${B}", f"DTC_FLAGS='{flags}'", *names])
        self.d.setVar("do_trees", f"    oe_runmake_call {words}\n")
        self.d.setVarFlag("do_trees", "func", "1")
        bb.build.exec_func("do_trees", self.d)
        self.done["dtbs"] = {Path(name).stem: f"build/arch/arm64/boot/dts/{name}" for name in names}


def main() -> int:
    """The steps, in order."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")
    spec = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr
    try:
        recipe = Recipe(spec)
        for step in spec["steps"]:
            {"patch": recipe.patch, "configure": recipe.configure, "check": recipe.check, "trees": recipe.trees}[step]()
    except (bb.BBHandledException, bb.process.ExecutionError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    json.dump(recipe.done, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
