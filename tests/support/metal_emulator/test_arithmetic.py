"""Numbers: every operation of half, bfloat and float rounds on its own, as Metal's do."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from .harness import needs_clang, run, values
from .rounding import Floats, to_bfloat, to_float, to_half

pytestmark = needs_clang

Round = Callable[[Floats], Floats]
TYPES = [
    ("half", mx.float16, to_half),
    ("bfloat", mx.bfloat16, to_bfloat),
    ("float", mx.float32, to_float),
]


def three(dtype: mx.Dtype) -> list[mx.array]:
    """Inputs of `dtype` between 0.5 and 2."""
    rng = np.random.default_rng(5)
    return [mx.array(rng.uniform(0.5, 2, 256).astype(np.float32)).astype(dtype) for _ in range(3)]


@pytest.mark.parametrize(("name", "dtype", "rounded"), TYPES)
def test_every_operation_rounds(name: str, dtype: mx.Dtype, rounded: Round) -> None:
    inputs = three(dtype)
    a, b, c = (values(x).astype(np.float64) for x in inputs)
    cases = {
        "a * b + c": rounded(rounded(a * b) + c),
        "a * b - c * a": rounded(rounded(a * b) - rounded(c * a)),
        "a / b + c": rounded(rounded(a / b) + c),
        "(a + b) + c - (a + b + c) * b": rounded(
            rounded(rounded(a + b) + c) - rounded(rounded(rounded(a + b) + c) * b)
        ),
    }
    for expression, expected in cases.items():
        source = f"{name} a = x[i], b = y[i], c = z[i]; out[i] = {expression};"
        out = values(run(source, *inputs, threads=256, dtype=dtype))
        np.testing.assert_array_equal(out.astype(np.float64), expected, err_msg=expression)


def test_fma_rounds_once() -> None:
    inputs = three(mx.float32)
    a, b, c = (values(x).astype(np.longdouble) for x in inputs)
    out = values(run("out[i] = fma(x[i], y[i], z[i]);", *inputs, threads=256))
    np.testing.assert_array_equal(out, (a * b + c).astype(np.float32))
    plain = values(run("out[i] = x[i] * y[i] + z[i];", *inputs, threads=256))
    assert (plain != out).any()


def test_mixed_operands_are_float() -> None:
    inputs = three(mx.bfloat16)
    a, b, c = (values(x).astype(np.float32) for x in inputs)
    out = values(run("out[i] = float(x[i]) * y[i] + z[i];", *inputs, threads=256))
    np.testing.assert_array_equal(out, a * b + c)


def test_conversion_to_bfloat_is_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F800000, 0xFF7FFFFF, 0x80000001])
    x = mx.array(bits.astype(np.uint32)).view(mx.float32)
    out = run("out[i] = bfloat(x[i]);", x, threads=6, dtype=mx.bfloat16)
    expected = [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0xFF80, 0x8000]
    assert np.array(out.view(mx.uint16)).tolist() == expected
    nan = run("out[i] = bfloat(x);", mx.array(np.nan), threads=1, dtype=mx.bfloat16)
    assert np.isnan(values(nan)).all()


@pytest.mark.parametrize(
    ("call", "oracle"),
    [
        ("exp(x[i])", np.exp),
        ("metal::precise::exp(x[i])", np.exp),
        ("metal::fast::exp(x[i])", np.exp),
        ("log(x[i])", np.log),
        ("rsqrt(x[i])", lambda x: 1 / np.sqrt(x)),
        ("sqrt(x[i])", np.sqrt),
        ("tanh(x[i])", np.tanh),
        ("sin(x[i])", np.sin),
        ("pow(x[i], 1.5f)", lambda x: x**1.5),
        ("exp2(x[i])", np.exp2),
        ("floor(x[i] * 7)", lambda x: np.floor(x * 7)),
        ("round(x[i] * 7)", lambda x: np.floor(x * 7 + 0.5)),
        ("float(clamp(int(x[i] * 100), 60, 90))", lambda x: np.clip(np.trunc(x * 100), 60, 90)),
        ("exp(float4(x[i])).w", np.exp),
    ],
)
def test_math_functions(call: str, oracle: Callable[[Floats], Floats]) -> None:
    x = three(mx.float32)[0]
    out = values(run(f"out[i] = {call};", x, threads=256))
    np.testing.assert_allclose(out, oracle(values(x).astype(np.float64)), rtol=3e-7)


def test_integer_functions() -> None:
    x = mx.array(np.random.default_rng(1).integers(0, 1 << 32, 64, dtype=np.uint32))
    ints = [int(v) for v in np.array(x)]
    cases = {
        "popcount(x[i])": [v.bit_count() for v in ints],
        "clz(x[i])": [32 - v.bit_length() for v in ints],
        "ctz(x[i])": [(v & -v).bit_length() - 1 for v in ints],
        "reverse_bits(x[i])": [int(f"{v:032b}"[::-1], 2) for v in ints],
        "rotate(x[i], 5u)": [(v << 5 | v >> 27) & 0xFFFFFFFF for v in ints],
        "mulhi(x[i], x[i])": [v * v >> 32 for v in ints],
        "extract_bits(x[i], 3, 9)": [v >> 3 & 511 for v in ints],
        "uint(addsat(x[i], 0x80000000u))": [min(v + 0x80000000, 0xFFFFFFFF) for v in ints],
        "as_type<uint4>(uint4(x[i])).z": ints,
    }
    for call, expected in cases.items():
        out = run(f"out[i] = {call};", x, dtype=mx.uint32)
        assert np.array(out).tolist() == expected, call


def test_vectors_of_three_take_the_room_of_four() -> None:
    source = "out[i] = ((const device uint3*)x)[0].y * 100 + sizeof(uint3) + sizeof(half3);"
    assert np.array(run(source, mx.arange(8).astype(mx.uint32), dtype=mx.uint32))[0] == 124


def test_variables_without_a_value_are_not_zero() -> None:
    source = "float v[2]; if (x[i] < 0) v[0] = 1; out[i] = v[t % 2 == 0 ? 0 : 1];"
    assert np.isnan(values(run(source))).all()
