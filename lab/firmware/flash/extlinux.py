# SPDX-License-Identifier: MIT
"""``extlinux.conf`` as U-Boot reads it, and edits of it that leave the user's own lines alone.

Facts from U-Boot 2026.10-rc2, boot/pxe_utils.c (``fallback`` is there since 2025.01, the override since 2022.01):

* a line is a keyword in any case and a value that reaches to the end of the line, blanks at its end included;
* a value that is missing where one is needed makes the whole file unusable; an unknown word is skipped with its line,
  and ends the label it stands in;
* within a label the first ``initrd``, ``fdt`` and ``fdtdir`` count, and the last ``linux`` and ``append``; a second
  ``initrd``, ``fdt`` or ``fdtdir`` ends the label;
* the last ``default`` (or ``ontimeout``) counts; ``menu default`` only while there is none; any ``menu`` line outside
  a label switches the menu on, as ``prompt 1`` does, and a menu without ``timeout`` waits for a key for ever;
* the default is tried first; when its kernel, initrd or device tree cannot be read, or ``booti`` finds no arm64 kernel
  in the file, all other labels follow in the order of the file;
* ``fallback`` names the label that takes the default's place once ``bootmeth set extlinux fallback 1`` was said
  (boot/bootmeth_extlinux.c), which is a matter of the loader's ``altbootcmd``;
* the variable ``pxe_label_override`` of the loader names the label to boot instead of the default, this once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lab.errors import ExitCode, KitError

NEST_LIMIT = 16
SIZE_LIMIT = 0x10000
"""A larger file is not read (bootmeth_extlinux.c)."""

PLACES = ("/extlinux/extlinux.conf", "/boot/extlinux/extlinux.conf")
"""Where the file is looked for on a partition, in this order (boot/bootstd-uclass.c, include/extlinux.h)."""

_TEXT_WORDS = {
    "kernel": "linux",
    "linux": "linux",
    "append": "append",
    "initrd": "initrd",
    "fdt": "fdt",
    "devicetree": "fdt",
    "fdtdir": "fdtdir",
    "devicetreedir": "fdtdir",
    "fdtoverlays": "fdtoverlays",
    "devicetree-overlay": "fdtoverlays",
}
_FIRST_COUNTS = ("initrd", "fdt", "fdtdir", "fdtoverlays")


@dataclass(frozen=True)
class Label:
    """One entry; empty texts for what it does not say. ``menu`` is the title that the menu shows."""

    name: str
    linux: str = ""
    append: str = ""
    initrd: str = ""
    fdt: str = ""
    fdtdir: str = ""
    fdtoverlays: str = ""
    menu: str = ""
    localboot: bool = False


@dataclass(frozen=True)
class Config:
    """A file that U-Boot can use. ``timeout`` in tenths of a second; ``ignored`` are the lines that it skips."""

    labels: tuple[Label, ...] = ()
    default: str = ""
    fallback: str = ""
    timeout: int = 0
    prompt: int = 0
    title: str = ""
    ignored: tuple[str, ...] = field(default=(), compare=False)

    def label(self, name: str) -> Label | None:
        """The label of that name that ``default`` would mean: the last one."""
        return next((label for label in reversed(self.labels) if label.name == name), None)

    @property
    def waits(self) -> bool:
        """Whether the menu waits for a key for ever: such a board does not start by itself."""
        return bool(self.prompt) and self.timeout <= 0

    def attempts(self, *, fallback: bool = False, override: str = "") -> list[Label]:
        """The labels in the order in which U-Boot tries them."""
        wanted = self.fallback if fallback and self.fallback else self.default
        first = (self.label(override) if override else None) or self.label(wanted)
        rest = [label for label in self.labels if label is not first]
        return [first, *rest] if first is not None else rest


class _Reader:
    """Words and values of a text."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text.split("\0", 1)[0], 0

    def _skip(self) -> str:
        """Go to the next character that counts, over blanks and a comment; empty at the end."""
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1
        if self.text.startswith("#", self.at):
            self.rest()
        return self.text[self.at : self.at + 1]

    def word(self) -> str:
        """The next word in lower case; a line's end as itself, empty at the text's end."""
        first = self._skip()
        if first in ("", "\n"):
            self.at += len(first)
            return first
        found = re.compile(r"[^ \t\n\v\f\r]+").match(self.text, self.at)
        if found is None:  # a carriage return or form feed: an empty word, and the line goes
            return self.rest() and "\r"
        self.at = found.end()
        return found[0].lower()

    def value(self, word: str) -> str:
        """The rest of the line; KitError when there is none."""
        if self._skip() in ("", "\n"):
            line = self.text.count("\n", 0, self.at) + 1
            raise KitError(
                ExitCode.FAILED,
                f"extlinux.conf, line {line}: {word} has no value; U-Boot gives the whole file up",
                "complete or remove the line",
            )
        return self.rest()

    def rest(self) -> str:
        """The line from here to its end."""
        end = self.text.find("\n", self.at)
        end = len(self.text) if end < 0 else end
        found, self.at = self.text[self.at : end], end
        return found


def _number(text: str) -> int:
    found = re.match(r"[+-]?\d+", text)
    return int(found[0]) if found else 0


class _Parser:
    """Collects what a file and those that it includes say."""

    def __init__(self, include: Callable[[str], str] | None) -> None:
        self.include = include
        self.labels: list[Label] = []
        self.ignored: list[str] = []
        self.found = Config()

    def top(self, text: str, level: int) -> None:
        """A whole text."""
        if level > NEST_LIMIT:
            raise KitError(ExitCode.FAILED, f"extlinux.conf: more than {NEST_LIMIT} files include one another")
        reader = _Reader(text)
        while word := reader.word():
            if word == "menu":
                self.found = replace(self.found, prompt=1)
                self._menu(reader, level)
            elif word == "timeout":
                self.found = replace(self.found, timeout=_number(reader.value(word)))
            elif word == "label":
                self._label(reader)
            elif word in ("default", "ontimeout"):
                self.found = replace(self.found, default=reader.value(word))
            elif word == "fallback":
                self.found = replace(self.found, fallback=reader.value(word))
            elif word == "include":
                self._include(reader.value(word), level)
            elif word == "prompt":
                text_of = reader.rest().strip()
                self.found = replace(self.found, prompt=_number(text_of) if text_of else self.found.prompt)
            elif word != "\n":
                self.ignored.append(f"{word}{reader.rest()}".strip())

    def _include(self, path: str, level: int) -> None:
        if self.include is None:
            raise KitError(ExitCode.FAILED, f"extlinux.conf includes {path}, which is not at hand")
        self.top(self.include(path), level + 1)

    def _menu(self, reader: _Reader, level: int) -> None:
        word = reader.word()
        if word == "title":
            self.found = replace(self.found, title=reader.value(word))
        elif word == "include":
            self._include(reader.value(word), level)
        elif word == "background":
            reader.value(word)
        elif word == "\n":
            return
        reader.rest()

    def _label(self, reader: _Reader) -> None:
        label = Label(reader.value("label"))
        place = len(self.labels)
        self.labels.append(label)
        while True:
            before = reader.at
            word = reader.word()
            name = _TEXT_WORDS.get(word, "")
            if name in _FIRST_COUNTS and getattr(label, name):
                continue  # its value is read as the next word, which ends the label
            if name:
                said: dict[str, Any] = {name: reader.value(word)}
                label = replace(label, **said)
                if name == "append" and not label.initrd and "initrd=" in label.append:
                    label = replace(label, initrd=label.append.partition("initrd=")[2].partition(" ")[0])
            elif word == "menu":
                label = self._label_menu(reader, label)
            elif word in ("localboot", "ipappend"):
                reader.value(word)
                label = replace(label, localboot=label.localboot or word == "localboot")
            elif word not in ("\n", "kaslrseed"):
                reader.at = before
                self.labels[place] = label
                return

    def _label_menu(self, reader: _Reader, label: Label) -> Label:
        word = reader.word()
        if word == "default" and not self.found.default:
            self.found = replace(self.found, default=label.name)
        elif word == "label":
            return replace(label, menu=reader.value(word))
        elif word == "\n":
            return label
        reader.rest()
        return label


def parse(text: str, include: Callable[[str], str] | None = None) -> Config:
    """What U-Boot makes of a file; KitError where it gives the file up. ``include`` reads the files that it names."""
    parser = _Parser(include)
    parser.top(text, 1)
    return replace(parser.found, labels=tuple(parser.labels), ignored=tuple(parser.ignored))


def render_label(label: Label) -> str:
    """A label's lines."""
    lines = [f"label {label.name}"]
    if label.menu:
        lines.append(f"\tmenu label {label.menu}")
    for word in ("linux", "initrd", "fdt", "fdtdir", "fdtoverlays", "append"):
        if value := getattr(label, word):
            lines.append(f"\t{word} {value}")
    if label.localboot:
        lines.append("\tlocalboot 1")
    return "\n".join(lines) + "\n"


def render(config: Config) -> str:
    """A file that `parse` reads back as it was."""
    head = [f"menu title {config.title}"] if config.title else []
    head += [f"default {config.default}"] if config.default else []
    head += [f"fallback {config.fallback}"] if config.fallback else []
    head += [f"timeout {config.timeout}"] if config.timeout else []
    head += [f"prompt {config.prompt}"] if config.prompt or config.title else []
    parts = ["\n".join(head) + "\n" if head else "", *map(render_label, config.labels)]
    return "\n".join(part for part in parts if part)


def _set_word(text: str, words: tuple[str, ...], value: str) -> str:
    """Give every line of these words another value; a new first line when there is none."""
    pattern = re.compile(rf"^([ \t]*(?:{'|'.join(words)})[ \t]+)[^\n]*$", re.I | re.M)
    if pattern.search(text):
        return pattern.sub(lambda found: found[1] + value, text)
    return f"{words[0]} {value}\n{text}"


def with_default(text: str, default: str) -> str:
    """The file with another default."""
    return _set_word(text, ("default", "ontimeout"), default)


def with_fallback(text: str, fallback: str) -> str:
    """The file with another fallback."""
    return _set_word(text, ("fallback",), fallback)


def with_entry(text: str, label: Label, default: str, fallback: str) -> str:
    """The file with a label at its end, a default and a fallback; all other labels stay as they are.

    KitError (failed) when U-Boot would not read the result so.
    """
    old = parse(text)
    if old.label(label.name) is not None:
        text = without_entry(text, label.name)
    body = text if text.endswith("\n") or not text else text + "\n"
    made = with_default(with_fallback(body, fallback), default) + "\n" + render_label(label)
    _assure(made, old, label, default)
    return made


def _assure(made: str, old: Config, label: Label, default: str) -> None:
    """The edit says what it should, and nothing else changed."""
    found = parse(made)
    others = tuple(entry for entry in old.labels if entry.name != label.name)
    if found.labels != (*others, label) or found.default != default or len(made.encode()) > SIZE_LIMIT:
        raise KitError(
            ExitCode.FAILED,
            "extlinux.conf is written in a way that an entry cannot be added to safely",
            "add the entry by hand, or write the file anew in a plain form",
        )


def without_entry(text: str, name: str) -> str:
    """The file without the lines of a label (up to the next one or an empty line) and the empty line before it."""
    kept: list[str] = []
    inside = False
    for line in text.splitlines(keepends=True):
        words = line.split(None, 1)
        is_label = bool(words) and words[0].lower() == "label"
        if is_label and len(words) == 2 and words[1].rstrip("\n") == name:
            inside = True
            if kept and not kept[-1].strip():
                kept.pop()
            continue
        inside = inside and not is_label and bool(line.strip())
        if not inside:
            kept.append(line)
    return "".join(kept)
