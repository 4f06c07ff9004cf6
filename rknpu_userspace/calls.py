# SPDX-License-Identifier: MIT
"""The operations of a device as calls: numpy arrays in, a numpy array out.

Every call compiles, runs and drops a program; for repeated use compile the class that its docstring names. Common to
all: tensors are [N, H, W, C] (or [..., C]), ``cores`` is the number of cores that the work is split over, bfloat16
tensors are uint16 bit patterns. What the hardware can not do is a ValueError or TypeError that names the limit and what
would be legal; a job that fails is a JobError. ``python3 -m rknpu_userspace ops`` prints what each takes, how exact it
is, and the evidence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .ops.checks import plain

if TYPE_CHECKING:
    from .ops.activation import UnaryScales
    from .ops.elementwise import Scales

Array = npt.NDArray[Any]
Ints = int | Sequence[int]


def form_of(array: Array, form: str | None = None) -> str:
    """The format that an array's dtype stands for: uint16 is bfloat16."""
    if form is not None:
        return form
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


class Calls(ABC):
    """Operations of whatever can compile them."""

    @abstractmethod
    def compile(self, operation: Any, *, cores: int | None = None, core: int | None = None) -> Any:
        """A program that can be run many times."""

    def _run(self, operation: Any, *arrays: Array, cores: int | None) -> Array:
        with self.compile(operation, cores=cores) as program:
            result: Array = program(*arrays)
        return result

    def matmul(
        self,
        a: Array,
        b: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        format: str | None = None,
        activation: str | None = None,
        cores: int | None = None,
        **options: Any,
    ) -> Array:
        """``a`` [..., M, K] @ ``b`` [K, N] or [..., K, N]; see ``ops.matmul.Matmul`` for the options.

        With ``transpose_a``, ``a`` is [..., K, M]; with ``transpose_b``, ``b`` is [..., N, K]. Leading dimensions of
        ``a`` are folded into M when ``b`` is a matrix, else the matrices are multiplied pair by pair. Matrices of int16
        give an exact int64 result and take no other options. ``activation``: see ``activate``.
        """
        from .ops import arguments
        from .ops.matmul import Matmul

        if np.asarray(a).dtype == np.int16 and np.asarray(b).dtype == np.int16:
            return self._matmul_int16(plain("a", a), plain("b", b), transpose_a, transpose_b, cores, options)
        options, after = fused(activation, options)
        left = arguments.operand("a", a, tuple(range(2 if transpose_a else 1, 33)), format)
        right = arguments.operand("b", b, tuple(range(2, 33)), format)
        arguments.same_format("a", "b", left, right)
        if transpose_a:
            left = left.swapaxes(-1, -2)
        inner = right.shape[-1] if transpose_b else right.shape[-2]
        if left.shape[-1] != inner:
            raise ValueError(f"the inner sizes differ: a has K = {left.shape[-1]}, b has K = {inner}")
        if right.ndim > 2:
            result = self._batched(left, right, cores, {**options, "transpose_b": transpose_b, "format": format})
        else:
            rows = left.reshape(-1, inner)
            operation = Matmul(right, rows.shape[0], transpose_b=transpose_b, format=format, **options)
            product = self._run(operation, rows, cores=cores)
            result = product.reshape(*left.shape[:-1], product.shape[-1])
        return self.activate(after, result, cores=cores) if after else result

    def _matmul_int16(
        self, a: Array, b: Array, transpose_a: bool, transpose_b: bool, cores: int | None, options: dict[str, Any]
    ) -> Array:
        from .ops.int16 import Int16Matmul

        if options:
            raise TypeError(f"an int16 matmul takes no {', '.join(options)}")
        left = a.swapaxes(-1, -2) if transpose_a else a
        if left.ndim < 1 or left.size == 0:
            raise ValueError(f"a is empty or a scalar (shape {a.shape})")
        rows = left.reshape(-1, left.shape[-1])
        operation = Int16Matmul(b, rows.shape[0], transpose_b=transpose_b)
        if operation.right.shape[0] != rows.shape[1]:
            raise ValueError(f"the inner sizes differ: a has K = {rows.shape[1]}, b has K = {operation.right.shape[0]}")
        result = self._run(operation, rows, cores=cores)
        return result.reshape(*left.shape[:-1], result.shape[-1])

    def _batched(self, a: Array, b: Array, cores: int | None, options: dict[str, Any]) -> Array:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left = np.broadcast_to(a, batch + a.shape[-2:]).reshape(-1, *a.shape[-2:])
        right = np.broadcast_to(b, batch + b.shape[-2:]).reshape(-1, *b.shape[-2:])
        results = [self.matmul(x, y, cores=cores, **options) for x, y in zip(left, right, strict=True)]
        return np.stack(results).reshape(*batch, *results[0].shape)

    def linear(
        self, x: Array, weights: Array, bias: Array | None = None, *, cores: int | None = None, **options: Any
    ) -> Array:
        """``x`` [..., C] times ``weights`` [OC, C] transposed, plus ``bias`` [OC]; options: see ``matmul``."""
        return self.matmul(x, weights, transpose_b=True, bias=bias, cores=cores, **options)

    def conv2d(
        self,
        x: Array,
        weights: Array,
        bias: Array | None = None,
        *,
        activation: str | None = None,
        cores: int | None = None,
        **options: Any,
    ) -> Array:
        """``x`` [N, H, W, C] or [H, W, C] with ``weights`` [OC, KH, KW, C / groups]; options: ``ops.conv2d.Conv2d``.

        A uint8 image of 1 to 4 channels is read as such (``image="uint8"``). ``activation``: see ``activate``.
        """
        from .ops.conv2d import Conv2d

        if np.asarray(x).dtype == np.uint8 and np.asarray(weights).dtype == np.int8:
            options.setdefault("image", "uint8")
        return self._convolve(Conv2d, x, weights, activation, cores, {**options, "bias": bias})

    def conv1d(
        self,
        x: Array,
        weights: Array,
        bias: Array | None = None,
        *,
        stride: int = 1,
        padding: Ints = 0,
        dilation: int = 1,
        cores: int | None = None,
        **options: Any,
    ) -> Array:
        """``x`` [N, L, C] or [L, C] with ``weights`` [OC, K, C / groups] to [N, OL, OC] or [OL, OC].

        ``padding``: a number or (before, after). Other options and limits: ``conv2d``, with lines of one pixel height.
        """
        signal, kernels = plain("x", x), plain("weights", weights)
        if signal.ndim not in (2, 3):
            raise ValueError(f"x has {signal.ndim} dimensions, expected 2 or 3")
        if kernels.ndim != 3:
            raise ValueError(f"weights have {kernels.ndim} dimensions, expected 3")
        if isinstance(padding, (int, np.integer)):
            before = after = int(padding)
        else:
            before, after = (int(number) for number in padding)
        result = self.conv2d(
            signal[..., None, :, :] if signal.ndim == 3 else signal[None],
            kernels[:, None],
            bias,
            stride=(1, stride),
            padding=(0, before, 0, after),
            dilation=(1, dilation),
            cores=cores,
            **options,
        )
        return result[:, 0] if signal.ndim == 3 else result[0]

    def conv_transpose2d(
        self,
        x: Array,
        weights: Array,
        bias: Array | None = None,
        *,
        activation: str | None = None,
        cores: int | None = None,
        **options: Any,
    ) -> Array:
        """``x`` [N, H, W, C] or [H, W, C], ``weights`` [OC, KH, KW, C / groups]: see ``ops.transposed``.

        Options: stride (up to 31), padding (cut off the edges), output_padding, and those of ``ops.conv2d.Conv2d``.
        """
        from .ops.transposed import ConvTranspose2d

        return self._convolve(ConvTranspose2d, x, weights, activation, cores, {**options, "bias": bias})

    def _convolve(
        self,
        operation: Callable[..., Any],
        x: Array,
        weights: Array,
        activation: str | None,
        cores: int | None,
        options: dict[str, Any],
    ) -> Array:
        """Compile for the images, run, and put an activation of its own behind."""
        from .ops import arguments

        form = options.get("format")
        kernels = arguments.operand("weights", weights, (4,), form)
        if options.get("image") == "uint8":
            images = plain("x", x)
            if images.ndim not in (3, 4) or images.dtype != np.uint8 or images.size == 0:
                raise TypeError(f"x must be uint8 [N, H, W, C] or [H, W, C], not {images.dtype} of {images.shape}")
        else:
            images = arguments.operand("x", x, (3, 4), form)
            arguments.same_format("x", "weights", images, kernels)
        batch = images if images.ndim == 4 else images[None]
        options, after = fused(activation, options)
        result = self._run(operation(weights, batch.shape, **options), batch, cores=cores)
        if after:
            result = self.activate(after, result, cores=cores)
        return result if images.ndim == 4 else result[0]

    def elementwise(
        self,
        kind: str,
        a: Array,
        b: Array,
        *,
        relu: bool = False,
        scales: Scales | None = None,
        cores: int | None = None,
    ) -> Array:
        """ "add", "sub", "mul", "max", "min" or "div" of two arrays that broadcast; see ``ops.elementwise``.

        float16, int32, int8 (with ``scales``, which may differ: the residual add of quantised networks) or bfloat16. A
        vector over the last axis is fed as it is, other shapes are expanded first.
        """
        from .ops.elementwise import Binary

        left, right = plain("a", a), plain("b", b)
        if left.dtype != right.dtype:
            raise TypeError(f"a is {left.dtype} and b is {right.dtype}: the NPU combines operands of one format only")
        form = form_of(left)
        if right.ndim != 1 or left.ndim < 2 or right.shape[0] != left.shape[-1] or kind == "sub":
            left, right = np.broadcast_arrays(left, right)
        operation = Binary(kind, form, left.shape, right.shape, relu=relu, scales=scales)
        return self._run(operation, left, right, cores=cores)

    def add(self, a: Array, b: Array, **options: Any) -> Array:
        """Sum of two arrays that broadcast; see ``elementwise``."""
        return self.elementwise("add", a, b, **options)

    def subtract(self, a: Array, b: Array, **options: Any) -> Array:
        """Difference of two arrays that broadcast; see ``elementwise``."""
        return self.elementwise("sub", a, b, **options)

    def multiply(self, a: Array, b: Array, **options: Any) -> Array:
        """Product, element by element, of two arrays that broadcast; see ``elementwise``."""
        return self.elementwise("mul", a, b, **options)

    def divide(self, a: Array, b: Array, **options: Any) -> Array:
        """Quotient of two float16 arrays that broadcast; see ``elementwise``."""
        return self.elementwise("div", a, b, **options)

    def maximum(self, a: Array, b: Array, **options: Any) -> Array:
        """Greater of two arrays that broadcast, element by element; see ``elementwise``."""
        return self.elementwise("max", a, b, **options)

    def minimum(self, a: Array, b: Array, **options: Any) -> Array:
        """Lesser of two arrays that broadcast, element by element; see ``elementwise``."""
        return self.elementwise("min", a, b, **options)

    def activate(
        self,
        kind: str,
        x: Array,
        *,
        slope: float = 0.01,
        bound: float = 6.0,
        scales: UnaryScales | None = None,
        cores: int | None = None,
    ) -> Array:
        """One of ``ops.activation.KINDS`` over a tensor of any shape: float16, bfloat16, or int8 with ``scales``.

        ``slope`` is leaky_relu's, ``bound`` relux's. Accuracy and domains: ``ops.activation.BOUNDS``.
        """
        from .ops.activation import Activation

        array = plain("x", x)
        options: dict[str, Any] = {"slope": slope, "bound": bound, "scales": scales}
        return self._run(Activation(kind, array.shape, form=form_of(array), **options), array, cores=cores)

    def prelu(self, x: Array, slopes: Array, *, scales: UnaryScales | None = None, cores: int | None = None) -> Array:
        """``x`` [..., C], negative values times ``slopes`` [C]: float16, bfloat16, or int8 with ``scales``."""
        from .ops.activation import PRelu

        array = plain("x", x)
        return self._run(PRelu(array.shape, slopes, form=form_of(array), scales=scales), array, cores=cores)

    def max_pool2d(self, x: Array, kernel: Ints, *, cores: int | None = None, **options: Any) -> Array:
        """Maximum over windows of ``x`` [N, H, W, C] or [H, W, C]; stride, padding: see ``ops.pool.Pool2d``."""
        return self._pool("max", x, kernel, cores, options)

    def min_pool2d(self, x: Array, kernel: Ints, *, cores: int | None = None, **options: Any) -> Array:
        """Minimum over windows of ``x`` [N, H, W, C] or [H, W, C]; stride, padding: see ``ops.pool.Pool2d``."""
        return self._pool("min", x, kernel, cores, options)

    def avg_pool2d(self, x: Array, kernel: Ints, *, cores: int | None = None, **options: Any) -> Array:
        """Mean over windows of ``x`` [N, H, W, C] or [H, W, C]: see ``ops.pool.average_pool``.

        Padding counts as zeros; with ``count_padding=False`` (``average_pool_inside``) it does not.
        """
        return self._pool("avg", x, kernel, cores, options)

    def _pool(self, kind: str, x: Array, kernel: Ints, cores: int | None, options: dict[str, Any]) -> Array:
        from .ops.pool import Pool2d, average_pool, average_pool_inside

        array = plain("x", x)
        if array.ndim not in (3, 4):
            raise ValueError(f"x has {array.ndim} dimensions, expected 3 or 4")
        batch = array if array.ndim == 4 else array[None]
        form = form_of(array)
        operation: Any
        if kind == "avg":
            pool = average_pool if options.pop("count_padding", True) else average_pool_inside
            operation = pool(form, batch.shape, kernel, **options)
        else:
            operation = Pool2d(kind, form, batch.shape, kernel, **options)
        result = self._run(operation, batch, cores=cores)
        return result if array.ndim == 4 else result[0]

    def global_avg_pool2d(self, x: Array, *, cores: int | None = None, **options: Any) -> Array:
        """Mean over all pixels of ``x`` [N, H, W, C] to [N, 1, 1, C] in the format of ``x``, of any size.

        int8 takes ``scale`` (input scale / output scale), ``x_zero_point`` and ``out_zero_point``.
        """
        array = plain("x", x)
        if array.ndim != 4:
            raise ValueError(f"x has {array.ndim} dimensions, expected 4")
        form = form_of(array)
        if form not in ("int8", "float16", "bfloat16"):
            raise TypeError(f"average pooling takes int8, float16, bfloat16, not {form}")
        mean = self.mean(array, (1, 2), keepdims=True, cores=cores, **options)
        if form == "bfloat16":
            from .layout import to_bfloat16

            return to_bfloat16(mean)
        return mean.astype(array.dtype, copy=False)

    def softmax(self, x: Array, *, cores: int | None = None) -> Array:
        """exp(x) / sum over the last axis (up to 8192): float16 or bfloat16, finite; see ``ops.rows``."""
        array = plain("x", x)
        return self._rows("softmax", array, cores, {})

    def rms_norm(
        self, x: Array, gamma: Array | None = None, *, epsilon: float = 1e-5, cores: int | None = None
    ) -> Array:
        """x gamma / sqrt(mean(x^2) + epsilon) over the last axis (up to 8192): float16 or bfloat16."""
        return self._rows("rms_norm", plain("x", x), cores, {"gamma": gamma, "epsilon": epsilon})

    def layer_norm(
        self,
        x: Array,
        gamma: Array | None = None,
        beta: Array | None = None,
        *,
        epsilon: float = 1e-5,
        cores: int | None = None,
    ) -> Array:
        """(x - mean) gamma / sqrt(variance + epsilon) + beta over the last axis (up to 8192): float16 or bfloat16."""
        return self._rows("layer_norm", plain("x", x), cores, {"gamma": gamma, "beta": beta, "epsilon": epsilon})

    def _rows(self, kind: str, x: Array, cores: int | None, options: dict[str, Any]) -> Array:
        from .ops.rows import RowOperation

        return self._run(RowOperation(kind, x.shape, form=form_of(x), **options), x, cores=cores)

    def sum(
        self,
        x: Array,
        axis: Ints | None = None,
        *,
        keepdims: bool = False,
        format: str | None = None,
        x_zero_point: int = 0,
        cores: int | None = None,
    ) -> Array:
        """Sum over axes (None: all): int8 and int4 to int32, exact; float16, bfloat16, tfloat32 to float32."""
        return self._reduce("sum", x, axis, format, cores, {"keepdims": keepdims, "x_zero_point": x_zero_point})

    def mean(
        self,
        x: Array,
        axis: Ints | None = None,
        *,
        format: str | None = None,
        cores: int | None = None,
        **options: Any,
    ) -> Array:
        """Mean over axes (None: all): floats to float32, int8 to int8 with ``scale`` and zero points.

        Options: keepdims and those of ``ops.reduce.Reduce``.
        """
        return self._reduce("mean", x, axis, format, cores, options)

    def _reduce(
        self, kind: str, x: Array, axis: Ints | None, format: str | None, cores: int | None, options: dict[str, Any]
    ) -> Array:
        from .ops import arguments
        from .ops.reduce import Reduce

        array = plain("x", x)
        form = form_of(array, format)
        if array.dtype == np.uint16:
            format = "bfloat16"
        stored = arguments.operand("x", array, tuple(range(1, 33)), format)
        return self._run(Reduce(kind, stored.shape, axis, form=form, **options), stored, cores=cores)


def fused(activation: str | None, options: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Options of a convolution with an activation that the DPU does behind the sums; or the name of one that follows.

    relu, relu6 (floats) and leaky_relu (``slope``, default 0.01) go into the convolution; others become a task of their
    own over its float16, bfloat16 or int8 result. Of int8, only relu can be named here: the rest needs scales.
    """
    if activation is None:
        return options, None
    integer = options.get("scale") is not None
    if activation == "relu":
        return {**options, "relu": True}, None
    if activation == "leaky_relu":
        return {"slope": 0.01, **options}, None
    if integer:
        raise ValueError(
            f"{activation} of an int8 result needs its scales: call activate(), or give bound= in accumulator units"
        )
    if activation == "relu6":
        return {**options, "relu": True, "bound": 6.0}, None
    return options, activation
