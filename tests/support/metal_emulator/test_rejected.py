"""What Metal's compiler rejects is rejected, at the line of the kernel; what it takes is taken."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from .harness import FIRST_LINE, fault, needs_clang, run, values
from .rounding import to_bfloat

pytestmark = needs_clang

OF_THREAD = "inline float f(const thread float* p) { return *p; }\n"
OF_DEVICE = "inline float f(const device float* p) { return *p; }\n"

# A header of one line; the source's last line is at fault.
AT_THE_CALL = {
    "device pointer for a thread's": (OF_THREAD, "out[i] = f(x + i);", "no matching function"),
    "threadgroup pointer for device's": (
        OF_DEVICE,
        "threadgroup float b[64]; b[t] = x[i];\nout[i] = f(b);",
        "no matching function",
    ),
    "cast between address spaces": (
        "",
        "threadgroup float b[64]; b[t] = 0;\nout[i] = ((const device float*)b)[t];",
        "mismatching address spaces",
    ),
    "unqualified local pointer": ("", "const float* p = x + i; out[i] = *p;", "address space"),
    "write to an input": ("", "x[i] = 1; out[i] = 0;", "read-only"),
    "write through a cast away of const": (
        "",
        "device float& r = x[i]; r = 1; out[i] = 0;",
        "drops 'const'",
    ),
    "double": ("", "double d = x[i]; out[i] = d;", "metal_has_no_double"),
    "half4 as float4": ("", "half4 h = half4(x[i]); float4 f = h; out[i] = f.x;", "cannot init"),
    "float4 as half4": ("", "float4 h = float4(x[i]); half4 f = h; out[i] = f.x;", "cannot init"),
    "int4 as float4": ("", "int4 h = int4(i); float4 f = h; out[i] = f.x;", "cannot init"),
    "too few components": ("", "float4 f = float4(x[i], 1); out[i] = f.x;", "wrong number"),
    "too many components": ("", "float2 f = float2(x[i], 1, 2); out[i] = f.x;", "wrong number"),
    "components of another width": ("", "out[i] = float4(float2(x[i])).x;", "widths differ"),
    "64 bits through a simdgroup": ("", "out[i] = float(simd_sum(ulong(i)));", "64-bit"),
    "min of int and uint": ("", "out[i] = float(metal::min(int(i), t));", "ambiguous"),
    "std": ("", "out[i] = std::max(x[i], 1.0f);", "'std'"),
    "function pointer": (
        "",
        "float (*p)(float) = metal::exp; out[i] = p(x[i]);",
        "pointers to fun",
    ),
    "a name of MLX's prelude": (
        "template <typename T, typename U> inline T ceildiv(T n, U m) { return n / m; }\n",
        "out[i] = x[i];",
        "redefinition of 'ceildiv'",
    ),
}
IN_THE_HEADER = {
    "unqualified parameter": ("inline float f(const float* p) { return *p; }\n", "p: a pointer"),
    "unqualified reference": ("inline float f(float& p) { return p; }\n", "p: a pointer or ref"),
    "unqualified template parameter": (
        "template <typename T> inline T f(T& p) { return p; }\n",
        "p: a pointer",
    ),
    "unqualified member": ("struct S { const float* p; };\n", "p: a pointer"),
    "unqualified result": (
        "const float* f(const device float* p) { return p; }\n",
        "f returns a pointer",
    ),
    "recursion": ("inline float f(float p) { return p < 1 ? p : f(p - 1); }\n", "f calls itself"),
    "recursion of two": (
        "float g(float p); inline float f(float p) { return g(p); } "
        "float g(float p) { return p < 1 ? p : f(p); }\n",
        "f calls itself",
    ),
    "threadgroup variable in a function": (
        "inline float f(float p) { threadgroup float b[4]; b[0] = p; return b[0]; }\n",
        "outside a kernel function",
    ),
}


@pytest.mark.parametrize("name", AT_THE_CALL)
def test_rejected_at_its_line(name: str) -> None:
    header, source, words = AT_THE_CALL[name]
    said = fault(source, header=header)
    assert words in said
    line = FIRST_LINE + header.count("\n") + source.count("\n")
    expected = 1 if "redefinition" in words else line
    assert f"small.metal:{expected}: error: " in said


@pytest.mark.parametrize("name", IN_THE_HEADER)
def test_rejected_in_the_header(name: str) -> None:
    header, words = IN_THE_HEADER[name]
    said = fault("out[i] = x[i];", header=header)
    assert said.startswith("small.metal:1: error: ")
    assert words in said


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("out[i] = x[i] * 2.0f;", "implicit conversion to bfloat"),
        ("out[i] = 2.0f;", "implicit conversion to bfloat"),
        ("out[i] = half(x[i]);", "bfloat"),
        ("bfloat b = bfloat(x[i]); b *= 2.0f; out[i] = b;", "bfloat"),
    ],
)
def test_nothing_becomes_a_bfloat_by_itself(source: str, words: str) -> None:
    said = fault(source, dtype=mx.bfloat16)
    assert f"small.metal:{FIRST_LINE}: error: " in said
    assert words in said


@pytest.mark.parametrize("size", [1, 7])
def test_an_input_of_fewer_than_8_elements_is_constant(size: int) -> None:
    header = OF_DEVICE
    assert "no matching function" in fault("out[i] = f(x);", mx.zeros((size,)), header=header)
    assert values(run("out[i] = f(x);", mx.ones((8,)), header=header)).sum() == 64
    header = header.replace("device", "constant")
    assert values(run("out[i] = f(x);", mx.ones((size,)), header=header)).sum() == 64


def test_a_0d_input_is_a_reference() -> None:
    assert values(run("out[i] = x;", mx.array(3.0))).tolist() == [3.0] * 64
    assert "error" in fault("out[i] = x[0];", mx.array(3.0))


ACCEPTED = """
constexpr int n = 4;
float4 v = float4(x[i], float2(1, 2), half(3));
v = vec<float, 4>(v.xyz, 4.0f) + metal::float4(1.0f);
bfloat b = bfloat(v.x) * 2.0bf;  // not "threadgroup float b;" in a comment
threadgroup float tile[2][n * 16], other[4];
using F4 = vec<float, 4>;
v = F4(v.x, v.yz, v.w);
thread float2 (&pairs)[2] = *(thread float2 (*)[2])&v;
pairs[1].y = 5;
tile[t / 32][t % 32] = float(b) + static_cast<float4>(int4(v)).w;
if (t < 4) other[t] = 1;
uint bits = as_type<uint>(tile[t / 32][t % 32]);
out[i] = as_type<float>(bits) + dot(v, v) * 0 + select(0.0f, 0.0f, t > 3);
"""


def test_what_metal_takes_is_taken() -> None:
    out = values(run(ACCEPTED))
    x = np.arange(64, dtype=np.float32)
    assert out.shape == (64,)
    np.testing.assert_array_equal(out, 2 * to_bfloat(x + 1) + 5)
