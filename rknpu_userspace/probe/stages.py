# SPDX-License-Identifier: MIT
"""The DPU's stages: their order, overflow, unary operations, and the look-up table."""

from __future__ import annotations

import numpy as np

from rknpu_userspace.isa import BY_NAME, write
from rknpu_userspace.task import ALU_ADD, Elementwise, Lut, Stage

from .rig import Array, Experiment, Finding, Rig, decide, sample
from .tasks import Flying, operand

_ENTRIES = 513
_LE, _LO = 0x20000, 0x30000
_UNARY = {5: ("abs", np.abs), 6: ("neg", np.negative), 7: ("floor", np.floor), 8: ("ceil", np.ceil)}


def _order(rig: Rig) -> Finding:
    x = np.arange(-20, 20).reshape(-1, 4)
    bn = Stage(bypass=0, alu_bypass=0, alu_algorithm=ALU_ADD, alu_operand=3, mul_bypass=0, mul_operand=2)
    out = Flying("int32", bn=bn).run(rig, x).out
    found = decide("bn_order", out, {"mul_alu": 2 * x + 3, "alu_mul": 2 * (x + 3)})
    bs = Flying("int32", bs=bn).run(rig, x).out
    found.observed["bs_is_alu_then_mul"] = bool(np.array_equal(bs, 2 * (x + 3)))
    return found


def _overflow(rig: Rig) -> Finding:
    top = 2**31 - 1
    x = np.array([[top, top - 1, -top - 1, 5]])
    y = np.array([[1, 1, -1, 6]])
    out = Flying("int32", ew=operand(ALU_ADD, 3)).run(rig, x, y).out
    exact = x + y
    wrapped = exact.astype(np.int64).astype(np.uint64).astype(np.uint32).view(np.int32)
    return decide("dpu_int_overflow", out, {"saturate": np.clip(exact, -top - 1, top), "wrap": wrapped})


def _unary(rig: Rig) -> Finding:
    main = np.array([-2.5, 2.25, -0.5, 7.75, -9.0, 3.5, 1.0, -1.0]).reshape(1, 8)
    other = np.array([4.5, -6.75, -8.5, 0.25, 5.0, -3.25, 2.5, 9.5]).reshape(1, 8)
    seen, expected_main, expected_other, hung = [], [], [], []
    for algorithm, (name, function) in _UNARY.items():
        result = Flying("float16", ew=operand(algorithm, 2, convert_bypass=0)).run(rig, main, other)
        if not result.run.done:
            hung.append(name)
            continue
        seen.append(result.out)
        expected_main.append(function(main))
        expected_other.append(function(other))
    if not seen:
        return Finding("no unary operation completes", {}, {"hung": hung}, "none")
    predictions = {"main": np.concatenate(expected_main), "operand": np.concatenate(expected_other)}
    found = decide("ew_unary", np.concatenate(seen), predictions)
    found.observed["hung"] = hung
    return found


def _tables(le: Array, lo: Array) -> tuple[int, ...]:
    """Command words that load both halves of the look-up table."""
    words = []
    for config, table in ((_LE, le), (_LO, lo)):
        words.append(write(BY_NAME["DPU_LUT_ACCESS_CFG"], config))
        words += [write(BY_NAME["DPU_LUT_ACCESS_DATA"], int(entry) & 0xFFFF) for entry in table]
    return tuple(words)


def _look_up(rig: Rig, x: Array, le: Array, lo: Array, select: int, offset: int, minus_exp: int) -> Array:
    """Entries for fp16 ``x`` taken as indices, as fp32."""
    last = (_ENTRIES - 1) << select
    stage = Stage(bypass=0, alu_bypass=0, alu_algorithm=ALU_ADD, mul_bypass=0, mul_operand=0x3C00)
    flying = Flying(
        "float16",
        "float32",
        bn=stage,
        ew=Elementwise(bypass=0, lut_bypass=0),
        lut=Lut(config=0x68, info=select << 16 | select << 8, le_start=-last, le_end=0, lo_start=0, lo_end=last),
        dpu={"cvt_offset": offset, "cvt_offset_first": 1, "cvt_minus_exp": minus_exp},
        prologue=_tables(le, lo),
    )
    return flying.run(rig, x.reshape(-1, 8)).out.reshape(-1)


def _index(rig: Rig) -> Finding:
    """Every entry is its own number, the step is one: the result says which entry an index chose."""
    numbers = np.arange(_ENTRIES) + 1
    low = numbers - _ENTRIES - 3000
    whole = np.arange(-512, 512)
    third = whole + 0.75

    def entry(index: Array) -> Array:
        clipped: Array = np.clip(index, -512, 512)
        return np.where(clipped >= 0, clipped + 1, clipped + 512 + 1 - _ENTRIES - 3000)

    third = third[np.abs(third) < 511]
    third = third[: len(third) // 8 * 8]
    seen = _look_up(rig, third, low, numbers, 0, 0, 0)
    found = decide(
        "lut_index_rounding",
        seen,
        {"half_even": entry(np.rint(third)), "floor": entry(np.floor(third))},
    )
    dump = _look_up(rig, whole.astype(float), low, numbers, 0, 0, 0)
    found.observed["entries_right_of_1024"] = int(np.count_nonzero(dump == entry(whole)))
    halves = np.arange(16) + 0.5
    found.observed["halves"] = sample(_look_up(rig, halves, low, numbers, 0, 0, 0))
    return found


def _interpolation(rig: Rig) -> Finding:
    """Entries go up and down by one every 32 indices: what lies between them shows the rounding."""
    table = 100 + np.arange(_ENTRIES) % 2
    index = np.arange(512)
    low, rest = index // 32, index % 32
    slope = table[low + 1] - table[low]
    exact = slope * rest / 32
    predictions = {
        "floor": table[low] + np.floor(exact),
        "half_even": table[low] + np.rint(exact),
        "half_up": table[low] + np.floor(exact + 0.5),
    }
    seen = _look_up(rig, index.astype(float), table, table, 5, 0, 0)
    return decide("lut_interpolation", seen, predictions)


def _zero(rig: Rig) -> Finding:
    x = np.arange(8.0)
    nothing = np.zeros(_ENTRIES, int)
    seen, spikes = [], []
    for minus_exp in (10, 13, 15):
        seen.append(_look_up(rig, x, nothing, nothing, 5, 0, minus_exp))
        spikes.append(np.full(8, 2.0 ** (17 - minus_exp)))
    return decide("lut_zero", np.concatenate(seen), {"two_to_17": np.concatenate(spikes), "zero": np.zeros(24)})


EXPERIMENTS = (
    Experiment("bn-order", 2, "does BN multiply before it adds?", ("bn_order",), _order),
    Experiment("overflow", 14, "do 32-bit sums of the DPU saturate or wrap?", ("dpu_int_overflow",), _overflow),
    Experiment("unary", 14, "which input do ABS, NEG, FLOOR and CEIL of EW take?", ("ew_unary",), _unary),
    Experiment(
        "lut-index", 11, "how is a number rounded to an index of the look-up table?", ("lut_index_rounding",), _index
    ),
    Experiment(
        "lut-interpolation",
        11,
        "how is what lies between two entries rounded?",
        ("lut_interpolation",),
        _interpolation,
    ),
    Experiment("lut-zero", 11, "what does an entry of zero come out as?", ("lut_zero",), _zero),
)
