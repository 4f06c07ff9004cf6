# SPDX-License-Identifier: MIT
"""A long read without its zeros: the board finds pieces of zeros itself and sends one letter for each.

The stream is ``Z`` for a piece of zeros, ``D`` and the piece otherwise, and at its end ``H`` with the SHA-256 of
everything before it in hexadecimal, or ``E`` where the board has no Python. A read error on the board ends the stream
early, which the receiver notices: it knows how many pieces there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from lab.firmware.medium import link_error

PIECE = 64 << 10
SHELL_PIECE = 1 << 20
"""Where a shell has to do it, a piece costs five processes."""

_PYTHON = (
    "import sys,hashlib;p,a,e,n=sys.argv[1],*map(int,sys.argv[2:]);f=open(p,'rb',0);f.seek(a);o=sys.stdout.buffer;"
    "z=bytes(n);h=hashlib.sha256();k=0\n"
    "while a<e:\n"
    " s=min(n,e-a);d=f.read(s)\n"
    " while len(d)<s:\n"
    "  r=f.read(s-len(d))\n"
    "  if not r: sys.exit('the medium ends early')\n"
    "  d+=r\n"
    " a+=s;k+=1;d=b'Z' if d==z[:s] else b'D'+d;h.update(d);o.write(d)\n"
    " if k%16==0: o.flush()\n"
    "o.write(b'H'+h.hexdigest().encode());o.flush()"
)
"""Compares bytes with bytes, which is memcmp; sends something at least once a MiB, as silence means a dead link."""

_SHELL = """
i=0; while [ $i -lt {count} ]; do
  get() {{ dd if={path} bs={block} skip=$(({skip} + i * {per})) count={per} 2>/dev/null; }}
  n=$((i + 1 < {count} ? {piece} : {last}))
  if [ "$(get | tr -d '\\000' | head -c 1 | wc -c)" -eq 0 ]; then printf Z
  else printf D; get | head -c $n; fi
  i=$((i + 1))
done
printf E
"""


def python_script(path: str, start: int, end: int) -> str:
    """The command for a board with Python; ``path`` as the shell takes it."""
    return f'python3 -B -c "{_PYTHON}" {path} {start} {end} {PIECE}'


def shell_script(path: str, start: int, end: int) -> str:
    """The script for a board with a POSIX shell, dd, tr, head and wc; ``start`` is a multiple of 512."""
    block = SHELL_PIECE
    while start % block:
        block >>= 1
    count = -(-(end - start) // SHELL_PIECE)
    return _SHELL.format(
        path=path,
        block=block,
        skip=start // block,
        per=SHELL_PIECE // block,
        count=count,
        piece=SHELL_PIECE,
        last=end - start - (count - 1) * SHELL_PIECE,
    )


class Unpacker:
    """The content of a packed stream, in order: ``take(n)`` gives the next bytes.

    ``source`` yields the stream as it comes; KitError (link) when it ends early, is garbled, or its digest is wrong.
    """

    def __init__(self, source: Iterator[bytes], length: int, piece: int, name: str) -> None:
        self._source, self._left, self._piece, self._name = source, length, piece, name
        self._raw, self._out = bytearray(), bytearray()
        self._hash = hashlib.sha256()

    def _need(self, count: int) -> bytes:
        while len(self._raw) < count:
            part = next(self._source, b"")
            if not part:
                raise link_error(f"{self._name}: the stream ended early: did the board restart?")
            self._raw += part
        data = bytes(self._raw[:count])
        del self._raw[:count]
        return data

    def take(self, length: int) -> bytes:
        """Exactly ``length`` bytes."""
        while len(self._out) < length and self._left:
            self._next()
        data = bytes(self._out[:length])
        del self._out[:length]
        return data

    def _next(self) -> None:
        step = min(self._piece, self._left)
        kind = self._need(1)
        if kind == b"Z":
            self._hash.update(kind)
            self._out += bytes(step)
        elif kind == b"D":
            data = self._need(step)
            self._hash.update(kind + data)
            self._out += data
        else:
            raise link_error(f"{self._name}: the stream is garbled ({kind!r})")
        self._left -= step
        if not self._left:
            self._end()

    def _end(self) -> None:
        kind = self._need(1)
        if kind == b"H" and self._need(64).decode(errors="replace") == self._hash.hexdigest():
            return
        if kind != b"E":
            raise link_error(f"{self._name}: the board's digest of the stream is another one", "try again")

    def close(self) -> None:
        """Give up the rest."""
        close = getattr(self._source, "close", None)
        if close:
            close()
