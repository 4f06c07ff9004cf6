# SPDX-License-Identifier: MIT
"""matmul on the model against numpy: integers equal, floats within the stated units in the last place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.errors import DeviceError, JobError
from rknpu_userspace.ops import reference
from rknpu_userspace.ops.matmul import Matmul
from rknpu_userspace.quant import derive

FLOAT_ULP = {"float32": 4.0, "float16": 1.0}
"""Units in the last place of the sum of absolute terms: partial sums in float32, and one narrowing for float16."""
size = st.sampled_from((1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 97, 128)) | st.integers(1, 300)
seeds = st.integers(0, 2**32 - 1)
cores = st.integers(1, 3)


def int8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape, dtype=np.int8)


def half(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float16)


def assert_close(actual: np.ndarray, a: np.ndarray, b: np.ndarray, bias: Any = None, relu: bool = False) -> None:
    exact = reference.matmul(a, b, bias, relu=relu, out_dtype="float64")
    magnitude = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)) + (0 if bias is None else np.abs(bias))
    assert reference.ulp_distance_to(actual, exact, magnitude) <= FLOAT_ULP[actual.dtype.name]


@settings(max_examples=40, deadline=None)
@given(rows=size, inner=size, columns=size, seed=seeds, cores=cores)
def test_int8_to_int32(npu: Device, rows: int, inner: int, columns: int, seed: int, cores: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = int8(rng, rows, inner), int8(rng, inner, columns)
    result = npu.matmul(a, b, cores=cores)
    assert result.dtype == np.int32
    assert np.array_equal(result, reference.matmul(a, b))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(size, size, size),
    seed=seeds,
    relu=st.booleans(),
    with_bias=st.booleans(),
    zero_points=st.tuples(*[st.integers(-128, 127)] * 3),
    scale=st.floats(1e-6, 2.0),
    out=st.sampled_from(("int8", "int32", "float32")),
)
def test_int8_with_everything(
    npu: Device,
    shape: tuple[int, int, int],
    seed: int,
    relu: bool,
    with_bias: bool,
    zero_points: tuple[int, int, int],
    scale: float,
    out: str,
) -> None:
    rng = np.random.default_rng(seed)
    rows, inner, columns = shape
    a, b = int8(rng, rows, inner), int8(rng, inner, columns)
    bias = rng.integers(-100000, 100000, columns) if with_bias else None
    a_zero, b_zero, out_zero = zero_points
    options: dict[str, Any] = {"a_zero_point": a_zero, "b_zero_point": b_zero, "relu": relu, "out_dtype": out}
    quantised = {"scale": scale, "out_zero_point": out_zero} if out == "int8" else {}
    result = npu.matmul(a, b, bias=bias, **options, **quantised)
    requant = derive(scale, out_zero) if out == "int8" else None
    expected = reference.matmul(a, b, bias, requant=requant, **options)
    assert result.dtype == np.dtype(out)
    assert np.array_equal(result, expected)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(size, size, size),
    seed=seeds,
    relu=st.booleans(),
    with_bias=st.booleans(),
    out=st.sampled_from(("float32", "float16")),
)
def test_float16(npu: Device, shape: tuple[int, int, int], seed: int, relu: bool, with_bias: bool, out: str) -> None:
    rng = np.random.default_rng(seed)
    rows, inner, columns = shape
    a, b = half(rng, rows, inner), half(rng, inner, columns)
    bias = rng.normal(size=columns).astype(np.float32) if with_bias else None
    result = npu.matmul(a, b, bias=bias, relu=relu, out_dtype=out)
    assert result.dtype == np.dtype(out)
    assert_close(result, a, b, bias, relu)


@pytest.mark.parametrize("shape", [(128, 2304, 1024), (700, 300, 900), (3, 9000, 40), (1, 4096, 1536), (1100, 33, 7)])
@pytest.mark.parametrize("form", ["int8", "float16"])
def test_far_larger_than_the_cbuf(npu: Device, shape: tuple[int, int, int], form: str) -> None:
    rng = np.random.default_rng(7)
    rows, inner, columns = shape
    if form == "int8":
        a, b = int8(rng, rows, inner), int8(rng, inner, columns)
        bias = rng.integers(-1000, 1000, columns)
        expected = reference.matmul(a, b, bias, a_zero_point=-9, b_zero_point=3)
        assert np.array_equal(npu.matmul(a, b, bias=bias, a_zero_point=-9, b_zero_point=3), expected)
        requant = derive(1e-4, 5)
        expected = reference.matmul(a, b, bias, relu=True, requant=requant)
        assert np.array_equal(npu.matmul(a, b, bias=bias, relu=True, scale=1e-4, out_zero_point=5), expected)
    else:
        a, b = half(rng, rows, inner), half(rng, inner, columns)
        for out in ("float32", "float16"):
            assert_close(npu.matmul(a, b, out_dtype=out), a, b)


def test_very_wide_result_uses_a_cube(npu: Device) -> None:
    """A row of more than 8192 atoms does not fit the writer's notch."""
    rng = np.random.default_rng(3)
    a, b = int8(rng, 2, 32), int8(rng, 32, 33000)
    assert np.array_equal(npu.matmul(a, b, cores=1), reference.matmul(a, b))


def test_native_layout(npu: Device) -> None:
    rng = np.random.default_rng(4)
    a, b = int8(rng, 50, 70), int8(rng, 70, 90)
    with npu.compile(Matmul(b, 50, native=True)) as program:
        assert np.array_equal(program(a), reference.matmul(a, b))


def test_transposed_and_not_contiguous(npu: Device) -> None:
    rng = np.random.default_rng(5)
    a, b = int8(rng, 40, 50), int8(rng, 50, 60)
    expected = reference.matmul(a, b)
    assert np.array_equal(npu.matmul(np.ascontiguousarray(a.T), b, transpose_a=True), expected)
    assert np.array_equal(npu.matmul(a, np.ascontiguousarray(b.T), transpose_b=True), expected)
    wide = np.zeros((80, 100), np.int8)
    wide[::2, ::2] = a
    assert np.array_equal(npu.matmul(wide[::2, ::2], b[:, ::-1]), expected[:, ::-1])
    a.flags.writeable = False
    assert np.array_equal(npu.matmul(a, np.asfortranarray(b)), expected)


def test_batches(npu: Device) -> None:
    rng = np.random.default_rng(6)
    a, b = int8(rng, 2, 3, 7, 40), int8(rng, 40, 21)
    assert np.array_equal(npu.matmul(a, b), reference.matmul(a, b))
    many = int8(rng, 3, 40, 5)
    assert np.array_equal(npu.matmul(a, many), reference.matmul(a, many))
    vector = int8(rng, 40)
    assert np.array_equal(npu.matmul(vector, b), reference.matmul(vector, b))


def test_program_runs_many_times(npu: Device) -> None:
    rng = np.random.default_rng(8)
    b = int8(rng, 100, 50)
    program = npu.compile(Matmul(b, 20, relu=True), cores=2)
    out = np.empty((20, 50), np.int32)
    for _ in range(3):
        a = int8(rng, 20, 100)
        assert program(a, out=out) is out
        assert np.array_equal(out, reference.matmul(a, b, relu=True))
    assert (program.last.jobs, program.last.tasks) == (2, 2)
    assert 0 < program.last.npu_seconds <= program.last.seconds
    with pytest.raises(TypeError, match="takes int8, not float64"):
        program(np.zeros((20, 100)))
    with pytest.raises(ValueError, match=r"takes shape \(20, 100\), not \(100, 20\)"):
        program(np.zeros((100, 20), np.int8))
    with pytest.raises(TypeError, match="out must be int32, not int64"):
        program(a, out=np.empty((20, 50), np.int64))
    program.close()
    program.close()
    with pytest.raises(DeviceError, match="closed"):
        program(a)


def test_memory_is_given_back() -> None:
    from rknpu_userspace.backend.model import ModelContext
    from rknpu_userspace.device import Device as AnyDevice

    device = AnyDevice("model", lambda core: ModelContext(core, 1 << 20))
    b = np.ones((64, 64), np.int8)
    for _ in range(40):
        device.matmul(b, b)
    with pytest.raises(DeviceError, match="out of memory"):
        device.matmul(np.ones((1024, 1024), np.int8), np.ones((1024, 1024), np.int8))
    assert device.matmul(b, b)[0, 0] == 64
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        device.matmul(b, b)


def test_failed_job_is_reported_and_the_next_one_works(npu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address outside of every buffer: the model's IOMMU faults."""
    from rknpu_userspace.ops import convolution

    rng = np.random.default_rng(9)
    a, b = int8(rng, 8, 32), int8(rng, 32, 8)
    real = convolution.Places
    with monkeypatch.context() as patch:
        patch.setattr(convolution, "Places", lambda *places: real(0xF0000000, *places[1:]))
        with pytest.raises(JobError, match=r"0xf0000000.*matmul int8 8x32 by 32x8 to int32, job 1 of 1") as caught:
            npu.matmul(a, b)
        assert caught.value.kind == "fault"
    assert np.array_equal(npu.matmul(a, b), reference.matmul(a, b))


A, B = np.ones((4, 8), np.int8), np.ones((8, 6), np.int8)


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (A.astype(np.float32), B, {}, TypeError, r"a has dtype float32.*astype\(numpy.float16\)"),
        (A.view(np.uint8), B, {}, TypeError, "uint8.*zero point by 128"),
        (A.astype(np.int64), B, {}, TypeError, "int64, the NPU takes int8 or float16"),
        (A.astype(np.float16), B, {}, TypeError, "a is float16 and b is int8"),
        (A, B[:7], {}, ValueError, "a has K = 8, b has K = 7"),
        (A[:0], B, {}, ValueError, "empty"),
        (A, B, {"out_dtype": "float16"}, TypeError, "int8 operands can give int32, int8, float32, not float16"),
        (A, B, {"out_dtype": "int8"}, ValueError, "needs scale"),
        (A, B, {"scale": float("nan")}, ValueError, "finite and positive"),
        (A, B, {"scale": float("inf")}, ValueError, "finite and positive"),
        (A, B, {"scale": -1.0}, ValueError, "finite and positive"),
        (A, B, {"scale": 1e9}, ValueError, "too large"),
        (A, B, {"scale": 1e-30}, ValueError, "too small"),
        (A, B, {"scale": 0.5, "out_zero_point": 128}, ValueError, "128 is outside the int8 range"),
        (A, B, {"scale": 0.5, "out_zero_point": 1.5}, TypeError, "must be an integer"),
        (A, B, {"a_zero_point": -129}, ValueError, "a_zero_point -129"),
        (A, B, {"scale": 0.5, "out_dtype": "int32"}, ValueError, "scale is for int8 output"),
        (A, B, {"bias": np.zeros(5, np.int32)}, ValueError, r"bias has shape \(5,\), expected \(6,\)"),
        (A, B, {"bias": np.zeros(6)}, TypeError, "bias has dtype float64, expected integers"),
        (A, B, {"bias": np.full(6, 2**31)}, ValueError, "int32 range"),
        (A, B, {"cores": 4}, ValueError, "1..3"),
        (A.astype("f2"), B.astype("f2"), {"a_zero_point": 3}, ValueError, "is for int8 operands, not float16"),
        (A.astype("f2"), B.astype("f2"), {"bias": np.full(6, np.nan)}, ValueError, "not finite"),
        (A.astype("f2"), B.astype("f2"), {"scale": 1.0}, ValueError, "scale is for int8 output"),
    ],
)
def test_bad_arguments(
    npu: Device, a: np.ndarray, b: np.ndarray, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        npu.matmul(a, b, **options)


@pytest.mark.parametrize("cores", [0, 4, True, "2"])
def test_bad_cores(cores: Any) -> None:
    from rknpu_userspace.device import open_device

    with pytest.raises(ValueError, match="three NPU cores"):
        open_device("model", cores=cores)


def test_sums_clamp_to_int32(npu: Device) -> None:
    """In one task, in partial sums that the host adds up, and in the bias."""
    a, b = np.full((1, 4096), -128, np.int8), np.full((4096, 8), -128, np.int8)
    bias = np.array([2**31 - 1, -(2**31), 0, 5, 2**31 - 2**26 - 1, 2**31 - 2**26, -1, 1])
    expected = np.clip(2**26 + bias, -(2**31), 2**31 - 1)
    assert npu.matmul(a, b, bias=bias)[0].tolist() == expected.tolist()
    long = np.full((1, 140000), -128, np.int8)
    assert npu.matmul(long, np.full((140000, 2), -128, np.int8)).tolist() == [[2**31 - 1] * 2]


def test_folded_bias_beyond_int32(npu: Device) -> None:
    with pytest.raises(ValueError, match="leaves the int32 range"):
        npu.matmul(A, B, bias=np.full(6, 2**31 - 1), a_zero_point=-128)
