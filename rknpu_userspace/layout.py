# SPDX-License-Identifier: MIT
"""Memory layouts: numpy arrays to what the NPU reads, and back. Pure numpy, at most one copy each way.

* Cube (NC1HWC2): surfaces of 16-byte atoms, ``byte(c, y, x) = c // C2 * H * W * 16 + (y * W + x) * 16 + c % C2 * n``
  with n bytes per element.
* Lines: all atoms of an image line together, ``byte(y, c, x) = ((y * A + c // C2) * W + x) * 16 + c % C2 * n`` with A
  atoms per pixel.
* Rows: a row-major matrix whose lines are padded to whole atoms; a matmul reads and writes it without re-tiling.
* Weights: tiles ``[k1][c1][kh][kw][k2][c2]``, c2 fastest; the last groups of kernels and channels are cut short.

Targets are byte views of buffers. What padding holds is never written here: buffers start out zeroed.
Evidence: Mesa src/gallium/drivers/rocket/rkt_coefs.c and rkt_ml.c, RN encodings/tile-layouts.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .formats import ATOM, InputFormat, OutputFormat

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
_OPAQUE = np.dtype(np.complex128)
"""The 16-byte type that numpy moves fastest; no arithmetic is done with it."""


def align(value: int, to: int) -> int:
    """Round up to a multiple."""
    return -(-value // to) * to


def ceil_div(value: int, by: int) -> int:
    """Divide and round up."""
    return -(-value // by)


def cube_bytes(pixels: int, channels: int, form: InputFormat | OutputFormat) -> int:
    """Size of a cube of ``pixels`` by ``channels``, channels rounded up to whole atoms."""
    return ceil_div(channels, form.atom_channels) * pixels * ATOM


def rows_bytes(rows: int, row_bytes: int) -> int:
    """Size of a row-major matrix with lines of ``row_bytes``."""
    return rows * row_bytes


def _opaque(pixels: Array) -> Array:
    """[...][channel] as [...][atom]; the caller has checked that pixels are whole atoms."""
    return pixels.view(_OPAQUE)


def _is_opaque(pixels: Array, per_atom: int) -> bool:
    return pixels.shape[1] % per_atom == 0 and pixels.strides[1] == pixels.itemsize and pixels.shape[1] > 0


def pack_cube(target: Bytes, pixels: Array) -> None:
    """Write ``pixels`` [pixel][channel] as a cube; channels beyond the last keep what the target holds."""
    count, channels = pixels.shape
    per_atom = ATOM // pixels.itemsize
    surfaces = ceil_div(channels, per_atom)
    if _is_opaque(pixels, per_atom):
        target[: surfaces * count * ATOM].view(_OPAQUE).reshape(surfaces, count)[...] = _opaque(pixels).T
        return
    cube = target[: surfaces * count * ATOM].view(pixels.dtype).reshape(surfaces, count, per_atom)
    whole = channels // per_atom
    if whole:
        cube[:whole] = pixels[:, : whole * per_atom].reshape(count, whole, per_atom).transpose(1, 0, 2)
    if channels % per_atom:
        cube[whole, :, : channels % per_atom] = pixels[:, whole * per_atom :]


def pack_lines(target: Bytes, image: Array) -> None:
    """Write ``image`` [y][x][channel] line by line, ``[y][atom][x]``; padding channels keep what the target holds.

    Twice as fast as a cube: what a line is turned into lies within one line, in the first-level cache.
    """
    height, width, channels = image.shape
    per_atom = ATOM // image.itemsize
    surfaces = ceil_div(channels, per_atom)
    data = target[: height * surfaces * width * ATOM]
    if channels % per_atom == 0 and image.strides[2] == image.itemsize:
        data.view(_OPAQUE).reshape(height, surfaces, width)[...] = _opaque(image).transpose(0, 2, 1)
        return
    lines = data.view(image.dtype).reshape(height, surfaces, width, per_atom)
    whole = channels // per_atom
    if whole:
        parts = image[..., : whole * per_atom].reshape(height, width, whole, per_atom)
        lines[:, :whole] = parts.transpose(0, 2, 1, 3)
    if channels % per_atom:
        lines[:, whole, :, : channels % per_atom] = image[..., whole * per_atom :]


def unpack_cube(source: Bytes, out: Array) -> None:
    """Read a cube into ``out`` [pixel][channel]; padding channels are dropped."""
    count, channels = out.shape
    per_atom = ATOM // out.itemsize
    surfaces = ceil_div(channels, per_atom)
    if _is_opaque(out, per_atom):
        _opaque(out)[...] = source[: surfaces * count * ATOM].view(_OPAQUE).reshape(surfaces, count).T
        return
    cube = source[: surfaces * count * ATOM].view(out.dtype).reshape(surfaces, count, per_atom)
    whole = channels // per_atom
    for surface in range(whole):
        out[:, surface * per_atom : (surface + 1) * per_atom] = cube[surface]
    if channels % per_atom:
        out[:, whole * per_atom :] = cube[whole, :, : channels % per_atom]


def pack_rows(target: Bytes, matrix: Array, row_bytes: int) -> None:
    """Write a matrix row by row, ``row_bytes`` apart; the rest of each line keeps what the target holds."""
    rows, columns = matrix.shape
    lines = target[: rows * row_bytes].view(matrix.dtype).reshape(rows, row_bytes // matrix.itemsize)
    lines[:, :columns] = matrix


def unpack_rows(source: Bytes, out: Array, row_bytes: int) -> None:
    """Read the first columns of each line of a row-major matrix into ``out``."""
    rows, columns = out.shape
    out[...] = source[: rows * row_bytes].view(out.dtype).reshape(rows, row_bytes // out.itemsize)[:, :columns]


def weight_kernels(kernels: int) -> int:
    """Kernels that are stored: an even number (Mesa rkt_task.c)."""
    return align(kernels, 2)


def weight_channels(channels: int, form: InputFormat) -> int:
    """Input channels that are stored: whole atoms."""
    return align(channels, form.atom_channels)


def pack_weights(weights: Array, form: InputFormat, fill: int = 0, stored_channels: int = 0) -> Bytes:
    """Tiles of a direct convolution from ``weights`` [kernel][kh][kw][channel] in the format's dtype.

    ``stored_channels`` is the number of channels in memory, by default whole atoms. ``fill`` is what padding channels
    and kernels hold: the weights' zero point, so that the zero-point term of the accumulator cancels there. The tiles
    of a kernel group are contiguous, so a range of whole groups is a slice of the result.
    """
    kernels, height, width, channels = weights.shape
    stored, padded = weight_kernels(kernels), stored_channels or weight_channels(channels, form)
    per_kernel = height * width * padded
    out = np.empty(stored * per_kernel, weights.dtype)
    if (stored, padded) != (kernels, channels):
        out.fill(fill)
    whole = kernels // form.kernel_group
    split = whole * form.kernel_group
    if whole:
        groups = weights[:split].reshape(whole, form.kernel_group, height, width, channels)
        _tile_groups(out[: split * per_kernel].reshape(whole, -1), groups, form, form.kernel_group, padded)
    if split < kernels:
        _tile_groups(out[split * per_kernel :].reshape(1, -1), weights[None, split:], form, stored - split, padded)
    return _packed(out, form)


def _tile_groups(out: Array, groups: Array, form: InputFormat, stored: int, padded: int) -> None:
    """Kernel groups of one size: ``groups`` [k1][k2][kh][kw][c] to ``out`` [k1][tiles], larger where padded."""
    count, kernels, height, width, channels = groups.shape
    size = form.channel_group
    cut = padded // size * size
    taken = stored * height * width * cut
    tiles = out[:, :taken].reshape(count, cut // size, height, width, stored, size)
    full = min(channels, cut) // size
    if full:
        parts = groups[..., : full * size].reshape(count, kernels, height, width, full, size)
        tiles[:, :full, :, :, :kernels] = parts.transpose(0, 4, 2, 3, 1, 5)
    rest = channels - full * size
    if rest:
        tail = tiles[:, full] if full * size < cut else out[:, taken:].reshape(count, height, width, stored, -1)
        tail[:, :, :, :kernels, :rest] = groups[..., full * size :].transpose(0, 2, 3, 1, 4)


def pack_depthwise(weights: Array, form: InputFormat, fill: int = 0) -> Bytes:
    """Weights of a depthwise convolution: [kh][kw][channel] to ``[c1][kh][kw][c2]``; channels padded to whole atoms."""
    height, width, channels = weights.shape
    padded = weight_channels(channels, form)
    wide = np.full((height * width, padded), fill, weights.dtype)
    wide[:, :channels] = weights.reshape(height * width, channels)
    out = np.empty(height * width * padded, weights.dtype)
    for start in range(0, padded, form.depthwise_group):
        stop = min(start + form.depthwise_group, padded)
        out[start * height * width : stop * height * width].reshape(height * width, -1)[...] = wide[:, start:stop]
    return _packed(out, form)


def _packed(elements: Array, form: InputFormat) -> Bytes:
    return pack_nibbles(elements) if form.bits == 4 else elements.view(np.uint8)


def pack_nibbles(elements: Array) -> Bytes:
    """int4 in int8 to two per byte, even element in the low nibble, along the last axis.

    Which nibble comes first does not show in a product as long as both operands agree.
    """
    pairs = elements[..., 0::2] & 0xF
    pairs |= elements[..., 1::2] << 4
    return pairs.view(np.uint8)


def to_bfloat16(values: Array) -> npt.NDArray[np.uint16]:
    """float32 to bf16 bit patterns, nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, bits >> np.uint32(16) | np.uint32(0x40), rounded).astype(np.uint16)


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """bf16 bit patterns (uint16) to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def operand_bytes(count: int, itemsize: int) -> int:
    """Size of a per-channel operand stream, padded to whole atoms."""
    return align(count * itemsize, ATOM)
