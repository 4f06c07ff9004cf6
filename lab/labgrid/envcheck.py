# SPDX-License-Identifier: MIT
"""What labgrid lets pass in an environment file or reports as a traceback, said before anything is started.

labgrid 26 takes an unknown option of a driver with a warning and goes on without it (factory.py, ``filter_dict``): a
typo in ``memory`` silently boots the default.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attr
import yaml
from labgrid import target_factory
from labgrid.config import Config
from labgrid.environment import Environment
from labgrid.exceptions import InvalidConfigError

import lab.labgrid  # noqa: F401  (its drivers are known to the factory from here on)
from lab.errors import ExitCode, KitError

SECTIONS = ("targets", "images", "tools", "paths", "options", "imports", "features")
"""labgrid 26 doc/configuration.rst."""
TARGET_SECTIONS = ("resources", "drivers", "features", "options")
COMMON = ("name", "cls", "bindings")
"""Keys of an entry that are not the class's own (labgrid 26 factory.py)."""


def _wrong(path: Path, what: str, word: str, known: Iterable[str]) -> KitError:
    near = difflib.get_close_matches(word, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else "correct the file"
    return KitError(ExitCode.INFRASTRUCTURE, f"environment {path}: {what}", hint)


@contextmanager
def _some_place() -> Iterator[None]:
    """A value for ``$LG_PLACE`` while the file is looked at; the real one comes with the acquired place."""
    before = os.environ.get("LG_PLACE")
    os.environ.setdefault("LG_PLACE", "any")
    try:
        yield
    finally:
        if before is None:
            del os.environ["LG_PLACE"]


def _entries(section: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class name and options, of either form that labgrid takes (a map, or a list with repeated classes)."""
    for item in section if isinstance(section, list) else [section or {}]:
        for name, options in item.items():
            if name == "cls":
                yield str(options), {key: value for key, value in item.items() if key != "cls"}
                break
            yield name, options or {}


def check(path: Path) -> None:
    """KitError (infrastructure) that names the first thing in the file that labgrid does not know."""
    if not path.is_file():
        raise KitError(ExitCode.INFRASTRUCTURE, f"there is no environment file {path}", "npulab board env makes one")
    try:
        with _some_place():
            data = Config(str(path)).data
            for module in data.get("imports", []):
                if module != "lab.labgrid":
                    Environment(str(path))
                    break
    except (InvalidConfigError, yaml.YAMLError, ImportError, OSError) as error:
        text = " ".join(str(error.__cause__ or error).split())
        raise KitError(ExitCode.INFRASTRUCTURE, f"environment {path}: {text}", "correct the file") from error
    if not isinstance(data, dict) or not isinstance(data.get("targets"), dict):
        raise KitError(ExitCode.INFRASTRUCTURE, f"environment {path}: it has no targets", "see lab/labgrid/env")
    for key in data:
        if key not in SECTIONS:
            raise _wrong(path, f"{key} is no section", key, SECTIONS)
    for name, target in data["targets"].items():
        _check_target(path, name, target or {})


def _check_target(path: Path, name: str, target: dict[str, Any]) -> None:
    for key in target:
        if key not in TARGET_SECTIONS:
            raise _wrong(path, f"target {name}: {key} is no section of a target", key, TARGET_SECTIONS)
    tables = (("resources", target_factory.resources), ("drivers", target_factory.drivers))
    for section, classes in tables:
        for kind, options in _entries(target.get(section)):
            where = f"target {name}, {section}"
            if kind not in classes:
                raise _wrong(path, f"{where}: there is no {kind}", kind, classes)
            fields = {field.name for field in attr.fields(classes[kind])}
            for option in options:
                if option not in fields and option not in COMMON:
                    raise _wrong(path, f"{where}: {kind} has no option {option}", option, fields)
