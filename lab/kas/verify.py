# SPDX-License-Identifier: MIT
"""``npulab kas verify``: the kas files and the layer through the real kas, BitBake and OE-core, and a kernel's boot.

Every piece of work leaves its facts in ``verify.json`` at once. A later run goes on where this one ended: what passed
is not done again as long as the files that BitBake reads are the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import boards
from lab.assemble.requirements import check_space
from lab.assemble.sources import REPOSITORY
from lab.assemble.virt import BuildOptions
from lab.cache import digest, tree_digest
from lab.errors import ExitCode, KitError
from lab.kas import build as product
from lab.kas import drive, faults, host, outputs, session
from lab.kas.drive import Places
from lab.kas.progress import Progress, Watch
from lab.kas.request import PARTS, Request
from lab.kas.verify_plan import STEPS, Item, is_virtual, items, machines
from lab.kas.verify_report import summary
from lab.output import Meter, Output
from lab.process import tail

STATE, REPORT = "verify.json", "verify.md"
SPACE = 12_000_000_000
"""Bytes: four machines' parse caches and stamps took 3 GB, the layers 0.4 GB, a kernel's build with packages 6 GB."""
QUICK = ("test_boot.py", "test_npu_ops.py", "test_npu_uapi.py")
"""Files of the board suite that ``--quick`` takes: boot, what the NPU computes, and the driver's interface."""
PATCHES = (("kernel-patches", "recipes-kernel/linux"), ("lab/virt/qemu/patches", "recipes-devtools/qemu"))
"""Folders with patches, and where a layer has them."""
LAYERS = ("meta-arm/meta-arm-toolchain", "meta-arm/meta-arm", "meta-rockchip")
_CHECK_CONF = 'INHERIT:remove = "uninative"\nCONNECTIVITY_CHECK_URIS = ""\nBB_NO_NETWORK = "1"\n'


@dataclass(frozen=True)
class Options:
    """``work``: layers and build directories; ``artifacts``: a set with BitBake's kernel, instead of building one;
    ``board``, ``tree``: whose kernel is built, and the device tree that it boots with; ``threads``: BitBake's;
    ``configurations``: names, all when there is none."""

    steps: Sequence[str]
    machines: Sequence[str]
    work: Path
    threads: int = 2
    quick: bool = False
    fresh: bool = False
    artifacts: Path | None = None
    board: str = "rock-5-itx-plus"
    tree: str = "rk3588-rock-5-itx-plus"
    configurations: Sequence[str] = ()
    project: Path = REPOSITORY


@dataclass
class Verification:
    """One run."""

    options: Options
    out: Output
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """All items; the document. An item that fails does not stop the others."""
        todo = self._chosen()
        self._preflight(todo)
        with self._alone():
            return self._do(todo)

    def _do(self, todo: Sequence[Item]) -> dict[str, Any]:
        self.results = self._earlier()
        for number, item in enumerate(todo, 1):
            if not self.options.fresh and self.results.get(item.key, {}).get("ok"):
                self.out.note(f"[{number}/{len(todo)}] {item.key}: done before")
                continue
            self.results[item.key] = self._one(item, f"[{number}/{len(todo)}] {item.key}")
            self._save()
        document = self._save()
        for line in (self.options.work / REPORT).read_text().splitlines():
            self.out.say(line)
        return document

    def _chosen(self) -> list[Item]:
        options = self.options
        return items(options.steps, options.machines, options.configurations, options.project)

    def _preflight(self, todo: Sequence[Item]) -> None:
        """What can be known before anything starts."""
        with_kas = {"checkout", "graph", "dryrun", "layer"}
        if self.options.artifacts is None:
            with_kas.add("kernel")
        if with_kas & {item.step for item in todo}:
            host.check_user(os.geteuid())
            host.find_kas()
            host.check_locale()
        self.options.work.mkdir(parents=True, exist_ok=True)
        check_space(self.options.work, SPACE, "kas verify")

    def _one(self, item: Item, label: str) -> dict[str, Any]:
        """An item's result: its facts, or why it failed."""
        started = time.monotonic()
        log = self.options.work / "log" / f"{item.key.replace(' ', '-').replace(',', '')}.log"
        log.unlink(missing_ok=True)
        entry: dict[str, Any] = {"step": item.step, "machine": item.machine}
        if item.configuration:
            virtual = is_virtual(item.machine, self.options.project)
            options = item.configuration.chosen(virtual=virtual)
            entry |= {"configuration": item.configuration.name, "options": list(options)}
        try:
            with self.out.stage(label) as meter:
                facts = _DOERS[item.step](self, item, log, meter)
            wrong = facts.pop("wrong", "")
        except KitError as error:
            facts, wrong = {}, error.message
            if error.hint:
                self.out.note(f"{item.key}: what to do: {error.hint}")
        seconds = round(time.monotonic() - started, 1)
        self.out.note(f"{label}: {wrong or 'ok'} ({seconds:.0f} s)")
        return {**entry, "ok": not wrong, "seconds": seconds, **facts, "wrong": wrong, "log": str(log)}

    # -- state ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def inputs(self) -> str:
        """Key of what BitBake reads, as it was at the start."""
        return digest("verify 1", [tree_digest(self.options.project / name) for name in PARTS])

    def _earlier(self) -> dict[str, dict[str, Any]]:
        """Results of an earlier run on the same files."""
        try:
            found = json.loads((self.options.work / STATE).read_text())
        except (OSError, ValueError):
            return {}
        kept: dict[str, dict[str, Any]] = found["items"] if found.get("inputs") == self.inputs else {}
        return kept

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The layers' clones and the build directories are for one run at a time."""
        with (self.options.work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another kas verify works in {self.options.work}"
                hint = "wait for it, or give this one a directory of its own: --work DIR"
                raise KitError(ExitCode.INFRASTRUCTURE, message, hint) from None
            yield

    def _save(self) -> dict[str, Any]:
        """Write state and summary; whole files only."""
        chosen = [item.key for item in self._chosen()]
        everything = [item.key for item in items(list(STEPS), machines(self.options.project), (), self.options.project)]
        document = {
            "ok": all(self.results.get(key, {}).get("ok", False) for key in chosen),
            "inputs": self.inputs,
            "versions": self._versions(),
            "items": self.results,
            "not_executed": [key for key in everything if key not in self.results],
        }
        for name, text in ((STATE, json.dumps(document, indent=1)), (REPORT, summary(document))):
            partial = self.options.work / f"{name}.partial"
            partial.write_text(text + "\n")
            partial.replace(self.options.work / name)
        return document

    def _versions(self) -> dict[str, str]:
        """Versions of the tools, and commits of the repositories as they are checked out."""
        found = {"python": ".".join(map(str, sys.version_info[:3]))}
        program = _words([str(host.find_kas()), "--version"]) if {"checkout", "graph"} & set(self.options.steps) else ""
        if program:
            found["kas"] = program.split()[1]
        bitbake = self.options.work / "bitbake/lib/bb/__init__.py"
        if bitbake.is_file():
            lines = [line for line in bitbake.read_text().splitlines() if line.startswith("__version__")]
            found["bitbake"] = lines[0].split('"')[1] if lines else ""
        for name in ("bitbake", "openembedded-core", "meta-arm", "meta-rockchip"):
            commit = _words(["git", "-c", "safe.directory=*", "-C", str(self.options.work / name), "rev-parse", "HEAD"])
            if commit:
                found[f"{name} commit"] = commit
        return found

    # -- running ----------------------------------------------------------------------------------------------------

    def _environment(self, machine: str) -> dict[str, str]:
        blob, hash_of = self._blob()
        where = Places(self.options.work, self.options.work / f"build-{machine}", self.options.work)
        extra = {"LANG": "en_US.UTF-8", "LC_ALL": "en_US.UTF-8", "BB_NUMBER_THREADS": str(self.options.threads)}
        return drive.build_environment(where, {**extra, "NPULAB_DDR_BLOB": str(blob), "NPULAB_DDR_SHA256": hash_of})

    def _blob(self) -> tuple[Path, str]:
        """A stand-in for the DDR blob: graphs need its name and hash, nothing runs it."""
        path = self.options.work / "stand-in-ddr.bin"
        data = b"stand-in for a DDR blob, for task graphs only\n"
        if not path.is_file():
            path.write_bytes(data)
        return path, hashlib.sha256(data).hexdigest()

    def kas(self, arguments: Sequence[str], machine: str, log: Path, meter: Meter) -> str:
        """Run kas; what it printed. KitError with the decisive line when it fails."""
        progress = Progress()
        code, text = self.command(
            [host.find_kas(), *arguments], log, self._environment(machine), progress=progress, meter=meter
        )
        if code:
            board = next(name for name in boards.names() if Path(boards.load(name).kas).stem == machine)
            raise faults.explain(progress, Request(board, project=self.options.project), log, code)
        return text

    def command(
        self, words: Sequence[str | Path], log: Path, environment: dict[str, str], *, progress: Progress, meter: Meter
    ) -> tuple[int, str]:
        """Run a program in the project, shown on the meter; its exit code and output."""
        start = log.stat().st_size if log.is_file() else 0
        watch = Watch(meter, progress, self.options.work, 1)
        with drive.shown(watch):
            code = session.run(words, cwd=self.options.project, log=log, environment=environment, on_line=progress.feed)
        with log.open("rb") as stream:
            stream.seek(start)
            return code, stream.read().decode(errors="replace")

    def plain(
        self, words: Sequence[str | Path], log: Path, environment: dict[str, str], meter: Meter
    ) -> tuple[int, str]:
        """A program that is not kas."""
        return self.command(words, log, environment, progress=Progress(stage=Path(words[0]).name), meter=meter)

    def shell(self, item: Item, command: str, log: Path, meter: Meter) -> str:
        """A command in BitBake's environment for the item's machine and options."""
        assert item.configuration is not None
        files = item.configuration.files(item.machine, virtual=is_virtual(item.machine, self.options.project))
        return self.kas(["shell", files, "-c", command], item.machine, log, meter)


def _words(command: Sequence[str]) -> str:
    """A short program's first line; empty when it fails."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else ""


# -- the steps --------------------------------------------------------------------------------------------------------


def _checkout(run: Verification, item: Item, log: Path, meter: Meter) -> dict[str, Any]:
    run.kas(["checkout", f"kas/{item.machine}.yml"], item.machine, log, meter)
    return {}


def _graph(run: Verification, item: Item, log: Path, meter: Meter) -> dict[str, Any]:
    """``bitbake -g`` of all targets: no foreign kernel or firmware, and of LLVM nothing without GPU drivers."""
    assert item.configuration is not None
    text = run.shell(item, f"bitbake -g {shlex.join(item.configuration.targets)}", log, meter)
    folder = run.options.work / f"build-{item.machine}"
    found = outputs.graph((folder / "pn-buildlist").read_text(), (folder / "task-depends.dot").read_text())
    llvm = found.pop("llvm")
    foreign = found.pop("foreign")
    wrong = f"without GPU drivers it waits for {', '.join(llvm)}" if llvm and not item.configuration.llvm else ""
    wrong = f"it builds {', '.join(foreign)}" if foreign else wrong
    targets = list(item.configuration.targets)
    return {"targets": targets, "parse": outputs.parsed(text), **found, "llvm": bool(llvm), "wrong": wrong}


def _dryrun(run: Verification, item: Item, log: Path, meter: Meter) -> dict[str, Any]:
    assert item.configuration is not None
    found = outputs.tasks(run.shell(item, f"bitbake -n {shlex.join(item.configuration.targets)}", log, meter))
    wrong = "" if found.get("all_succeeded") else "BitBake's summary does not say that all tasks succeeded"
    return {**found, "wrong": wrong}


def _layer(run: Verification, item: Item, log: Path, meter: Meter) -> dict[str, Any]:
    """yocto-check-layer in a build directory of its own, whose layers are OE-core's only."""
    work, project = run.options.work, run.options.project
    build = work / "build-check-layer"
    shutil.rmtree(build, ignore_errors=True)
    virtual = [machine for machine in run.options.machines if is_virtual(machine, project)]
    others = [str(work / name) for name in LAYERS] if len(virtual) < len(run.options.machines) else []
    words = ["yocto-check-layer", "--no-auto-dependency", "--machines", *run.options.machines]
    words += ["--additional-layers", *others, "--dependency", *others] if others else []
    script = (
        f"set -e; export BITBAKEDIR={shlex.quote(str(work / 'bitbake'))}; "
        f". {shlex.quote(str(work / 'openembedded-core/oe-init-build-env'))} {shlex.quote(str(build))} >/dev/null; "
        f"printf %s {shlex.quote(_CHECK_CONF)} >> conf/local.conf; "
        f"exec {shlex.join([*words, '--', str(project / 'recipes')])}"
    )
    code, text = run.plain(["bash", "-c", script], log, run._environment("check-layer"), meter)
    found = outputs.layer_check(text)
    bad = [f"{name}: {verdict}" for name, verdict in found["verdicts"].items() if verdict != "PASS"]
    if not found["verdicts"]:
        bad = [*outputs.errors(text), f"yocto-check-layer ended with {code} and without a verdict"][:1]
    return {**found, "wrong": "; ".join(bad)}


def _patches(run: Verification, item: Item, log: Path, meter: Meter) -> dict[str, Any]:
    """patchreview reads what git lists of a layer's recipe folders: a layer with copies of the patches is made."""
    review = run.options.work / "openembedded-core/scripts/contrib/patchreview.py"
    if not review.is_file():
        raise KitError(ExitCode.USAGE, f"there is no {review}", "npulab kas verify --only checkout")
    layer = run.options.work / "meta-review"
    shutil.rmtree(layer, ignore_errors=True)
    try:
        for source, target in PATCHES:
            shutil.copytree(run.options.project / source, layer / target / "files")
        (layer / "conf").mkdir()
        (layer / "conf/layer.conf").write_text("")
        for words in (["init", "-q"], ["add", "-A"]):
            subprocess.run(["git", "-C", str(layer), *words], check=True, capture_output=True)
        _, text = run.plain([sys.executable, review, "-v", layer], log, dict(os.environ), meter)
    finally:
        shutil.rmtree(layer, ignore_errors=True)
    counts = outputs.patch_review(text)
    if not counts.get("Total patches found"):
        return {"patches": counts, "wrong": (tail(log, 1) or "patchreview printed nothing").strip()}
    return {"patches": counts, "wrong": "; ".join(outputs.faulty_patches(counts))}


def _kernel(run: Verification, item: Item, log: Path, meter: Meter) -> dict[str, Any]:
    """What ``npulab build BOARD --with kas`` does; a set that is given was built by it before."""
    if run.options.artifacts is not None:
        return {"reused": True, **_describe(run.options.artifacts)}
    request = Request(run.options.board, image="kernel", options=("host-toolchain",), project=run.options.project)
    where = Places(run.options.work, run.options.work / f"build-kernel-{run.options.board}", log)
    found = product.build(request, BuildOptions(), run.out, where)
    progress = found.outcome.progress
    counts = {
        "tasks": progress.attempted,
        "not_rerun": progress.kept,
        "parse_seconds": round(progress.parse_seconds, 1),
    }
    return {"reused": False, **counts, **_describe(found.artifacts.root)}


def _board(run: Verification, item: Item, log: Path, meter: Meter) -> dict[str, Any]:
    """The board suite, with BitBake's kernel and a real board's device tree."""
    artifacts = run.options.artifacts or run.results.get("kernel", {}).get("artifacts")
    if not artifacts:
        raise KitError(ExitCode.USAGE, "there is no kernel of BitBake's to boot", "--only kernel, or --artifacts DIR")
    words = ["test", "board", "--artifacts", str(artifacts), "--dtb", run.options.tree, "--json"]
    if run.options.quick:
        for name in QUICK:
            words += ["--test", f"tests/board/{name}"]
    # the document stands at the end of what it prints
    code, text = run.plain(_npulab(words), log, dict(os.environ), meter)
    if "\n{\n" not in text:
        raise KitError(ExitCode.FAILED, f"npulab test board ended with {code} and without a result", f"log: {log}")
    document = json.JSONDecoder().raw_decode(text, text.rindex("\n{\n") + 1)[0]
    if "suites" not in document:
        raise KitError(ExitCode.FAILED, document["error"]["message"], document["error"]["hint"], log=log)
    suite = document["suites"][0]
    facts = {name: suite[name] for name in ("tests", "failures", "errors", "skipped")}
    failed = f"{suite['failures']} tests failed, {suite['errors']} ended in an error"
    none = f"no test ran: pytest ended with {suite['exit_code']}"
    wrong = "" if document["ok"] else failed if suite["tests"] else none
    return {"tree": run.options.tree, "quick": run.options.quick, **facts, "report": document["report"], "wrong": wrong}


def _npulab(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "lab", *words]


def _describe(root: Path) -> dict[str, Any]:
    """What the set's manifest says of the kernel."""
    try:
        manifest = json.loads((root / "manifest.json").read_text())
        linux = manifest["kernel"]
    except (OSError, ValueError, KeyError) as error:
        message = f"{root} is no artifact set: {error}"
        raise KitError(ExitCode.USAGE, message, "npulab build BOARD --with kas --out DIR makes one") from error
    return {"artifacts": str(root), "release": linux["release"], "rocket": linux["rocket"]}


_DOERS: dict[str, Callable[[Verification, Item, Path, Meter], dict[str, Any]]] = {
    "checkout": _checkout,
    "graph": _graph,
    "dryrun": _dryrun,
    "layer": _layer,
    "patches": _patches,
    "kernel": _kernel,
    "board": _board,
}
