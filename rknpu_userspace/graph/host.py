# SPDX-License-Identifier: MIT
"""Operations on the host: what TFLite's reference kernels compute, in numpy.

Integer kernels equal tensorflow/lite/kernels/internal/reference bit for bit, but for softmax and the mean, which are
formed in float64 and rounded once. float16 is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.ops import pool, reference
from rknpu_userspace.quant import INT8_MAX, INT8_MIN

from . import fixed, resize
from .ir import Node, Tensor

Array = npt.NDArray[Any]
_ADD_SHIFT = 20


def _finish(values: Array, node: Node) -> Array:
    """Clamp to the range of the result."""
    result: Array = np.clip(values, *node.clamp).astype(np.int8)
    return result


def _float(values: Array, node: Node) -> Array:
    wide = np.maximum(values, 0) if node.attributes.get("activation") == "relu" else values
    with np.errstate(over="ignore"):
        return wide.astype(node.output.dtype)


def _weighted(node: Node, x: Array) -> Array:
    """conv2d and linear."""
    source, out = node.inputs[0], node.output
    weights, bias = node.constants["weights"], node.constants.get("bias")
    options = {
        name: node.attributes[name] for name in ("stride", "padding", "dilation", "groups") if name in node.attributes
    }
    if node.kind == "linear":
        x, weights = x.reshape(1, source.pixels, 1, source.channels), weights[:, None, None, :]
    if source.dtype != "int8":
        sums = reference.conv2d(x, weights, bias, out_dtype="float64", **options)
        return _float(sums, node).reshape(out.shape)
    zero_points = {"x_zero_point": source.zero_point, "w_zero_point": node.attributes.get("w_zero_point", 0)}
    sums = reference.conv2d(x, weights, bias, out_dtype="int32", **zero_points, **options)
    fractions, shifts = _multipliers(node)
    return _finish(fixed.multiply(sums, fractions, shifts) + out.zero_point, node).reshape(out.shape)


def _multipliers(node: Node) -> tuple[Array, Array]:
    """Fractions and shifts per output channel.

    The product of input and weight scale is a float32 in linear layers and uint8 convolutions (kernel_util.cc).
    """
    x_scale, w_scale = np.float32(node.inputs[0].scale), node.constants["w_scale"]
    in_float32 = node.kind == "linear" or node.attributes.get("float_product", 0)
    products = x_scale * w_scale if in_float32 else float(x_scale) * w_scale.astype(np.float64)
    pairs = [fixed.quantize_multiplier(float(value) / float(np.float32(node.output.scale))) for value in products]
    return np.array([pair[0] for pair in pairs], np.int64), np.array([pair[1] for pair in pairs], np.int64)


def _operands(node: Node, inputs: tuple[Array, ...]) -> tuple[Array, Array, float, int]:
    """Both operands, scale and zero point of the second."""
    if "b" in node.constants:
        return inputs[0], node.constants["b"], node.attributes["b_scale"], node.attributes["b_zero_point"]
    return inputs[0], inputs[1], node.inputs[1].scale, node.inputs[1].zero_point


def _binary(node: Node, *inputs: Array) -> Array:
    """add, sub, mul, max, min."""
    a, b, b_scale, b_zero_point = _operands(node, inputs)
    source, out = node.inputs[0], node.output
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[node.kind]
    if source.dtype != "int8":
        return _float(function(a.astype(np.float32), b.astype(np.float32)), node)
    x, y = a.astype(np.int64) - source.zero_point, b.astype(np.int64) - b_zero_point
    a32, b32, out32 = np.float32(source.scale), np.float32(b_scale), np.float32(out.scale)
    if node.kind == "mul":
        return _finish(
            fixed.multiply(x * y, *fixed.quantize_multiplier(float(a32 * b32 / out32))) + out.zero_point, node
        )
    twice = 2 * float(max(a32, b32))
    left = fixed.multiply(x << _ADD_SHIFT, *fixed.quantize_multiplier(float(a32) / twice))
    right = fixed.multiply(y << _ADD_SHIFT, *fixed.quantize_multiplier(float(b32) / twice))
    factor = fixed.quantize_multiplier(twice / ((1 << _ADD_SHIFT) * float(out32)))
    return _finish(fixed.multiply(function(left, right), *factor) + out.zero_point, node)


def _average_pool(node: Node, x: Array) -> Array:
    """Average of the elements that exist: rounded half away from zero in the type that the caller stores."""
    count = _window_sums(node, np.ones_like(x[:1, :, :, :1], np.float64))
    source, out = node.inputs[0], node.output
    if source.dtype != "int8":
        return _float(_window_sums(node, x.astype(np.float64)) / count, node)
    if node.attributes.get("mean"):
        total = _window_sums(node, x.astype(np.float64)) - count * source.zero_point
        return _finish(_mean(node, total.astype(np.int64), int(count.flat[0])) + out.zero_point, node)
    lift = 128 * node.attributes.get("from_uint8", 0)
    total = _window_sums(node, x.astype(np.float64) + lift)
    mean = np.sign(total) * np.floor((np.abs(total) + count // 2) / count) - lift
    if (source.scale, source.zero_point) == (out.scale, out.zero_point):
        return _finish(mean, node)
    exact = (total / count - lift - source.zero_point) * (source.scale / out.scale) + out.zero_point
    return _finish(np.floor(exact + 0.5), node)


def _mean(node: Node, total: Array, count: int) -> Array:
    """Division and rescaling in one multiplier (reference_ops::QuantizedMeanOrSum)."""
    real = float(np.float32(node.inputs[0].scale)) / float(np.float32(node.output.scale))
    fraction, shift = fixed.quantize_multiplier(real)
    more = min(count.bit_length() - 1, 32, 31 + shift)
    return fixed.multiply(total, (fraction << more) // count, shift - more)


def _window_sums(node: Node, x: Array) -> Array:
    """Sum over every window, padding being zero."""
    top, left, bottom, right = node.attributes["padding"]
    (height, width), (step_y, step_x) = node.attributes["kernel"], node.attributes["stride"]
    wide = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (height, width), axis=(1, 2))[:, ::step_y, ::step_x]
    result: Array = windows.sum(axis=(-2, -1))
    return result


def _max_pool(node: Node, x: Array) -> Array:
    attributes = node.attributes
    values = pool.reference("max", x, attributes["kernel"], attributes["stride"], attributes["padding"])
    return _finish(values, node) if x.dtype == np.int8 else _float(values, node)


def _requantize(node: Node, x: Array) -> Array:
    source, out = node.inputs[0], node.output
    if source.dtype != "int8":
        return _float(x, node)
    factor = fixed.quantize_multiplier(float(np.float32(source.scale)) / float(np.float32(out.scale)))
    return _finish(fixed.multiply(x.astype(np.int64) - source.zero_point, *factor) + out.zero_point, node)


def _real(tensor: Tensor, values: Array) -> Array:
    """What stored values stand for, in float64."""
    wide = values.astype(np.float64)
    return (wide - tensor.zero_point) * tensor.scale if tensor.dtype == "int8" else wide


def _stored(tensor: Tensor, values: Array) -> Array:
    """Real values as the tensor stores them."""
    if tensor.dtype != "int8":
        return values.astype(tensor.dtype)
    units = values / tensor.scale
    rounded = np.copysign(np.floor(np.abs(units) + 0.5), units) + tensor.zero_point
    result: Array = np.clip(rounded, INT8_MIN, INT8_MAX).astype(np.int8)
    return result


def _softmax(node: Node, x: Array) -> Array:
    """int8: powers from a table, sums one after the other, all in float32 (optimized_ops::Softmax)."""
    source, out, beta = node.inputs[0], node.output, node.attributes["beta"]
    if source.dtype != "int8" or out.dtype != "int8":
        wide = _real(source, x) * beta
        powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
        return _stored(out, powers / powers.sum(axis=-1, keepdims=True))
    table = np.exp((np.arange(256) * -(np.float32(source.scale) * np.float32(beta))).astype(np.float32))
    powers = table[x.max(axis=-1, keepdims=True).astype(np.int16) - x]
    total = np.cumsum(powers, axis=-1, dtype=np.float32)[..., -1:] * np.float32(out.scale)
    units = powers * (np.float32(1) / total) + np.float32(0.5)
    result: Array = np.clip(np.floor(units) + out.zero_point, INT8_MIN, INT8_MAX).astype(np.int8)
    return result


def _pad(node: Node, x: Array) -> Array:
    result: Array = np.pad(
        x, node.attributes["edges"], constant_values=node.inputs[0].zero_point if x.dtype == np.int8 else 0
    )
    return result


def _concat(node: Node, *inputs: Array) -> Array:
    out = node.output
    parts = []
    for tensor, values in zip(node.inputs, inputs, strict=True):
        if tensor.dtype == "int8" and (tensor.scale, tensor.zero_point) != (out.scale, out.zero_point):
            values = _stored(out, _real(tensor, values))
        parts.append(values)
    whole = np.concatenate(parts, axis=node.attributes["axis"])
    return _finish(whole, node) if out.dtype == "int8" else _float(whole, node)


def _slice(node: Node, x: Array) -> Array:
    return np.ascontiguousarray(x[tuple(slice(*cut) for cut in node.attributes["cuts"])])


def _resize(node: Node, x: Array) -> Array:
    method = {"nearest": resize.nearest, "bilinear": resize.bilinear}[node.attributes["method"]]
    corners, half = bool(node.attributes["align_corners"]), bool(node.attributes["half_pixel"])
    return method(x, node.output.shape[1], node.output.shape[2], corners, half)


def _transposed(node: Node, x: Array) -> Array:
    """conv_transpose2d."""
    source, out = node.inputs[0], node.output
    options = {name: node.attributes[name] for name in ("stride", "padding", "output_padding")}
    weights, bias = node.constants["weights"], node.constants.get("bias")
    if source.dtype != "int8":
        return _float(reference.conv_transpose2d(x, weights, bias, out_dtype="float64", **options), node)
    options |= {"x_zero_point": source.zero_point, "w_zero_point": node.attributes.get("w_zero_point", 0)}
    sums = reference.conv_transpose2d(x, weights, bias, out_dtype="int32", **options)
    return _finish(fixed.multiply(sums, *_multipliers(node)) + out.zero_point, node)


KERNELS: dict[str, Callable[..., Array]] = {
    "conv2d": _weighted,
    "conv_transpose2d": _transposed,
    "linear": _weighted,
    "add": _binary,
    "sub": _binary,
    "mul": _binary,
    "max": _binary,
    "min": _binary,
    "average_pool": _average_pool,
    "max_pool": _max_pool,
    "requantize": _requantize,
    "softmax": _softmax,
    "slice": _slice,
    "resize": _resize,
    "pad": _pad,
    "concat": _concat,
    "table": lambda node, x: node.constants["values"][x.astype(np.int16) + 128],
    "reshape": lambda node, x: x.reshape(node.output.shape),
    "transpose": lambda node, x: np.ascontiguousarray(x.transpose(node.attributes["order"])),
    "dequantize": lambda node, x: _real(node.inputs[0], x).astype(np.float32),
    "quantize": lambda node, x: _stored(node.output, x.astype(np.float64)),
}


def run(node: Node, *inputs: Array) -> Array:
    """Compute a node; KeyError for a kind that does not exist."""
    result: Array = KERNELS[node.kind](node, *inputs)
    return result
