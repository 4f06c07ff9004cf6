# SPDX-License-Identifier: MIT
"""Ties and signs: how the integer converters round what lies half way, and what they take for a sign."""

from __future__ import annotations

from functools import partial

import numpy as np

from rknpu_userspace.task import Stage

from .rig import Array, Experiment, Finding, Rig, decide, poke, rounded, sample
from .tasks import Change, Convolution, Flying, Result, operand, unchanged

_MODES = ("half_even", "half_up", "half_away", "floor")
_TIES = np.arange(-16, 16)
"""Accumulators, odd ones of both signs among them: their halves are the ties."""


def accumulators(rig: Rig, sums: Array, out: str, change: Change = unchanged, **settings: int | Stage) -> Result:
    """A task whose accumulators are ``sums``, the same for all 32 kernels; the output [pixel]."""
    x = sums.reshape(1, -1, 1).astype(np.int8)
    conv = {name: int(value) for name, value in settings.items() if name == "clip_truncate"}  # type: ignore[arg-type]
    dpu: dict[str, object] = {name: value for name, value in settings.items() if name != "clip_truncate"}
    dpu.setdefault("zero_point_bypass", int(out != "int8"))
    task = Convolution("int8", out, conv=conv, dpu=dpu, change=change)
    return task.run(rig, x, np.ones((32, 1, 1, 1), np.int8))


def _first(result: Result) -> Array:
    first: Array = result.out[0, :, 0]
    return first


def _out_converter(rig: Rig) -> Finding:
    found = None
    for quirk, bit, modes in (("tie_rounding", 0, _MODES[:3]), ("round_bit_set", 1, _MODES[1:3])):
        change = partial(poke, register="DPU_OUT_CVT_SHIFT", CVT_ROUND=bit)
        result = accumulators(rig, _TIES, "int8", change, cvt_scale=1 << 14, cvt_shift=15)
        one = decide(quirk, _first(result), {mode: rounded(_TIES / 2, mode) for mode in modes})
        found = one if found is None else found.join(one)
    assert found is not None
    return found


def _truncation(rig: Rig) -> Finding:
    result = accumulators(rig, _TIES, "int32", clip_truncate=1)
    found = decide("truncate_rounding", _first(result), {mode: rounded(_TIES / 2, mode) for mode in _MODES})
    change = partial(poke, register="CORE_CLIP_TRUNCATE", ROUND_TYPE=1)
    found.observed["round_type_set"] = sample(_first(accumulators(rig, _TIES, "int32", change, clip_truncate=1)))
    return found


def _multiplier_shift(rig: Rig) -> Finding:
    halve = Stage(bypass=0, mul_bypass=0, mul_operand=1, mul_shift=1, mul_shift_negative=1)
    ties = decide(
        "mul_shift_rounding",
        _first(accumulators(rig, _TIES, "int32", bs=halve)),
        {mode: rounded(_TIES / 2, mode) for mode in _MODES},
    )
    sums = np.arange(-8, 8) * 8
    product = -sums
    uneven = Stage(bypass=0, mul_bypass=0, mul_operand=0xFFFF, mul_shift=1, mul_shift_negative=3)
    signs = decide(
        "mul_shift_sign",
        _first(accumulators(rig, sums, "int32", bs=uneven)),
        {
            "product": product >> np.where(product < 0, 3, 1),
            "input": product >> np.where(sums < 0, 3, 1),
            "ignored": product >> 1,
        },
    )
    return ties.join(signs)


def _scale_sign(rig: Rig) -> Finding:
    result = accumulators(rig, _TIES, "int8", cvt_scale=0x8000, cvt_shift=15)
    return decide("out_scale_sign", _first(result), {"signed": -_TIES, "unsigned": _TIES})


def _float_shift(rig: Rig) -> Finding:
    sums = np.arange(-8, 8) * 4 + 3
    result = accumulators(rig, sums, "float32", cvt_shift=2)
    found = decide("float_out_shift", _first(result), {"nearest": np.rint(sums / 4), "floor": np.floor(sums / 4)})
    found.observed["ties"] = sample(_first(accumulators(rig, _TIES, "float32", cvt_shift=1)))
    return found


def _residual(rig: Rig) -> Finding:
    """int8 element-wise add with the operand's converter: ties, then the formula for a sweep of scales and shifts."""
    values = np.tile(np.arange(-128, 128).reshape(-1, 1), (1, 16))
    zero = np.zeros_like(values)

    def add(**settings: int) -> Array:
        ew = operand(2, 1, convert_bypass=0, **settings)
        return Flying("int8", ew=ew).run(rig, zero, values).out[:, 0]

    halves = np.arange(-128, 128) / 2
    found = decide("ew_cvt_rounding", add(convert_shift=1), {mode: rounded(halves, mode) for mode in _MODES})
    mode = found.quirks.get("ew_cvt_rounding", "half_even")
    wrong = {}
    line = np.arange(-128, 128)
    for scale, shift, offset in ((16384, 14, 0), (23170, 15, 3), (16385, 16, -7), (32767, 17, 128), (3, 0, 0)):
        for first in (0, 1):
            settings = {"convert_scale": scale, "convert_shift": shift, "convert_offset": offset, "convert_type": first}
            if first:
                expected = rounded((line + offset) * scale / 2.0**shift, mode)
            else:
                expected = rounded(line * scale / 2.0**shift, mode) + offset
            differ = add(**settings) != np.clip(expected, -128, 127)
            wrong[f"scale {scale} shift {shift} offset {offset} type {first}"] = int(np.count_nonzero(differ))
    found.observed["residual_wrong_of_256"] = wrong
    holds = not any(wrong.values())
    found.answer += "; (e + offset) x scale >> shift " + ("holds" if holds else "does not hold") + " for every sweep"
    return found


EXPERIMENTS = (
    Experiment(
        "ties",
        1,
        "how does the output converter round an int8 result that lies half way, with its rounding bit clear and set?",
        ("tie_rounding", "round_bit_set"),
        _out_converter,
    ),
    Experiment("truncate", 1, "how does CLIP_TRUNCATE round a tie?", ("truncate_rounding",), _truncation),
    Experiment(
        "multiplier-shift",
        1,
        "how does the shift after the BS multiplier round, and whose sign chooses between its two amounts?",
        ("mul_shift_rounding", "mul_shift_sign"),
        _multiplier_shift,
    ),
    Experiment("scale-sign", 1, "is OUT_CVT_SCALE signed?", ("out_scale_sign",), _scale_sign),
    Experiment(
        "float-shift", 1, "how does OUT_CVT_SHIFT round on the way to a float?", ("float_out_shift",), _float_shift
    ),
    Experiment(
        "residual",
        9,
        "what does the converter of the element-wise operand compute for int8, and how does it round?",
        ("ew_cvt_rounding",),
        _residual,
    ),
)
