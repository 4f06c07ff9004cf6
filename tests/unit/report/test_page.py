# SPDX-License-Identifier: MIT
"""The page: nothing from a board becomes markup, every reference resolves, and a browser shows it well."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import case, records, results
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.report import page
from lab.report.svg import Series, chart, logarithmic, ticks

NAMES = ("chromium", "chromium-browser", "chrome-headless-shell")
FOUND = [Path(path) for name in NAMES if (path := shutil.which(name))]
# Ubuntu's is a snap: it does not see the files of this test
CHROMIUM = next((str(path) for path in FOUND if "snap" not in path.read_bytes()[:4096].decode(errors="replace")), None)
NASTY = "</pre><script>alert(1)</script>\x1b[31m\x00\x9b\u202e\"'&<img src=x onerror=alert(2)>"


class Outline(html.parser.HTMLParser):
    """Tags, ids, references and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.external: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src") and tag != "link":
                (self.links if (value or "").startswith("#") else self.external).append(value or "")
            assert not name.startswith("on"), (tag, name)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def outline(run: dict[str, Any]) -> Outline:
    return Outline(page.render(run))


def test_the_page_needs_nothing_else(run: dict[str, Any]) -> None:
    text = page.render(run)
    found = Outline(text)
    assert not {"script", "iframe", "object", "embed", "img"} & set(found.tags)
    assert found.external == []
    assert "url(" not in text.replace("data:", "")
    assert "@import" not in text


def test_every_reference_resolves_and_ids_are_unique(run: dict[str, Any]) -> None:
    found = outline(run)
    assert len(found.ids) == len(set(found.ids))
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    names = page.anchors(run["tests"])
    for test in run["tests"]:
        assert names[test["id"]] in found.ids


def test_it_says_what_one_needs_to_act(run: dict[str, Any]) -> None:
    text = " ".join(outline(run).words)
    for words in (
        "Linux 7.3.4-npulab", "Xunlong Orange Pi 5", "virtual board", "c0ffee", run["artifacts"]["key"],
        "rocket_job_handle_irq", "npulab test board --test", "the driver leaks a group reference", "2 attempts",
        "unsupported feature(s): usb-otg", "0.52", "153,600", "domain nputop: off-0", "0001-accel-rocket.patch",
    ):  # fmt: skip
        assert words in text, words


def test_a_run_without_a_board_has_a_page() -> None:
    run = results([case("test_x", suite="unit", file="layout")])
    run |= dict.fromkeys(("board", "kernel", "npu", "boot", "end", "artifacts", "environment"))
    assert "Tests without a board" in " ".join(outline(run).words)


def test_an_empty_run_has_a_page() -> None:
    assert "no test ran" in " ".join(outline(results([])).words)


def poisoned(text: str) -> dict[str, Any]:
    """A run in which everything that a board or a test can say is ``text``."""
    statistics = {"op": text, "dtype": text, "max_abs": 0.0, "max_ulp": 0.0, "mismatches": 0, "elements": 1}
    bad = case(
        text, "failed", message=text, detail=text, repeat=text, properties={text: text},
        kernel_log=records(text, "WARNING"), numerics=[{**statistics, "labels": {text: text}}],
        measurements=[{"name": text, "value": 1.0, "unit": text, "labels": {text: n}} for n in (1, 2)],
    )  # fmt: skip
    run = results([bad])
    run["board"] |= {"model": text, "identity": {text: text}, "place": text, "python": text}
    run["kernel"] |= {"release": text, "version": text, "cmdline": text}
    run["boot"]["bad"] = [text]
    run["suites"][0]["trouble"] = [text]
    for core in run["npu"]["cores"] + run["end"]["npu"]["cores"]:
        core |= {"driver": text, "status": text, "version": text, "domain": text, "iommu_group": text}
    return run


@settings(max_examples=60, deadline=None)
@given(
    st.text(min_size=1, max_size=80)
    | st.sampled_from([NASTY, "]]>", "{{ 7 * 7 }}", "{% raw %}", "javascript:alert(1)"])
)
def test_nothing_that_a_board_says_becomes_markup(text: str) -> None:
    text_of_page = page.render(poisoned(text))
    found, plain = Outline(text_of_page), Outline(page.render(poisoned("plain")))
    assert found.tags == plain.tags
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text_of_page)
    text_of_page.encode()


def test_control_characters_are_shown() -> None:
    assert page.visible("a\x1b[1;31mb\x1b[0m\x07\x00\u202e") == "ab\\x07\\x00\\x202e"


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_cover_the_range(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert len(found) < 15
    slack = 1e-9 * max(abs(low), abs(low + span))
    if span > max(slack, 1e-100):
        assert found[0] <= low + slack
        assert found[-1] >= low + span - slack


def test_charts_of_odd_data_stay_in_their_frame() -> None:
    for points in (((1.0, 0.0),), ((1.0, 5.0), (1.0001, 5.0)), ((1.0, -3.0), (2.0, 4.0)), ((0.0, 1e12), (9.0, 1e-12))):
        _stays_inside(chart("x", "cores", "x", [Series("", points)], ideal=True))


@given(st.lists(st.tuples(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9)), min_size=1, max_size=8))
def test_points_of_workloads_stay_in_their_frame(points: list[tuple[float, float]]) -> None:
    names = tuple(f"w{number}" for number in range(len(points)))
    _stays_inside(chart("x", "operations_per_byte", "GOP/s", [Series("", tuple(sorted(points)), names)]))


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=8))
def test_a_logarithmic_scale_has_marks_and_holds_all(values: list[float]) -> None:
    scale = logarithmic(values)
    assert 1 <= len(scale.marks) < 25
    assert all(-1e-9 <= scale(value) <= 1 + 1e-9 for value in (*values, *scale.marks))


def _stays_inside(text: str) -> None:
    width, height = (float(word) for word in re.findall(r"viewBox=\"0 0 (\S+) (\S+)\"", text)[0])
    for x, y in re.findall(r"cx=\"(\S+)\" cy=\"(\S+)\"", text):
        assert 0 <= float(x) <= width
        assert 0 <= float(y) <= height


def _chromium(*options: str, place: Path) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    # the sandbox needs more than a container has; the page is our own
    common = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
    ]
    command = [CHROMIUM, *common, f"--user-data-dir={place / 'profile'}", "--enable-logging=stderr", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=place)


PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const d = document.documentElement, out = {};
  out.overflow = d.scrollWidth - d.clientWidth;
  out.width = d.clientWidth;
  const links = [...document.querySelectorAll("a[href^='#']")];
  out.links = links.filter(a => !document.getElementById(a.hash.slice(1))).length;
  out.articles = document.querySelectorAll("article").length;
  out.badge = getComputedStyle(document.querySelector("h1 .badge")).backgroundColor;
  out.empty = [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().height < 50).length;
  const p = document.createElement("pre"); p.id = "probe"; p.textContent = JSON.stringify(out);
  document.body.replaceChildren(p);
}, 100));
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt install chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it(run: dict[str, Any], tmp_path: Path, width: int) -> None:
    """Headless Chromium. Its window has at least 500 pixels; a frame makes it narrower."""
    run["tests"][4]["detail"] = "E   " + "x" * 3000
    text = page.render(run)
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    inner = tmp_path / "inner.html"
    inner.write_text(policy.sub("", text).replace("</head>", PROBE + "</head>"))
    target = inner
    if width < 500:
        target = tmp_path / "outer.html"
        target.write_text(
            f'<iframe id="f" src="inner.html" style="width:{width}px;height:900px;border:0"></iframe><script>'
            'setTimeout(() => { const p = document.getElementById("f").contentDocument.getElementById("probe");'
            "document.body.innerHTML = p.outerHTML; }, 1500);</script>"
        )
    done = _chromium(
        f"--window-size={width},900", "--virtual-time-budget=4000", "--allow-file-access-from-files", "--dump-dom",
        target.as_uri(), place=tmp_path,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    facts = json.loads(found[1])
    assert facts["width"] == width
    assert facts["overflow"] == 0
    assert facts["links"] == 0
    assert facts["empty"] == 0
    assert facts["articles"] == sum(test["outcome"] in ("failed", "error") for test in run["tests"])
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt install chromium")
def test_screenshot(run: dict[str, Any], tmp_path: Path) -> None:
    """The page itself, its policy included, loads without a word on the console; its picture is kept with the run."""
    results_dir = Path(os.environ.get("NPULAB_RESULTS") or tmp_path)
    place = results_dir if results_dir.is_dir() else tmp_path
    source, picture = tmp_path / "report.html", place / "report-screenshot.png"
    source.write_text(page.render(run))
    done = _chromium(f"--screenshot={picture}", "--window-size=1280,3200", source.as_uri(), place=tmp_path)
    assert picture.is_file(), done.stderr[-2000:]
    assert picture.stat().st_size > 50_000
    assert "CONSOLE" not in done.stderr
