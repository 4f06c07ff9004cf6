# SPDX-License-Identifier: MIT
"""Command streams from anywhere: dumps of buffers, hexadecimal text, and the JSON that ``document`` makes.

* Binary: 64-bit little-endian words. The dump of a whole buffer may hold other things as well (weights, padding):
  runs that can not be commands are passed over.
* Text: words of 16 digits; words of 8 digits, the low half first; or bytes, as ``xxd`` and ``hexdump -C`` print them.
  ``0x``, commas, addresses in front (``00000010:``) and comments after ``#`` are left out.
* JSON: ``{"streams": [{"name": "...", "base": IOVA, "words": ["0x...", ...]}, ...]}``, or a bare list of words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .register import Block
from .words import OPERATION_ENABLE, TARGET_ENABLE, TARGET_SYNC

if TYPE_CHECKING:
    from rknpu_userspace.graph import Graph
    from rknpu_userspace.program import Program

Words = npt.NDArray[np.uint64]
_DATA_WORDS = 8
"""So many words in a row that can not be commands are data; fewer are mistakes in a stream."""
_LEAST_COMMANDS = 4
_PADDING = 64
"""Bytes: streams are aligned to that."""
_TEXT = re.compile(rb"[\x09\x0a\x0d\x20-\x7e]*")
_ADDRESS = re.compile(r"^\s*(?:0x)?[0-9a-fA-F]+\s*:")
_CANONICAL = re.compile(r"^[0-9a-fA-F]{8}  (?P<bytes>(?: ?[0-9a-fA-F]{2} ?)+)(?: \|.*\|)?$")


@dataclass(frozen=True)
class Stream:
    """Words that follow each other in memory; ``base`` is the IOVA of the first, None when nobody said."""

    name: str
    words: Words
    base: int | None = None


def parse(data: bytes, name: str, base: int | None = None) -> list[Stream]:
    """The streams of a file's bytes; ValueError says what is wrong with them."""
    text = data.strip()
    if not text:
        raise ValueError(f"{name}: empty")
    if _TEXT.fullmatch(data) is None:
        return [Stream(name, _binary(data, name), base)]
    if text[:1] in (b"{", b"["):
        return _from_json(text.decode("ascii"), name, base)
    words = _from_text(text.decode("ascii").splitlines())
    if words is None:
        if len(data) % 8 == 0:  # command words may all be printable
            return [Stream(name, _binary(data, name), base)]
        raise ValueError(f"{name}: neither command words in hexadecimal nor a binary dump of them")
    return [Stream(name, words, base)]


def _binary(data: bytes, name: str) -> Words:
    if not data or len(data) % 8:
        raise ValueError(f"{name}: {len(data)} bytes are not a whole number of 64-bit command words")
    return np.frombuffer(data, "<u8").astype(np.uint64)


def _from_text(lines: Sequence[str]) -> Words | None:
    """Words of hexadecimal text, or None when it is something else."""
    tokens: list[str] = []
    for line in lines:
        canonical = _CANONICAL.match(line.rstrip())
        if canonical is not None:
            tokens += canonical["bytes"].split()
            continue
        plain = _ADDRESS.sub("", line.split("#")[0])
        if ":" in line and "  " in plain.strip():
            plain = plain.strip().split("  ")[0]  # xxd repeats the bytes as characters
        tokens += plain.replace(",", " ").split()
    tokens = [token[2:] if token[:2] in ("0x", "0X") else token for token in tokens]
    if not tokens or not all(re.fullmatch("[0-9a-fA-F]{1,16}", token) for token in tokens):
        return None
    digits = {len(token) for token in tokens}
    if digits <= {2, 4} and len(digits) == 1:
        raw = bytes.fromhex("".join(tokens))
        return np.frombuffer(raw, "<u8").astype(np.uint64) if len(raw) % 8 == 0 else None
    if digits == {8} and len(tokens) % 2 == 0:
        halves = np.array([int(token, 16) for token in tokens], np.uint64).reshape(-1, 2)
        return halves[:, 0] | halves[:, 1] << np.uint64(32)
    return np.array([int(token, 16) for token in tokens], np.uint64)


def _from_json(text: str, name: str, base: int | None) -> list[Stream]:
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON: {error}") from error
    rows = document.get("streams") if isinstance(document, dict) else [{"words": document}]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name}: expected a list of words, or an object with a list 'streams'")
    streams = []
    for index, row in enumerate(rows):
        title = str(row.get("name", f"{name}, stream {index}"))
        place = row.get("base", base)
        if place is not None and (not isinstance(place, int) or not 0 <= place < 1 << 32):
            raise ValueError(f"{title}: base {place!r} is not an address below 2^32")
        streams.append(Stream(title, _json_words(row.get("words"), title), place))
    return streams


def _json_words(words: Any, title: str) -> Words:
    if not isinstance(words, list) or not words:
        raise ValueError(f"{title}: no list of words")
    try:
        numbers = [int(word, 16) if isinstance(word, str) else int(word) for word in words]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{title}: {error}") from error
    if not all(0 <= number < 1 << 64 for number in numbers):
        raise ValueError(f"{title}: a command word has 64 bits")
    return np.array(numbers, np.uint64)


def document(streams: Sequence[Stream]) -> dict[str, Any]:
    """The JSON document of streams, which ``parse`` reads."""
    rows = [
        {"name": stream.name, "base": stream.base, "words": [f"{word:#018x}" for word in stream.words.tolist()]}
        for stream in streams
    ]
    return {"streams": rows}


def of_program(program: Program) -> dict[str, Any]:
    """The JSON document of a compiled program's commands, as they lie in its buffers; tasks in a row are a stream."""
    streams: list[Stream] = []
    for name, iova, data in program.commands():
        words = np.frombuffer(data.tobytes(), "<u8").astype(np.uint64)
        last = streams[-1] if streams else None
        if last is not None and last.base is not None and last.name == name:
            gap = iova - last.base - 8 * len(last.words)
            if 0 <= gap < _PADDING and gap % 8 == 0:
                joined = np.concatenate([last.words, np.zeros(gap // 8, np.uint64), words])
                streams[-1] = Stream(name, joined, last.base)
                continue
        streams.append(Stream(name, words, iova))
    return document(streams)


def of_graph(graph: Graph) -> list[Stream]:
    """The commands that a graph is compiled to, with the addresses that they have on the model."""
    from rknpu_userspace.device import open_device

    with open_device("model") as device, device.compile(graph) as program:
        return parse(json.dumps(of_program(program)).encode(), "graph")


def commands(words: Words, known: npt.NDArray[np.uint16]) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of words that are commands, the rest is data. ``known`` are the offsets of registers."""
    target = words >> np.uint64(48)
    offset = (words & np.uint64(0xFFFF)).astype(np.uint16)
    targets = [block.target for block in Block]
    valid = np.isin(target, targets) & np.isin(offset, known)
    enable = (target == TARGET_ENABLE) & (offset == OPERATION_ENABLE)
    valid |= enable | (target == TARGET_SYNC)
    places = np.flatnonzero(valid)
    if not len(places):
        yield 0, len(words)
        return
    strange = np.concatenate([[0], np.cumsum(~valid & (words != 0))])
    cuts = np.flatnonzero(strange[places[1:]] - strange[places[:-1] + 1] >= _DATA_WORDS) + 1
    groups = np.split(places, cuts)
    real = [group for group in groups if len(group) >= _LEAST_COMMANDS or enable[group].any()] or groups
    for index, group in enumerate(real):
        first, last = int(group[0]), int(group[-1]) + 1
        if index == 0 and strange[first] < _DATA_WORDS:
            first = 0
        if index == len(real) - 1 and strange[len(words)] - strange[last] < _DATA_WORDS:
            last = len(words)
        yield first, last
