# SPDX-License-Identifier: MIT
"""The CI examples: they parse, and every command of the kit in them is one that the kit takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from lab import cli
from lab.kas import host
from lab.kas.request import Request

EXAMPLES = sorted((REPOSITORY / "lab/labgrid/examples").glob("git*.yml"))
KAS = [path for path in EXAMPLES if "kas" in path.stem]
_VARIABLE = re.compile(r"\$\{\{ *matrix\.board *\}\}|\$BOARD")


def strings(document: Any) -> Iterator[str]:
    """Every string of a document."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for value in document.values():
            yield from strings(value)
    elif isinstance(document, list):
        for value in document:
            yield from strings(value)


def commands(path: Path) -> list[list[str]]:
    """The kit's command lines, without ``./npulab``."""
    found = []
    for text in strings(yaml.safe_load(path.read_text())):
        for line in re.split(r"\n|&&", _VARIABLE.sub("orangepi-5", text)):
            words = shlex.split(line) if "npulab " in line else []
            if "./npulab" in words:
                found.append(words[words.index("./npulab") + 1 :])
    return found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_commands_are_the_kits(path: Path) -> None:
    found = commands(path)
    assert found
    for words in found:
        # --install-deps is the starter's own, before the command
        rest = [word for word in words if word != "--install-deps"]
        noun = next(word for word in rest if not word.startswith("-"))
        assert cli._parser(noun).parse_args(rest).noun == noun


@pytest.mark.parametrize("path", KAS, ids=lambda path: path.stem)
def test_builds_with_kas_and_hands_the_set_over(path: Path) -> None:
    parsed = [cli._parser(words[0]).parse_args(words) for words in commands(path) if not words[0].startswith("-")]
    (build,) = [args for args in parsed if args.noun == "build"]
    request = Request(build.board, image=build.image, options=tuple(build.option))
    assert request.target == "virtual/kernel"
    runs = [args for args in parsed if args.noun == "farm" and args.verb == "run"]
    assert len(runs) == 2
    assert {args.artifacts for args in runs} == {build.out}


@pytest.mark.parametrize("path", KAS, ids=lambda path: path.stem)
def test_installs_what_the_build_needs_and_keeps_what_it_made(path: Path) -> None:
    text = path.read_text()
    words = set(re.findall(r"[\w+.-]+", text))
    # in every Debian, or of another name there
    present = {"dpkg"}
    assert {*host.TOOLS.values(), *host.HOST_TOOLCHAIN.values()} - present <= words
    assert {"DL_DIR", "SSTATE_DIR", "cache"} <= words
    assert "en_US.UTF-8" in text
