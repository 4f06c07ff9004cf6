# SPDX-License-Identifier: MIT
"""Weight decompression, the mode in which all 16 lanes are active (DCOMP_CTRL 1, REGNUM 0x55555555).

The stream decodes to the int8 weight image in the order that an uncompressed fetch would read. Sixteen lanes, lane l of
parity l / 8 and quad l % 8, take turns: in every half (512 bytes) of a 1024-byte tile, for group 0..7, lane l owns the
four bytes at ``half * 512 + (group * 2 + parity) * 32 + quad * 4``. A lane is a 16-byte header (byte 1 the modal value,
bytes 4-7 a permutation of the widths 0..7, one nibble each, low nibble first) and, from bit 128, a stream of symbols,
least significant bit first: a prefix code of the width's place in the permutation, a sign, and for a width w > 1 the
w - 1 low bits of the magnitude. The byte is modal + magnitude, or modal - magnitude - 1 when the sign is set.
Evidence: HM src/rk_npu_dcomp.cpp (runs on boards, lossless).
"""

from __future__ import annotations

import numpy as np

from .context import Context
from .errors import IllegalConfig, Unsupported, require
from .memory import Bytes
from .precision import INT8, Array
from .registers import Fields

LANES = 16
TILE_BYTES = 1024
HEADER_BYTES = 16
LANE_ALIGN = 64
MODE_NORMAL = 1
REGNUM_NORMAL = 0x55555555
PREFIXES = ((0b00, 2), (0b01, 2), (0b111, 3), (0b011, 3), (0b110, 3), (0b1010, 4), (0b10010, 5), (0b00010, 5))
"""Pattern (least significant bit first) and length of each place in the permutation."""
_LONGEST = 5


def _prefix_tables() -> tuple[Array, Array]:
    """Place and length of the prefix at the bottom of any five bits; length 0 where no prefix fits."""
    place, length = np.zeros(1 << _LONGEST, np.int64), np.zeros(1 << _LONGEST, np.int64)
    for index, (pattern, bits) in enumerate(PREFIXES):
        for window in range(1 << _LONGEST):
            if window & ((1 << bits) - 1) == pattern:
                place[window], length[window] = index, bits
    return place, length


_PLACE, _LENGTH = _prefix_tables()


def read_weights(ctx: Context, f: Fields, code: int, size: int) -> Bytes:
    """Fetch and decompress ``size`` bytes of weights; ``size`` must be whole tiles."""
    if f["DECOMP_CONTROL"] != MODE_NORMAL or f["DCOMP_REGNUM"] != REGNUM_NORMAL or f["WT_DEC_BYPASS"]:
        raise Unsupported(f"CNA DECOMP_CONTROL {f['DECOMP_CONTROL']} with DCOMP_REGNUM {f['DCOMP_REGNUM']:#x}")
    if code != INT8:
        raise Unsupported("compressed weights of a format other than int8")
    require(size % TILE_BYTES == 0, f"compressed weights of {size} bytes are not whole tiles of 32 x 32")
    base = f["DECOMPRESS_ADDR0"]
    require(base % LANE_ALIGN == 0, f"compressed weights at {base:#x} are not {LANE_ALIGN}-byte aligned")
    lanes = []
    for lane in range(LANES):
        count = (f[f"DCOMP_AMOUNT{lane}"] + 1) * 16
        require(count <= 2 * size + LANE_ALIGN, f"DCOMP_AMOUNT{lane}: {count} bytes for {size} bytes of weights")
        lanes.append(ctx.port.read(base, count))
        ctx.meter.dma("weight", count)
        base = (base + -(-count // LANE_ALIGN) * LANE_ALIGN) % (1 << 32)
    return assemble([decode_lane(lane, size // LANES) for lane in lanes])


def assemble(lanes: list[Array]) -> Bytes:
    """Interleave the lanes' bytes into the weight image."""
    stacked = np.stack(lanes).reshape(2, 8, -1, 2, 8, 4)  # parity, quad, tile, half, group, byte
    return np.ascontiguousarray(stacked.transpose(2, 3, 4, 0, 1, 5)).reshape(-1).view(np.uint8)


def decode_lane(raw: Bytes, count: int) -> Array:
    """``count`` bytes of one lane. The symbols' starts are found by jumping through a table of symbol lengths."""
    require(len(raw) > HEADER_BYTES, "a lane of compressed weights is shorter than its header")
    modal = int(raw[1])
    widths = np.array([int(raw[4 + i // 2]) >> (4 * (i % 2)) & 0xF for i in range(8)], np.int64)
    require(sorted(widths.tolist()) == list(range(8)), "a lane of compressed weights has no permutation of the widths")
    bits = np.unpackbits(raw[HEADER_BYTES:], bitorder="little").astype(np.int64)
    padded = np.concatenate([bits, np.zeros(16, np.int64)])
    window = sum(padded[shift : shift + len(bits)] << shift for shift in range(_LONGEST))
    window = np.asarray(window, np.int64)
    step = _LENGTH[window] + 1 + np.maximum(widths[_PLACE[window]] - 1, 0)
    starts = _symbol_starts(step, _LENGTH[window], count)
    prefix = _LENGTH[window[starts]]
    width = widths[_PLACE[window[starts]]]
    after = starts + prefix
    sign = padded[after]
    low = np.zeros(count, np.int64)
    for bit in range(6):
        low |= np.where(bit < width - 1, padded[np.minimum(after + 1 + bit, len(padded) - 1)], 0) << bit
    magnitude = np.where(width > 0, (np.int64(1) << np.maximum(width - 1, 0)) | low, 0)
    residual = np.where(sign == 1, -magnitude - 1, magnitude)
    return ((modal + residual) & 0xFF).astype(np.uint8)


def _symbol_starts(step: Array, prefix: Array, count: int) -> Array:
    """Bit positions of the first ``count`` symbols, by doubling: log2(count) rounds of whole-array jumps."""
    end = len(step)
    jump = np.where(prefix > 0, np.arange(end) + step, end)
    jump = np.append(np.minimum(jump, end), end)
    starts = np.zeros(1, np.int64)
    while len(starts) < count:
        starts = np.concatenate([starts, jump[starts]])
        jump = jump[jump]
    starts = starts[:count]
    if starts[-1] >= end or prefix[starts[-1]] == 0:
        raise IllegalConfig("compressed weights end before the last byte or hold no legal code")
    return starts
