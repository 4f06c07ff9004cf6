# SPDX-License-Identifier: MIT
"""Number formats as the NPU counts them: codes, sizes, and the tiles that weights come in.

Evidence: RK3588 TRM ch. 36 (precision fields); weight tiles: Mesa src/gallium/drivers/rocket/rkt_coefs.c for int8, the
open matmul clients (RU, HM) for the others; output combinations: those that clients have run on a board.
"""

from __future__ import annotations

from dataclasses import dataclass

ATOM = 16
"""Bytes of an atom: consecutive channels of one pixel, the unit of every layout and address."""


@dataclass(frozen=True)
class InputFormat:
    """A format of the MAC array's operands.

    ``code`` is that of CNA and CORE, ``dpu`` what the DPU calls the result of the array. A weight tile holds
    ``kernel_group`` kernels by ``channel_group`` channels; ``depthwise_group`` channels form a group in depthwise mode
    (0: not shown to work). ``dtype`` is the numpy dtype of a stored element (int4: one per byte before packing).
    """

    name: str
    dtype: str
    bits: int
    code: int
    dpu: int
    kernel_group: int
    channel_group: int
    depthwise_group: int
    macs_per_cycle: int

    @property
    def atom_channels(self) -> int:
        """Channels in an atom."""
        return ATOM * 8 // self.bits

    @property
    def is_float(self) -> bool:
        """Whether products are accumulated in floating point."""
        return self.name not in ("int4", "int8", "int16")

    def nbytes(self, elements: int) -> int:
        """Bytes of packed elements."""
        return elements * self.bits // 8


@dataclass(frozen=True)
class OutputFormat:
    """A format that the DPU writes."""

    name: str
    dtype: str
    nbytes: int
    code: int

    @property
    def atom_channels(self) -> int:
        """Channels in an atom."""
        return ATOM // self.nbytes


INPUTS: dict[str, InputFormat] = {
    form.name: form
    for form in (
        InputFormat("int4", "int8", 4, 6, 6, 64, 32, 0, 2048),
        InputFormat("int8", "int8", 8, 0, 0, 32, 32, 64, 1024),
        InputFormat("float16", "float16", 16, 2, 2, 16, 32, 32, 512),
        InputFormat("bfloat16", "uint16", 16, 3, 3, 16, 32, 32, 512),
        InputFormat("tfloat32", "float32", 32, 7, 5, 16, 16, 0, 256),
    )
}
OUTPUTS: dict[str, OutputFormat] = {
    form.name: form
    for form in (
        OutputFormat("int8", "int8", 1, 0),
        OutputFormat("int16", "int16", 2, 1),
        OutputFormat("float16", "float16", 2, 2),
        OutputFormat("bfloat16", "uint16", 2, 3),
        OutputFormat("int32", "int32", 4, 4),
        OutputFormat("float32", "float32", 4, 5),
    )
}
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "int4": ("int32",),
    "int8": ("int32", "int8", "float32"),
    "float16": ("float32", "float16"),
    "bfloat16": ("float32", "bfloat16"),
    "tfloat32": ("float32",),
}
"""Output formats of matmul and convolution by input format, the default first. All but int4's are what the NPU writes
and have been run on a board; int4 sums leave it as int16 and are widened by the host."""
PARTIAL: dict[str, str] = {
    "int4": "int16",
    "int8": "int32",
    "float16": "float32",
    "bfloat16": "float32",
    "tfloat32": "float32",
}
"""The format that partial sums are written in."""
SUM_ULP = {"float32": 16.0, "float16": 1.0, "bfloat16": 1.0}
"""Units in the last place that a sum of products may be off, by output format: public measurements put the accumulation
within about 1e-6 of float64 (RU); a 16-bit result adds its rounding."""
