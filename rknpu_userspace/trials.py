# SPDX-License-Identifier: MIT
"""A trial of an operation in a format: random operands, the call, and the verdict of the documented numpy reference.

There is one for every cell of ``ops.table``; the property tests draw their sizes, the self-test has fixed ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .calls import Calls
from .formats import SUM_ULP
from .layout import from_bfloat16, to_bfloat16
from .ops import activation, elementwise, pool, reduce, reference, rows
from .ops.activation import Bound, UnaryScales
from .ops.elementwise import Scales
from .ops.table import MEAN_ULP
from .quant import derive

Array = npt.NDArray[Any]
Rng = np.random.Generator


@dataclass(frozen=True)
class Sizes:
    """Sizes of a trial, all positive: images, lines, columns, input and output channels, kernel (odd), stride."""

    n: int = 1
    h: int = 6
    w: int = 7
    c: int = 17
    oc: int = 9
    k: int = 3
    s: int = 1

    @property
    def taps(self) -> int:
        """The kernel, no larger than the image."""
        return min(self.k, self.h, self.w)


@dataclass(frozen=True)
class Verdict:
    """Whether a result is right; ``distance``: wrong elements of integers, units of the stated bound of floats."""

    ok: bool
    exact: bool
    distance: float


@dataclass(frozen=True)
class Trial:
    """What to call, and how to judge the result."""

    call: Callable[[Calls], Array]
    judge: Callable[[Array], Verdict]


def equal(expected: Array) -> Callable[[Array], Verdict]:
    """Every element is the same, shape and dtype too."""

    def judge(result: Array) -> Verdict:
        if result.shape != expected.shape or result.dtype != expected.dtype:
            return Verdict(False, False, float("inf"))
        wrong = int(np.count_nonzero(~((result == expected) | ((result != result) & (expected != expected)))))
        return Verdict(wrong == 0, wrong == 0, float(wrong))

    return judge


def near(real: Array, magnitude: Array, limit: float) -> Callable[[Array], Verdict]:
    """Within ``limit`` units in the last place of ``magnitude``; uint16 results are bfloat16."""

    def judge(result: Array) -> Verdict:
        if result.shape != real.shape:
            return Verdict(False, False, float("inf"))
        if result.dtype == np.uint16:
            unit = np.spacing(np.maximum(np.abs(real), magnitude).astype(np.float32)).astype(np.float64) * 2.0**16
            distance = float((np.abs(from_bfloat16(result) - real) / unit).max())
            exact = np.array_equal(result, to_bfloat16(real.astype(np.float32)))
        else:
            distance = reference.ulp_distance_to(result, real, magnitude)
            exact = np.array_equal(result, real.astype(result.dtype))
        return Verdict(distance <= limit, exact, distance)

    return judge


def bounded(real: Array, bound: Bound) -> Callable[[Array], Verdict]:
    """|result - real| <= absolute + relative |real|."""

    def judge(result: Array) -> Verdict:
        if result.shape != real.shape:
            return Verdict(False, False, float("inf"))
        values = (from_bfloat16(result) if result.dtype == np.uint16 else result).astype(np.float64)
        allowed = bound.absolute + bound.relative * np.abs(real)
        error = np.abs(values - real)
        distance = float((error / np.where(allowed > 0, allowed, 1.0)).max())
        return Verdict(bool((error <= allowed).all()), not error.any(), distance)

    return judge


def tensor(dtype: str, shape: tuple[int, ...], rng: Rng) -> Array:
    """Random numbers of a format, integers of its whole range."""
    if dtype in ("float16", "bfloat16", "tfloat32"):
        values = rng.normal(size=shape).astype(np.float32)
        return {"float16": values.astype(np.float16), "bfloat16": to_bfloat16(values)}.get(dtype, values)
    bits = int(dtype.removeprefix("int"))
    stored = np.int8 if bits == 4 else np.dtype(dtype)
    return rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape).astype(stored)


def real_of(dtype: str, values: Array) -> Array:
    """What a tensor stands for, as the NPU reads it."""
    if dtype == "bfloat16":
        return from_bfloat16(values)
    if dtype == "tfloat32":
        return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return values


def _sums(dtype: str, out: str, compute: Callable[..., Array], left: Array, right: Array) -> Callable[[Array], Verdict]:
    """The judge of products that are added up: ``compute`` is a reference."""
    if not dtype.startswith(("float", "bfloat", "tfloat")):
        return equal(compute(left, right))
    a, b = real_of(dtype, left), real_of(dtype, right)
    magnitude = compute(np.abs(a), np.abs(b), out_dtype="float64")
    return near(compute(a, b, out_dtype="float64"), magnitude, SUM_ULP[out])


def _format(dtype: str) -> dict[str, Any]:
    return {} if dtype in ("int8", "float16") else {"format": dtype}


def _out(dtype: str, rng: Rng) -> str:
    """The format of float results: float32, or the narrow one."""
    narrow = {"float16": "float16", "bfloat16": "bfloat16"}.get(dtype, "float32")
    return narrow if rng.integers(2) else "float32"


def _matmul(dtype: str, size: Sizes, rng: Rng) -> Trial:
    inner = size.c * size.w
    a, b = tensor(dtype, (size.n, size.h, inner), rng), tensor(dtype, (inner, size.oc), rng)
    if dtype == "int16":
        return Trial(lambda npu: npu.matmul(a, b), equal(a.astype(np.int64) @ b.astype(np.int64)))
    out = _out(dtype, rng)
    options = {**_format(dtype), **({"out_dtype": out} if dtype in ("float16", "bfloat16") else {})}
    return Trial(lambda npu: npu.matmul(a, b, **options), _sums(dtype, out, reference.matmul, a, b))


def _convolve(
    dtype: str, size: Sizes, rng: Rng, call: str, compute: Callable[..., Array], groups: int = 1, **options: Any
) -> Trial:
    """A convolution: int8 with zero points to int32 or int8, floats to float32 or narrow."""
    outputs = size.c if groups > 1 else size.oc
    x = tensor(dtype, (size.n, size.h, size.w, size.c), rng)
    w = tensor(dtype, (outputs, size.taps, size.taps, size.c // groups), rng)
    options |= {"stride": (size.s, size.s), "groups": groups}
    if dtype != "int8":
        out = _out(dtype, rng)
        given = {**options, **_format(dtype), "out_dtype": out}
        judge = _sums(dtype, out, lambda a, b, **more: compute(a, b, **options, **more), x, w)
        return Trial(lambda npu: getattr(npu, call)(x, w, **given), judge)
    bias = rng.integers(-3000, 3000, outputs)
    options |= {"x_zero_point": int(rng.integers(-9, 9)), "w_zero_point": int(rng.integers(-9, 9))}
    if rng.integers(2):
        return Trial(lambda npu: getattr(npu, call)(x, w, bias, **options), equal(compute(x, w, bias, **options)))
    scale = 0.3 / np.sqrt(w[0].size) / 64
    expected = compute(x, w, bias, requant=derive(scale, 3), out_dtype="int8", **options)
    return Trial(lambda npu: getattr(npu, call)(x, w, bias, scale=scale, out_zero_point=3, **options), equal(expected))


def _conv2d(dtype: str, size: Sizes, rng: Rng) -> Trial:
    return _convolve(dtype, size, rng, "conv2d", reference.conv2d, padding=(size.taps // 2,) * 4)


def _depthwise(dtype: str, size: Sizes, rng: Rng) -> Trial:
    groups = {"groups": size.c} if size.c > 1 else {}
    return _convolve(dtype, size, rng, "conv2d", reference.conv2d, padding=(size.taps // 2,) * 4, **groups)


def _conv_transpose2d(dtype: str, size: Sizes, rng: Rng) -> Trial:
    return _convolve(dtype, size, rng, "conv_transpose2d", reference.conv_transpose2d, padding=(0, 0, 0, 0))


def _conv1d(dtype: str, size: Sizes, rng: Rng) -> Trial:
    length = size.h * size.w
    x, w = tensor(dtype, (size.n, length, size.c), rng), tensor(dtype, (size.oc, size.taps, size.c), rng)
    options = {"stride": size.s, "padding": (size.taps - 1, 0), **_format(dtype)}

    def compute(a: Array, b: Array, **more: Any) -> Array:
        padding = (0, size.taps - 1, 0, 0)
        return reference.conv2d(a[:, None], b[:, None], stride=(1, size.s), padding=padding, **more)[:, 0]

    return Trial(lambda npu: npu.conv1d(x, w, **options), _sums(dtype, "float32", compute, x, w))


def _image(dtype: str, size: Sizes, rng: Rng) -> Trial:
    channels = (size.c - 1) % 4 + 1
    shape = (size.n, size.h, size.w, channels)
    w = tensor(dtype, (size.oc, size.taps, size.taps, channels), rng)
    options: dict[str, Any] = {"stride": (size.s, size.s), "padding": (size.taps // 2,) * 4}
    if dtype == "float16":
        x = tensor(dtype, shape, rng)
        judge = _sums(dtype, "float32", lambda a, b, **more: reference.conv2d(a, b, **options, **more), x, w)
        return Trial(lambda npu: npu.conv2d(x, w, image="float16", **options), judge)
    x = rng.integers(0, 256, shape).astype(np.uint8)
    options["x_zero_point"] = 127
    return Trial(lambda npu: npu.conv2d(x, w, **options), equal(reference.conv2d(x, w, **options)))


def _binary(kind: str) -> Callable[[str, Sizes, Rng], Trial]:
    def make(dtype: str, size: Sizes, rng: Rng) -> Trial:
        shape = (size.n, size.h, size.w, size.c)
        other = (size.c,) if rng.integers(2) else shape
        a, b = tensor(dtype, shape, rng), tensor(dtype, other, rng)
        scales = Scales(0.02, 0.05, 0.04, 3, -5, 7) if dtype == "int8" else None
        expected = elementwise.reference(kind, a, np.broadcast_to(b, shape), scales)
        return Trial(lambda npu: npu.elementwise(kind, a, b, scales=scales), equal(expected))

    return make


def _activation(kind: str) -> Callable[[str, Sizes, Rng], Trial]:
    def make(dtype: str, size: Sizes, rng: Rng) -> Trial:
        shape = (size.n, size.h, size.w, size.c)
        if dtype == "int8":
            x = tensor(dtype, shape, rng)
            scales = UnaryScales(0.04, 0.03, 5, -9)
            expected = activation.reference_int8(kind, x, scales)
            return Trial(lambda npu: npu.activate(kind, x, scales=scales), equal(expected))
        bound = activation.BOUNDS[kind][dtype]
        values = rng.uniform(max(bound.low, -18.0), min(bound.high, 18.0), shape).astype(np.float32)
        x = to_bfloat16(values) if dtype == "bfloat16" else values.astype(np.float16)
        real = activation.reference(kind, x, slope=0.125, bound=2.5)
        return Trial(lambda npu: npu.activate(kind, x, slope=0.125, bound=2.5), bounded(real, bound))

    return make


def _prelu(dtype: str, size: Sizes, rng: Rng) -> Trial:
    x, slopes = tensor(dtype, (size.n, size.h, size.w, size.c), rng), rng.uniform(-0.5, 1.5, size.c)
    scales = UnaryScales(0.04, 0.05, 3, -4) if dtype == "int8" else None
    return Trial(lambda npu: npu.prelu(x, slopes, scales=scales), equal(activation.reference_prelu(x, slopes, scales)))


def _extreme(kind: str) -> Callable[[str, Sizes, Rng], Trial]:
    def make(dtype: str, size: Sizes, rng: Rng) -> Trial:
        x = tensor(dtype, (size.n, size.h, size.w, size.c), rng)
        kernel, stride, edge = size.taps, size.s + 1, size.taps // 2
        expected = pool.reference(kind, real_of(dtype, x), (kernel, kernel), (stride, stride), (edge, edge, edge, edge))
        if dtype == "bfloat16":
            expected = to_bfloat16(expected)
        options: dict[str, Any] = {"stride": stride, "padding": edge}
        return Trial(lambda npu: getattr(npu, f"{kind}_pool2d")(x, kernel, **options), equal(expected))

    return make


def _average(dtype: str, size: Sizes, rng: Rng) -> Trial:
    x = tensor(dtype, (size.n, size.h, size.w, size.c), rng)
    kernel, stride = size.taps, size.s if size.taps > 1 else 1
    ones = np.ones((size.c, kernel, kernel, 1))
    options: dict[str, Any] = {"stride": (stride, stride), "groups": size.c}
    if dtype == "int8":
        requant = derive(0.7 / kernel**2, -4)
        expected = reference.conv2d(x, ones, x_zero_point=6, requant=requant, out_dtype="int8", **options)
        given: dict[str, Any] = {"scale": 0.7, "x_zero_point": 6, "out_zero_point": -4}
        return Trial(lambda npu: npu.avg_pool2d(x, kernel, stride=stride, **given), equal(expected))
    real = reference.conv2d(real_of(dtype, x), ones, out_dtype="float64", **options) / kernel**2
    magnitude = reference.conv2d(np.abs(real_of(dtype, x)), ones, out_dtype="float64", **options) / kernel**2
    return Trial(lambda npu: npu.avg_pool2d(x, kernel, stride=stride), near(real, magnitude, MEAN_ULP))


def _global_average(dtype: str, size: Sizes, rng: Rng) -> Trial:
    x = tensor(dtype, (size.n, size.h * 7, size.w, size.c), rng)
    if dtype == "int8":
        return Trial(
            lambda npu: npu.global_avg_pool2d(x, scale=1.3, x_zero_point=4, out_zero_point=-2),
            equal(_int8_mean(x, (1, 2), 1.3, 4, -2)),
        )
    real = real_of(dtype, x).astype(np.float64)
    mean, magnitude = (np.mean(part, axis=(1, 2), keepdims=True) for part in (real, np.abs(real)))
    return Trial(lambda npu: npu.global_avg_pool2d(x), near(mean, magnitude, MEAN_ULP))


def _int8_mean(x: Array, axes: tuple[int, ...], scale: float, zero: int, out_zero: int) -> Array:
    count = int(np.prod([x.shape[axis] for axis in axes]))
    total = reduce.reference("sum", x, axes, keepdims=True, x_zero_point=zero)
    return reference.finish(total, None, False, derive(scale / count, out_zero), "int8")


def _row(kind: str) -> Callable[[str, Sizes, Rng], Trial]:
    def make(dtype: str, size: Sizes, rng: Rng) -> Trial:
        x = tensor(dtype, (size.n, size.h, size.c * size.w), rng)
        options: dict[str, Any] = {}
        if kind != "softmax":
            options["gamma"] = rng.integers(-64, 65, x.shape[-1]).astype(np.float32) / 64
        if kind == "layer_norm":
            options["beta"] = rng.integers(-64, 65, x.shape[-1]).astype(np.float32) / 32
        real = rows.reference(kind, x, **options)
        return Trial(lambda npu: getattr(npu, kind)(x, **options), bounded(real, rows.ROW_BOUNDS[kind][dtype]))

    return make


def _reduced(kind: str) -> Callable[[str, Sizes, Rng], Trial]:
    def make(dtype: str, size: Sizes, rng: Rng) -> Trial:
        x = tensor(dtype, (size.n, size.h, size.w, size.c), rng)
        axis = [(3,), (1, 2), (0, 3), (2,)][int(rng.integers(4))]
        options: dict[str, Any] = {} if dtype == "bfloat16" else _format(dtype)
        if dtype == "int8" and kind == "mean":
            given: dict[str, Any] = {"scale": 1.5, "x_zero_point": 3, "out_zero_point": 1, "keepdims": True}
            return Trial(lambda npu: npu.mean(x, axis, **given), equal(_int8_mean(x, axis, 1.5, 3, 1)))
        if dtype.startswith("int"):
            return Trial(
                lambda npu: npu.sum(x, axis, **options), equal(reduce.reference("sum", x, axis).astype(np.int32))
            )
        real = real_of(dtype, x)
        judge = near(reduce.reference(kind, real, axis), reduce.reference(kind, np.abs(real), axis), SUM_ULP["float32"])
        return Trial(lambda npu: getattr(npu, kind)(x, axis, **options), judge)

    return make


TRIALS: dict[str, Callable[[str, Sizes, Rng], Trial]] = {
    "matmul": _matmul,
    "conv2d": _conv2d,
    "depthwise": _depthwise,
    "conv1d": _conv1d,
    "conv_transpose2d": _conv_transpose2d,
    "image": _image,
    **{kind: _binary(kind) for kind in ("add", "sub", "mul", "max", "min", "div")},
    **{kind: _activation(kind) for kind in activation.KINDS},
    "prelu": _prelu,
    "max_pool2d": _extreme("max"),
    "min_pool2d": _extreme("min"),
    "avg_pool2d": _average,
    "global_avg_pool2d": _global_average,
    **{kind: _row(kind) for kind in rows.ROW_BOUNDS},
    "sum": _reduced("sum"),
    "mean": _reduced("mean"),
}
"""What makes a trial, by the name of the table's row."""


def trial(name: str, dtype: str, size: Sizes, rng: Rng) -> Trial:
    """A trial of one cell of the table."""
    return TRIALS[name](dtype, size, rng)
