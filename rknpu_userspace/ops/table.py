# SPDX-License-Identifier: MIT
"""What every operation takes, what it gives, how exact it is, and why other formats are not possible.

One table: documentation prints it (``python3 -m rknpu_userspace ops``), tests and the self-test go through its cells.
Distances of floats: ``ulp`` counts units in the last place of the sum of the terms' absolutes, in the result's format;
``a + r |y|`` is the greatest distance from the real function. "Exact" is bit for bit the documented numpy reference.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from .activation import BOUNDS, STAGED, Bound
from .rows import ROW_BOUNDS

DTYPES = ("int4", "int8", "int16", "int32", "float16", "bfloat16", "tfloat32")
MEAN_ULP = 2.0


@dataclass(frozen=True)
class Cell:
    """An operation in a format: what comes out and how exact it is."""

    out: str
    exact: str = "exact"


@dataclass(frozen=True)
class Row:
    """An operation. ``why``: reasons for formats that it does not take, "" stands for all others."""

    name: str
    call: str
    cells: dict[str, Cell]
    why: dict[str, str]
    evidence: str = field(default="")


_INT32 = "the array takes no int32; int16 is the widest integer"
_SUM32, _SUM16 = "16 ulp (float32), 1 ulp (float16)", "16 ulp (float32), 1 ulp (bfloat16)"
_CONV = {
    "int8": Cell("int32, int8, float32"),
    "float16": Cell("float32, float16", _SUM32),
    "bfloat16": Cell("float32, bfloat16", _SUM16),
}
_CONV_WHY = {
    "int32": _INT32,
    "": "shown on boards for matmul only; int8, float16 and bfloat16 are convolved",
}
_TF = "the array's input format only, the DPU has none; bfloat16 has its range"
_NO_INT4 = "a format of the array's operands only; int8 is the narrowest here"


def _same(name: str, exact: str = "exact") -> Cell:
    return Cell(name, exact)


def _bound(bound: Bound) -> str:
    if not bound.absolute and not bound.relative:
        return "exact"
    parts = [f"{bound.absolute:g}"] if bound.absolute else []
    parts += [f"{bound.relative:.2g} \\|y\\|"] if bound.relative else []
    low, high = (bound.low > -65504, bound.high < 65504)
    domain = f", {bound.low:g} <= x" if low and not high else f", {bound.low:g} <= x <= {bound.high:g}" if low else ""
    domain = f", x <= {bound.high:g}" if high and not low else domain
    return " + ".join(parts) + domain


def _activations() -> tuple[Row, ...]:
    why = {
        "tfloat32": _TF,
        "int4": _NO_INT4,
        "bfloat16": "the divider gives float16 (AB FDIV); float16 is possible",
        "": "an int8 table has an entry for every input, wider integers do not fit it",
    }
    rows = []
    for kind, bounds in BOUNDS.items():
        cells = {"int8": _same("int8"), **{form: _same(form, _bound(bound)) for form, bound in bounds.items()}}
        evidence = "RN dpu-lut, RU; int8 tables: TRM only"
        if kind in STAGED:
            evidence = "TRM, RN (stages)"
        elif kind in ("hardsigmoid", "hardswish"):
            evidence = "TRM, RN (stages); int8 tables: TRM only"
        elif kind in ("rsqrt", "sqrt"):
            evidence = "Rockchip's RMSNorm stream; int8 tables: TRM only"
        elif kind == "reciprocal":
            evidence = "AB FDIV; int8 tables: TRM only"
        rows.append(Row(kind, f'activate("{kind}", x)', cells, why, evidence))
    return tuple(rows)


_EW_WHY = {
    "int4": _NO_INT4,
    "tfloat32": _TF,
    "int16": "no client has shown an int16 operand; int32 and int8 are possible",
}
_EW_16 = {"float16": _same("float16", "1 rounding"), "bfloat16": _same("bfloat16", "1 rounding")}
_EW_ALU = {"int8": _same("int8"), "int32": _same("int32"), **_EW_16}
_EXACT = {name: _same(name) for name in ("int8", "int32", "float16", "bfloat16")}
_MUL_WHY = {**_EW_WHY, "int32": "the second factor has 16 bits; int8 is possible"}
_DIV_WHY = {"": "the divider gives float16 (AB FDIV); float16 is possible"}
_POOL_WHY = {"int4": _NO_INT4, "tfloat32": _TF, "int16": _EW_WHY["int16"]}
_AVG = {
    "int8": _same("int8"),
    "float16": _same("float16", "2 ulp"),
    "bfloat16": _same("bfloat16", "2 ulp"),
}
_AVG_WHY = {"int32": _INT32, "": _CONV_WHY[""]}
_ROW_WHY = {"": "needs a float's range between its steps; dequantise to float16 on the host"}
_REDUCE = {
    "float16": Cell("float32", "16 ulp"),
    "bfloat16": Cell("float32", "16 ulp"),
    "tfloat32": Cell("float32", "16 ulp"),
}
_REDUCE_WHY = {"int32": _INT32, "int16": "split it with matmul, which is exact for int16"}

TABLE: tuple[Row, ...] = (
    Row(
        "matmul",
        "matmul(a, b), linear(x, w)",
        {
            "int4": Cell("int32"),
            "int8": Cell("int32, int8, float32"),
            "int16": Cell("int64"),
            "float16": Cell("float32, float16", _SUM32),
            "bfloat16": Cell("float32, bfloat16", _SUM16),
            "tfloat32": Cell("float32", "16 ulp"),
        },
        {"int32": _INT32},
        "RU, HM",
    ),
    Row("conv2d", "conv2d(x, w)", _CONV, _CONV_WHY, "Mesa, RU, AB"),
    Row("depthwise", "conv2d(x, w, groups=C)", _CONV, _CONV_WHY, "Mesa, RU teflon-dw-capture"),
    Row("conv1d", "conv1d(x, w)", _CONV, _CONV_WHY, "RU"),
    Row("conv_transpose2d", "conv_transpose2d(x, w)", _CONV, _CONV_WHY, "RN conv-transpose"),
    Row(
        "image",
        'conv2d(x, w, image="uint8")',
        {"int8": Cell("int32, int8, float32"), "float16": Cell("float32, float16", _SUM32)},
        {"": "packed images of int8, uint8 and float16 are known"},
        "Mesa (1 channel), Rockchip's compiler (3); others: TRM only",
    ),
    Row("add", "add(a, b)", _EW_ALU, _EW_WHY, "HM, RU, Mesa (int8)"),
    Row("sub", "subtract(a, b)", _EW_ALU, _EW_WHY, "HM, RU"),
    Row("mul", "multiply(a, b)", {"int8": _same("int8"), **_EW_16}, _MUL_WHY, "HM, Rockchip's RMSNorm stream"),
    Row("max", "maximum(a, b)", _EXACT, _EW_WHY, "RU, bit exact"),
    Row("min", "minimum(a, b)", _EXACT, _EW_WHY, "RU, bit exact"),
    Row("div", "divide(a, b)", {"float16": _same("float16", "1 rounding")}, _DIV_WHY, "AB FDIV"),
    *_activations(),
    Row(
        "prelu",
        "prelu(x, slopes)",
        {name: _same(name) for name in ("int8", "float16", "bfloat16")},
        {"int4": _NO_INT4, "tfloat32": _TF, "": "the multiplier of negative values is shown with int8 and floats"},
        "TRM; multipliers per channel: Rockchip's streams",
    ),
    Row("max_pool2d", "max_pool2d(x, k)", _EXACT, _POOL_WHY, "RU (element-wise maximum)"),
    Row("min_pool2d", "min_pool2d(x, k)", _EXACT, _POOL_WHY, "RU (element-wise minimum)"),
    Row("avg_pool2d", "avg_pool2d(x, k)", _AVG, _AVG_WHY, "as depthwise"),
    Row("global_avg_pool2d", "global_avg_pool2d(x)", _AVG, _AVG_WHY, "as matmul"),
    *(
        Row(
            kind,
            f"{kind}(x)",
            {form: _same(form, _bound(bound)) for form, bound in bounds.items()},
            _ROW_WHY,
            "Rockchip's RMSNorm stream, RU",
        )
        for kind, bounds in ROW_BOUNDS.items()
    ),
    Row("sum", "sum(x, axis)", {"int4": Cell("int32"), "int8": Cell("int32"), **_REDUCE}, _REDUCE_WHY, "as matmul"),
    Row(
        "mean",
        "mean(x, axis)",
        {"int8": Cell("int8"), **_REDUCE},
        {**_REDUCE_WHY, "int4": "no int4 or int8 result of int4 sums; sum() gives int32"},
        "as matmul",
    ),
)
BY_NAME = {row.name: row for row in TABLE}


def reason(row: Row, dtype: str) -> str:
    """Why a row does not take a format."""
    return row.why.get(dtype) or row.why[""]


def markdown() -> str:
    """The table of what is possible, and the list of what is not."""
    lines = ["| operation | call | " + " | ".join(DTYPES) + " | evidence |", "|---" * (len(DTYPES) + 3) + "|"]
    for row in TABLE:
        cells = [_text(row.cells.get(dtype)) for dtype in DTYPES]
        lines.append(f"| {row.name} | `{row.call}` | " + " | ".join(cells) + f" | {row.evidence} |")
    lines += ["", "What is not possible, and what is instead:", ""]
    reasons: dict[tuple[str, ...], list[str]] = {}
    for row in TABLE:
        missing: dict[str, list[str]] = {}
        for dtype in DTYPES:
            if dtype not in row.cells:
                missing.setdefault(reason(row, dtype), []).append(dtype)
        for text, dtypes in missing.items():
            reasons.setdefault((text, ", ".join(dtypes)), []).append(row.name)
    for (text, names), rows in reasons.items():
        lines.append(f"* {', '.join(rows)}: {names}: {text}.")
    return "\n".join(lines)


def _text(cell: Cell | None) -> str:
    return "" if cell is None else f"{cell.out}: {cell.exact}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    if list(sys.argv[1:] if arguments is None else arguments):
        print("usage: python3 -m rknpu_userspace ops", file=sys.stderr)
        return 2
    print(markdown())
    return 0
