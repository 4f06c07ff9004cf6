# SPDX-License-Identifier: MIT
"""Device trees against the kernel's bindings, with dtschema; only what mainline does not already show counts.

Processing the bindings takes minutes, so the result is kept for each content of the bindings; a check of one board
then takes ten seconds, of the NPU's nodes alone about one. dtschema lives in a virtual environment of its own, because
its dependencies need not agree with the kit's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.cache import Cache, digest, tree_digest
from lab.errors import ExitCode, KitError
from lab.kernel import patches
from lab.kernel.parts import Kernel
from lab.output import Output
from lab.process import run

REQUIREMENT = "dtschema>=2025.8,<2027"
BINDINGS = "Documentation/devicetree/bindings"
NPU_SCHEMAS = "rknn"
"""Limits a check to the NPU core's binding."""


def tool(name: str, cache: Cache, out: Output) -> list[str]:
    """Command words that start one of dtschema's programs, from the kit's own environment for it."""

    def make(entry: Path) -> None:
        log = cache.root / "log" / "dtschema.log"
        with out.stage("install dtschema"):
            run([sys.executable, "-m", "venv", entry / "venv"], stage="making an environment for dtschema", log=log)
            pip: list[str | Path] = [entry / "venv/bin/python", "-m", "pip", "install", "--quiet", REQUIREMENT]
            hint = "check the network and pip's configuration; the other checks do not need it"
            run(pip, stage="installing dtschema", log=log, hint=hint)

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache.entry("dtschema", digest(REQUIREMENT, version), make) / "venv/bin"
    # the environment was moved after it was made: its scripts name a Python that is no more
    return [str(folder / "python"), str(folder / name)]


def processed(kernel: Kernel, cache: Cache, out: Output) -> Path:
    """The kernel's bindings, with the kit's additions to them, in the form that dt-validate reads quickly."""
    bindings = kernel.root / BINDINGS
    if kernel.built or not bindings.is_dir():
        raise KitError(
            ExitCode.USAGE,
            f"Linux {kernel.version} here has no {BINDINGS}",
            "give the kernel's source: a tree, a tarball, or a version that Debian has",
        )
    additions = patches.selected(kernel.version, ("binding",))
    key = digest("schema 1", tree_digest(bindings), [patch.path.read_text() for patch in additions], REQUIREMENT)

    def make(entry: Path) -> None:
        copy = entry / "tree" / BINDINGS
        shutil.copytree(bindings, copy)
        patches.apply(entry / "tree", kernel.version, ("binding",), out.note)
        command = ["nice", *tool("dt-mk-schema", cache, out), "-j", "-o", str(entry / "schema.json"), str(copy)]
        with out.stage(f"process the bindings of Linux {kernel.version} (minutes, once)"):
            run(command, stage="processing the bindings", log=cache.root / "log" / "dtschema.log")
        shutil.rmtree(entry / "tree")

    return cache.entry("dt-schema", key, make) / "schema.json"


def validate(dtb: Path, schema: Path, cache: Cache, out: Output, limit: str = "") -> list[str]:
    """What dt-validate says about a dtb: one string per finding, without the file's name."""
    command = ["nice", *tool("dt-validate", cache, out), "-s", str(schema), *(["-l", limit] if limit else []), str(dtb)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    text = answer.stdout + answer.stderr
    if "Traceback" in text:
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"dt-validate broke on {dtb}",
            "remove the cache's dtschema folder and try again",
            tail="\n".join(text.splitlines()[-5:]),
        )
    return findings(text, dtb)


def findings(text: str, dtb: Path) -> list[str]:
    """Findings in the output of dt-validate. What is indented below a finding belongs to it and is left out."""
    prefix = re.compile(rf"^(?:{re.escape(str(dtb))}|{re.escape(dtb.name)}): ?")
    found = [prefix.sub("", line).strip() for line in text.splitlines() if prefix.match(line)]
    return list(dict.fromkeys(found))


def beyond(found: Sequence[str], baseline: Sequence[str]) -> list[str]:
    """Findings that the baseline does not have; the board's compatible in parentheses does not count."""

    def plain(line: str) -> str:
        return re.sub(r"\([\w,.+-]+\)", "()", line)

    known = {plain(line) for line in baseline}
    return [line for line in found if plain(line) not in known]
