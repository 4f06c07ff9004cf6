# SPDX-License-Identifier: MIT
"""Activations as sequences of flying tasks over whole tensors, each with one or two operands.

Value 0 is the input, value n the result of the n-th move. The reciprocal square root is Newton's iteration
y' = (1.5 - x y y / 2) y from the bf16 bit pattern 0x5f37 - (i >> 1), as in Rockchip's RMSNorm stream.
"""

from __future__ import annotations

from dataclasses import dataclass

from rknpu_userspace.task import ALU_ADD, ALU_DIV, PASS, Elementwise, Stage

from .flying import Flow
from .tables import EXP_UNIT, TABLES, bits_of, float_bits

_MAGIC = 0x5F37
_TINY = 2.0**-24
_ITERATIONS = 2


@dataclass(frozen=True)
class Move:
    """A task over whole tensors: numbers of the values that are main data and operand."""

    flow: Flow
    main: int = 0
    operand: int | None = None


def stage(
    form: str,
    *,
    add: float | None = None,
    times: float | None = None,
    relu: bool = False,
    bound: float | None = None,
    prelu: bool = False,
    from_memory: bool = False,
) -> Stage:
    """Settings of BS or BN in a float task. BS adds before it multiplies, BN multiplies before it adds.

    With ``from_memory`` the multipliers are a vector over the channels, whatever ``times`` is.
    """
    return Stage(
        bypass=0,
        alu_bypass=int(add is None),
        alu_algorithm=0 if add is None else ALU_ADD,
        alu_operand=0 if add is None else float_bits(add),
        mul_bypass=int(times is None),
        mul_from_memory=int(from_memory),
        mul_operand=0 if times is None or from_memory else bits_of(times, form),
        prelu=int(prelu),
        relu_bypass=int(not relu),
        relux=int(bound is not None),
        relux_bound=0 if bound is None else float_bits(bound),
    )


def ew_of(form: str, *, times: bool = False, algorithm: int = ALU_ADD, data_mode: int = 1) -> Elementwise:
    """EW with an operand from memory in a task of 16-bit floats: a product, or an algorithm of its ALU."""
    return Elementwise(
        bypass=0,
        op_bypass=0,
        multiply=int(times),
        from_memory=1,
        convert_bypass=int(times),
        algorithm=0 if times else algorithm,
        operand_size=0 if form == "bfloat16" else 2,
        data_mode=data_mode,
    )


def product(form: str, out: str | None = None, *, bs: Stage = PASS, bn: Stage = PASS) -> Flow:
    """Two tensors multiplied, the first one through the stages."""
    return Flow(form, out or form, bs=bs, bn=bn, ew=ew_of(form, times=True), operand="pixel")


def moves_of(kind: str, form: str, slope: float, bound: float) -> list[Move]:
    """The moves of an activation of float16 or bfloat16 tensors."""
    simple = {
        "relu": stage(form, relu=True),
        "relu6": stage(form, relu=True, bound=6.0),
        "relux": stage(form, relu=True, bound=bound),
        "leaky_relu": stage(form, times=slope, prelu=True),
    }
    if kind in simple:
        return [Move(Flow(form, form, bs=simple[kind]))]
    if kind in ("hardsigmoid", "hardswish"):
        bs, bn = stage(form, add=3.0, relu=True, bound=6.0), stage(form, times=1 / 6)
        if kind == "hardsigmoid":
            return [Move(Flow(form, form, bs=bs, bn=bn))]
        return [Move(product(form, bs=bs, bn=bn), 0, 0)]
    if kind == "sigmoid":
        return [Move(TABLES["sigmoid"].flow(form))]
    if kind == "tanh":
        doubled = Flow("float16", form, bs=stage("float16", add=-0.5, times=2.0))
        return [Move(TABLES["double_sigmoid"].flow(form, "float16")), Move(doubled, 1)]
    if kind in ("silu", "gelu"):
        table = TABLES["sigmoid" if kind == "silu" else "normal"]
        return [Move(table.flow(form)), Move(product(form), 0, 1)]
    if kind == "softplus":
        total = Flow(form, form, bs=stage(form, relu=True), ew=ew_of(form), operand="pixel")
        return [Move(TABLES["softplus_part"].flow(form)), Move(total, 0, 1)]
    if kind == "exp":
        square = product("float16", bs=stage("float16", times=float(EXP_UNIT)))
        fourth = product("float16", form, bs=stage("float16", times=float(EXP_UNIT**2)))
        return [Move(TABLES["exp_part"].flow(form, "float16")), Move(square, 1, 1), Move(fourth, 2, 2)]
    if kind == "reciprocal":
        return [Move(_reciprocal(), 0, 0)]
    if kind == "rsqrt":
        return _rsqrt(form)
    if kind == "sqrt":
        moves = _rsqrt(form)
        return [*moves, Move(product(form), 0, len(moves))]
    raise ValueError(f"{kind!r} is not an activation")


def _reciprocal() -> Flow:
    """1 / x: BS turns what comes in into 0, BN adds 1, EW divides by x. The divider gives float16 (AB FDIV)."""
    form = "float16"
    bs, bn = stage(form, relu=True, bound=0.0), stage(form, add=1.0)
    return Flow(form, form, bs=bs, bn=bn, ew=ew_of(form, algorithm=ALU_DIV), operand="pixel", cvt_narrow=0)


def _rsqrt(form: str) -> list[Move]:
    """1 / sqrt(x) for x > 0; large but finite at 0, so that 0 times it is 0."""
    guess = Flow(form, "bfloat16", bs=stage(form, relu=True), bn=stage(form, add=_TINY))
    halve = Stage(bypass=0, mul_bypass=0, mul_operand=0xFFFF, mul_shift=1, mul_shift_negative=1)
    magic = Stage(bypass=0, alu_bypass=0, alu_algorithm=ALU_ADD, alu_operand=_MAGIC)
    moves = [Move(guess), Move(Flow("int16", "int16", bs=halve, bn=magic), 1)]
    if form != "bfloat16":
        moves.append(Move(Flow("bfloat16", form), len(moves)))
    for _ in range(_ITERATIONS):
        y = len(moves)
        moves.append(Move(product(form, bs=stage(form, times=-0.5)), 0, y))
        moves.append(Move(product(form), y + 1, y))
        moves.append(Move(product(form, bs=stage(form, add=1.5)), y + 2, y))
    return moves
