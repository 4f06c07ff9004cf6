# SPDX-License-Identifier: MIT
"""JUnit's XML of a run: trouble of the laboratory is an ``error``, trouble of the product a ``failure``.

pytest's own file does not tell them apart: there an error is what went wrong outside of a test's body.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.report.document import write_text

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def legal(text: str) -> str:
    """Text that XML can hold: other characters are written as ``#x1B``."""
    return _ILLEGAL.sub(lambda match: f"#x{ord(match.group()):02X}", text)


def _case(test: Mapping[str, Any]) -> ElementTree.Element:
    path, _, name = test["id"].partition("::")
    case = ElementTree.Element(
        "testcase",
        classname=legal(path.removesuffix(".py").replace("/", ".")),
        name=legal(name or path),
        time=f"{test['seconds']:.3f}",
    )
    rows = [(key, value) for key, value in test["properties"].items()]
    rows += [(f"{m['name']}{_labels(m)} [{m['unit']}]", m["value"]) for m in test["measurements"]]
    rows += [(f"max_ulp {m['op']} {m['dtype']}{_labels(m)}", m["max_ulp"]) for m in test["numerics"]]
    if test["outcome"] == "flaky":
        rows.append(("flaky", f"passed at attempt {test.get('attempts', 2)}"))
    if rows:
        properties = ElementTree.SubElement(case, "properties")
        for key, value in rows:
            ElementTree.SubElement(properties, "property", name=legal(str(key)), value=legal(str(value)))
    kind = {"failed": "failure", "error": "error", "skipped": "skipped", "xfailed": "skipped"}.get(test["outcome"])
    if kind:
        element = ElementTree.SubElement(case, kind, message=legal(test["message"]))
        if kind == "skipped":
            element.set("type", "pytest.xfail" if test["outcome"] == "xfailed" else "pytest.skip")
        else:
            element.text = legal(f"{test['detail']}\nrepeat: {test['repeat']}")
    if test["kernel_log"]:
        log = ElementTree.SubElement(case, "system-out")
        log.text = legal("\n".join(f"[{r['seconds']:12.6f}] {r['text']}" for r in test["kernel_log"]))
    return case


def _labels(row: Mapping[str, Any]) -> str:
    return "".join(f" {key}={value}" for key, value in row["labels"].items())


def suite_element(document: Mapping[str, Any], suite: Mapping[str, Any]) -> ElementTree.Element:
    """One ``testsuite``."""
    tests = [test for test in document["tests"] if test["suite"] == suite["name"]]
    broken = [] if suite["complete"] else suite["trouble"]
    found = suite["counts"]
    element = ElementTree.Element(
        "testsuite",
        name=suite["name"],
        tests=str(len(tests) + len(broken)),
        failures=str(found["failed"]),
        errors=str(found["error"] + len(broken)),
        skipped=str(found["skipped"] + found["xfailed"]),
        time=f"{suite['seconds']:.1f}",
        timestamp=document["started"],
    )
    properties = ElementTree.SubElement(element, "properties")
    for name, value in _properties(document):
        ElementTree.SubElement(properties, "property", name=name, value=legal(str(value)))
    for test in tests:
        element.append(_case(test))
    for message in broken:
        case = ElementTree.SubElement(element, "testcase", classname=suite["name"], name="the suite itself", time="0")
        ElementTree.SubElement(case, "error", message=legal(message))
    return element


def _properties(document: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    board, kernel, artifacts = document["board"] or {}, document["kernel"] or {}, document["artifacts"] or {}
    rows = [("run", document["id"]), ("kit", f"{document['kit']['version']} {document['kit']['commit']}".strip())]
    rows += [("board", board["model"]), ("place", board.get("place", ""))] if board else []
    rows += [("identity", " ".join(f"{k}={v}" for k, v in board["identity"].items()))] if board else []
    rows += [("backup_id", board["backup"]["id"])] if board and board["backup"] else []
    rows += [("kernel", kernel["release"])] if kernel else []
    rows += [("artifacts", artifacts["key"])] if artifacts else []
    return rows


def render(document: Mapping[str, Any], only: str | None = None) -> str:
    """The XML, of all suites or of one."""
    root = ElementTree.Element("testsuites", name=document["id"])
    for suite in document["suites"]:
        if only is None or suite["name"] == only:
            root.append(suite_element(document, suite))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def write(document: Mapping[str, Any], path: Path, only: str | None = None) -> None:
    """Write it."""
    write_text(path, render(document, only))
