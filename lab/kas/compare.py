# SPDX-License-Identifier: MIT
"""Two kernels side by side: where configuration, device trees and modules differ, and why.

The two paths share fragments, patches and trees, so what differs has one of few causes, each looked for in what the
sets and the kernel's source say; a difference without a cause found is called ``not explained``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import boards
from lab.cache import Cache, file_digest
from lab.errors import ExitCode, KitError
from lab.kas.build import newest
from lab.kernel import check, elf, fdtree
from lab.kernel.parts import version_of
from lab.output import Output

TOOLCHAIN = re.compile(
    r"CONFIG_(CC|GCC|CLANG|LLD|LD|AS|RUSTC?|BINDGEN|PAHOLE|TOOLS)_\w+|CONFIG_\w*(HAS_(CC|LD|AS)_|CC_HAS|LD_HAS|AS_HAS)\w*"
)
"""Symbols that Kconfig sets by asking the compiler and linker (linux init/Kconfig, scripts/Kconfig.include)."""
_CONFIG = re.compile(r"^\s*(?:menu)?config (\w+)\s*$")
_WORDS = re.compile(
    r"^\s*(?:depends on|if|visible if|select|imply|default|def_bool|def_tristate|prompt|bool|tristate) .*"
)
_SYMBOL = re.compile(r"\b[A-Z0-9_]{3,}\b")
SHOWN = 40
NOT_EXPLAINED = "not explained"


@dataclass(frozen=True)
class Side:
    """One of the two kernels."""

    name: str
    root: Path
    files: check.Files
    kernel: dict[str, Any]
    base: str

    @property
    def config(self) -> dict[str, str]:
        """Symbol to value; empty without a configuration."""
        return check.read_config(self.files.config) if self.files.config else {}

    @property
    def modules(self) -> dict[str, Path]:
        """Module name to file."""
        paths = [*self.files.modules, *([self.files.module] if self.files.module else [])]
        return {path.name.split(".ko")[0].replace("-", "_"): path for path in paths}

    @property
    def dtbs(self) -> dict[str, Path]:
        """Device tree name to file."""
        return {path.stem: path for path in self.files.dtbs}


@dataclass(frozen=True)
class Difference:
    """One difference; ``a`` and ``b`` are the values of the two sides."""

    kind: str
    name: str
    a: str
    b: str
    why: str


def command(name: str, sets: Sequence[str], out: Output) -> dict[str, Any]:
    """The command line's part; see `lab.commands.build`."""
    cache = Cache()
    a, b = (open_side(text, name, cache) for text in sets)
    found = compare(a, b, kernel_tree(a, cache))
    same = sorted(set(a.dtbs) & set(b.dtbs))
    out.say(f"A: {a.name}: {a.root}")
    out.say(f"B: {b.name}: {b.root}")
    out.table(
        f"{len(found)} differences" if found else "no difference",
        ["part", "what", "A", "B", "why"],
        [[row.kind, row.name, row.a, row.b, row.why] for row in _together(found)[:SHOWN]],
    )
    if len(_together(found)) > SHOWN:
        out.say(f"{len(_together(found)) - SHOWN} more: --json has them all")
    out.say(summary(found))
    missing = [part for part in ("config", "dtbs", "image") if not getattr(a.files, part) or not getattr(b.files, part)]
    return {
        "ok": True,
        "a": {"name": a.name, "root": str(a.root), "kernel": a.kernel.get("release", "")},
        "b": {"name": b.name, "root": str(b.root), "kernel": b.kernel.get("release", "")},
        "compared": {"symbols": len({*a.config, *b.config}), "dtbs": same, "modules": len({*a.modules, *b.modules})},
        "not_compared": missing,
        "differences": [asdict(row) for row in found],
        "unexplained": sum(row.why == NOT_EXPLAINED for row in found),
    }


def _together(found: Sequence[Difference]) -> list[Difference]:
    """For people: device trees that only one side has in one row."""
    rows = [row for row in found if not row.why.startswith("selection")]
    for side in (("there", "not there"), ("not there", "there")):
        alone = [row for row in found if row.why.startswith("selection") and (row.a, row.b) == side]
        if len(alone) == 1:
            rows += alone
        elif alone:
            name = f"{alone[0].name} and {len(alone) - 1} more boards"
            rows.append(Difference("device tree", name, side[0], side[1], alone[0].why))
    return rows


def summary(found: Sequence[Difference]) -> str:
    """How many of each cause, in a line."""
    causes: dict[str, int] = {}
    for row in found:
        cause = row.why.split(":")[0]
        causes[cause] = causes.get(cause, 0) + 1
    words = [f"{count} {cause}" for cause, count in sorted(causes.items(), key=lambda item: -item[1])]
    return "; ".join(words) if words else "configuration, device trees and modules are the same"


# --- the two sides ---------------------------------------------------------------------------------------------------


def open_side(text: str, board: str, cache: Cache) -> Side:
    """A set's directory, or the words ``minutes`` and ``kas`` for the newest of a board; KitError (usage) without."""
    root = _newest(text, board, cache) if text in ("minutes", "kas") else Path(text).expanduser()
    if not root.is_dir():
        raise KitError(ExitCode.USAGE, f"{root} is no directory", "give an artifact set, or the words minutes and kas")
    files = check.collect(root)
    if files.empty:
        raise KitError(ExitCode.USAGE, f"{root} holds no kernel", "give an artifact set or a board's kernel set")
    manifest: dict[str, Any] = {}
    if (root / "manifest.json").is_file():
        try:
            manifest = json.loads((root / "manifest.json").read_text())
        except ValueError as error:
            message = f"{root}/manifest.json: not JSON: {error}"
            raise KitError(ExitCode.USAGE, message, "build the set again") from error
    kernel = dict(manifest.get("kernel", {}))
    trimmed = "board.cfg" not in _fragments(kernel)
    base = "Debian's" if kernel.get("flavour") == "distro" else "allnoconfig" if trimmed else "alldefconfig"
    path = {"kas": "kas path"}.get(str(kernel.get("flavour")), "minutes path") if kernel else "no manifest"
    return Side(path, root, files, kernel, base)


def _newest(word: str, board: str, cache: Cache) -> Path:
    if word == "kas":
        path = newest(cache, board)
        if not path.is_file():
            message = f"{board} was not built with kas here"
            raise KitError(ExitCode.USAGE, message, f"npulab build {board} --with kas, or give a directory")
        document = json.loads(path.read_text())
        return Path(document["kernel_set"] or document["artifacts"])
    kind = "artifacts" if boards.load(board).virtual else "board-kernel"
    sets = []
    for manifest in (cache.root / kind).glob("*/manifest.json"):
        document = json.loads(manifest.read_text())
        if document["board"] == board and document["kernel"]["flavour"] == "fast":
            sets.append((manifest.stat().st_mtime, manifest.parent))
    if not sets:
        message = f"{board} was not built here on the minutes path"
        raise KitError(ExitCode.USAGE, message, f"npulab build {board}, or give a directory")
    return max(sets)[1]


def _fragments(kernel: Mapping[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["sha256"] for entry in kernel.get("fragments", [])}


def kernel_tree(side: Side, cache: Cache) -> Path | None:
    """An unpacked source of the side's version in the cache: Kconfig says there what depends on what."""
    version = str(side.kernel.get("version", ""))
    for tree in sorted((cache.root / "linux-source").glob("*/linux")):
        try:
            if version and version_of(tree) == version:
                return tree
        except KitError:
            continue
    return None


# --- differences -----------------------------------------------------------------------------------------------------


def compare(a: Side, b: Side, tree: Path | None = None) -> list[Difference]:
    """Every difference, with its cause. ``tree``: a kernel source, for what follows from what."""
    return [*_configs(a, b, tree), *_trees(a, b), *_modules(a, b)]


def _configs(a: Side, b: Side, tree: Path | None) -> list[Difference]:
    first, second = a.config, b.config
    if not first or not second:
        return []
    changed = {
        symbol: (first.get(symbol, "n"), second.get(symbol, "n"))
        for symbol in sorted({*first, *second})
        if first.get(symbol, "n") != second.get(symbol, "n")
    }
    causes = {symbol: _cause(symbol, a, b) for symbol in changed}
    _follow(causes, tree)
    rest = _rest(a, b)
    found = [
        Difference("config", symbol.removeprefix("CONFIG_"), *values, causes[symbol] or rest)
        for symbol, values in changed.items()
    ]
    # what somebody chose before what follows from it
    return sorted(found, key=lambda row: (row.why.split(":")[0] in ("follows", "defaults"), row.why.split(":")[0]))


def _cause(symbol: str, a: Side, b: Side) -> str:
    """A cause that the symbol itself tells; empty without one."""
    if TOOLCHAIN.fullmatch(symbol):
        compilers = [side.kernel.get("compiler", "") for side in (a, b)]
        same = "the same compiler with other tools or flags" if compilers[0] == compilers[1] else "other compilers"
        return f"toolchain: {same}"
    sets = [_setting(symbol, side) for side in (a, b)]
    if sets[0] != sets[1]:
        told = [f"{label} merges {' '.join(names) or 'none'}" for label, names in zip("AB", sets, strict=True)]
        return f"fragment: {', '.join(told)}"
    return ""


def _setting(symbol: str, side: Side) -> list[str]:
    """The side's fragments that name a symbol; one that is not the repository's any more is marked."""
    found = []
    for name, digest in _fragments(side.kernel).items():
        path = check.FRAGMENTS / name
        if path.is_file() and re.search(rf"^(# )?{symbol}(=| is not set)", path.read_text(), re.MULTILINE):
            found.append(name if file_digest(path) == digest else f"{name} (another version)")
    return found


def _rest(a: Side, b: Side) -> str:
    """The cause of what no symbol tells: where the two configurations start."""
    if a.base != b.base:
        return f"defaults: A starts from {a.base}, B from {b.base}"
    versions = [str(side.kernel.get("version", "")) for side in (a, b)]
    if versions[0] != versions[1]:
        return f"kernel: A is {versions[0] or 'unknown'}, B {versions[1] or 'unknown'}"
    patches = [{entry["sha256"] for entry in side.kernel.get("patches", [])} for side in (a, b)]
    return "patches: the two have other patches" if patches[0] != patches[1] else NOT_EXPLAINED


def _follow(causes: dict[str, str], tree: Path | None) -> None:
    """Symbols whose Kconfig entry names one that differs for a known cause, or that such a one selects."""
    if tree is None or all(causes.values()):
        return
    uses = kconfig_uses(tree, {symbol.removeprefix("CONFIG_") for symbol in causes})
    progress = True
    while progress:
        progress = False
        for symbol in [name for name, cause in causes.items() if not cause]:
            own = uses.get(symbol.removeprefix("CONFIG_"), set())
            for other in sorted(own):
                if causes.get(f"CONFIG_{other}") and other != symbol.removeprefix("CONFIG_"):
                    causes[symbol] = f"follows: {other}"
                    progress = True
                    break


def kconfig_uses(tree: Path, symbols: set[str]) -> dict[str, set[str]]:
    """For each of ``symbols``, those of them that its Kconfig entries name or that select it."""
    uses: dict[str, set[str]] = {symbol: set() for symbol in symbols}
    for path in [*tree.glob("Kconfig*"), *tree.rglob("*/Kconfig*")]:
        if not path.is_file() or ("arch" in path.relative_to(tree).parts[:1] and "arm64" not in path.parts):
            continue
        current = ""
        for line in path.read_text(errors="replace").splitlines():
            start = _CONFIG.match(line)
            if start:
                current = start[1]
                continue
            if not current or not _WORDS.match(line):
                continue
            named = set(_SYMBOL.findall(line)) & symbols
            if current in symbols:
                uses[current] |= named
            if line.lstrip().startswith(("select", "imply")):
                for target in named if current in symbols else ():
                    uses[target].add(current)
    return uses


# --- device trees and modules ----------------------------------------------------------------------------------------


def _trees(a: Side, b: Side) -> Iterable[Difference]:
    first, second = a.dtbs, b.dtbs
    for name in sorted({*first, *second}):
        if name not in first or name not in second:
            why = "selection: the minutes path makes every RK3588 board's, a machine of kas its own"
            yield Difference("device tree", name, _there(name in first), _there(name in second), why)
        elif first[name].read_bytes() != second[name].read_bytes():
            yield from tree_differences(name, fdtree.load(first[name]), fdtree.load(second[name]))


def tree_differences(name: str, a: fdtree.Tree, b: fdtree.Tree) -> Iterable[Difference]:
    """What differs between two trees; where only numbering or order does, one difference says so."""
    kind = f"device tree {name}"
    if a.has_symbols != b.has_symbols:
        why = "flags: one is compiled with -@ and takes overlays, the other is not"
        yield Difference(kind, "/__symbols__", _there(a.has_symbols), _there(b.has_symbols), why)
    skipped = ("/__symbols__", "/__fixups__", "/__local_fixups__")
    counted = 0
    for path in sorted({*a.by_path, *b.by_path}):
        if path.startswith(skipped):
            continue
        first, second = a.by_path.get(path), b.by_path.get(path)
        if first is None or second is None:
            counted += 1
            yield Difference(kind, path, _there(first is not None), _there(second is not None), NOT_EXPLAINED)
            continue
        for prop in sorted({*first.properties, *second.properties} - {"phandle", "linux,phandle"}):
            if not _equal(first.properties.get(prop), second.properties.get(prop), a, b):
                counted += 1
                values = [_shown(node.properties.get(prop)) for node in (first, second)]
                yield Difference(kind, f"{path} {prop}", values[0], values[1], NOT_EXPLAINED)
    if not counted and a.has_symbols == b.has_symbols:
        why = "numbering: the compilers number or order nodes differently; the content is the same"
        yield Difference(kind, "bytes", "differ", "differ", why)


def _equal(a: bytes | None, b: bytes | None, first: fdtree.Tree, second: fdtree.Tree) -> bool:
    """Equal, where a phandle is what it leads to."""
    if a == b:
        return True
    if a is None or b is None or len(a) != len(b) or len(a) % 4:
        return False
    words = zip(*((int.from_bytes(raw[at : at + 4]) for at in range(0, len(raw), 4)) for raw in (a, b)), strict=True)
    for one, other in words:
        targets = first.by_phandle.get(one), second.by_phandle.get(other)
        paths = [target.path if target is not None else None for target in targets]
        if one != other and (paths[0] is None or paths[0] != paths[1]):
            return False
    return True


def _shown(raw: bytes | None) -> str:
    if raw is None:
        return "not there"
    text = raw.rstrip(b"\0")
    if text and all(32 <= byte < 127 or byte == 0 for byte in text):
        return text.replace(b"\0", b" ").decode()[:40]
    return raw.hex()[:40] or "empty"


def _modules(a: Side, b: Side) -> Iterable[Difference]:
    first, second = a.modules, b.modules
    for name in sorted({*first, *second}):
        if name in first and name in second:
            yield from _module(name, elf.module(first[name]), elf.module(second[name]))
            continue
        lacking = b if name in first else a
        why = "built in there" if name in _builtin(lacking) else "configured out there"
        state = [_there(name in side.modules) for side in (a, b)]
        yield Difference("module", name, state[0], state[1], f"configuration: {why}")


def _builtin(side: Side) -> set[str]:
    listing = side.root / "modules.builtin"
    if not listing.is_file():
        return set()
    return {Path(line).name.removesuffix(".ko").replace("-", "_") for line in listing.read_text().split()}


def _module(name: str, a: elf.Module, b: elf.Module) -> Iterable[Difference]:
    for what, first, second in (
        ("vermagic", a.vermagic, b.vermagic),
        ("aliases", " ".join(sorted(a.aliases)), " ".join(sorted(b.aliases))),
        ("depends", " ".join(sorted(a.depends)), " ".join(sorted(b.depends))),
    ):
        if first != second:
            why = "configuration: see the symbols above" if what == "vermagic" else NOT_EXPLAINED
            yield Difference("module", f"{name} {what}", first[:60], second[:60], why)
    for label, names in (("A", a.undefined - b.undefined), ("B", b.undefined - a.undefined)):
        if names:
            told = f"{len(names)} symbols only {label} needs"
            yield Difference(
                "module", f"{name} symbols", told, " ".join(sorted(names)[:3]), "code: other compiler or options"
            )


def _there(there: bool) -> str:
    return "there" if there else "not there"
