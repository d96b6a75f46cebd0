"""Counts of operations against counts by hand."""

from __future__ import annotations

import mlx.core as mx
import pytest

from . import Emulator, Operations
from .harness import needs_clang, run, values

pytestmark = needs_clang
THREADS = 64


def counted(source: str, *inputs: mx.array, header: str = "", **options: object) -> Operations:
    """The operations of a launch of 64 threads."""
    emulator = Emulator(check=False, count=True)
    run(source, *inputs, header=header, emulator=emulator, threads=THREADS, **options)  # type: ignore[arg-type]
    found = emulator.launches[0].operations
    assert found is not None
    return found


TABLE = "constant float TABLE[4] = {1.0f, 3.0f, 4.0f, 7.0f};\n"
NOINLINE = "__attribute__((noinline)) float twice(float a, float b) { return fma(a, b, a) * b; }\n"
# Source of 64 threads, out and x of floats; floating, integer operations and conversions.
SOURCES = {
    "moves and addresses": ("out[i] = x[63 - i * 3 % 64];", (0, 0, 0)),
    "a sum and a product": ("out[i] = (x[i] + 2.0f) * (x[i] + 3.0f);", (3, 0, 0)),
    "a product taken into a sum": ("out[i] = x[i] * x[63 - i] + 1.0f;", (1, 0, 0)),
    "two products, one sum": ("out[i] = x[i] * x[63 - i] + x[0] * x[1];", (2, 0, 0)),
    "fma": ("out[i] = fma(x[i], x[63 - i], fma(x[i], x[0], 1.0f));", (2, 0, 0)),
    "vectors": (
        "float4 v = ((const device float4*)x)[t % 16]; v = v * v; out[i] = v.x + v.y - v.z + v.w;",
        (7, 0, 0),
    ),
    "logic": ("uint w = as_type<uint>(x[i]); out[i] = as_type<float>(w << 3 ^ w);", (0, 2, 0)),
    "conversions": ("out[i] = float(int(x[i]));", (0, 0, 2)),
    "halves of a word": (
        "half2 h = as_type<half2>(as_type<uint>(x[i])); out[i] = float(h.x) + float(h.y);",
        (1, 0, 2),
    ),
    "the larger": ("out[i] = max(x[i], 2.0f);", (1, 0, 0)),
    "the larger integer": ("out[i] = as_type<float>(max(as_type<int>(x[i]), 7));", (0, 1, 0)),
    "an exponential": ("out[i] = precise::exp(x[i]);", (1, 0, 0)),
    "a sum of a simdgroup": ("out[i] = simd_sum(x[i] + 1.0f);", (1, 0, 0)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_thread(name: str) -> None:
    source, expected = SOURCES[name]
    got = counted(source, mx.arange(THREADS).astype(mx.float32))
    per_thread = tuple(n / THREADS for n in (got.floating, got.integer, got.conversions))
    assert per_thread == expected
    assert got.total == sum(expected) * THREADS


def test_only_threads_that_take_a_branch_count() -> None:
    source = "out[i] = 0;\nif (t >= 40) out[i] = fma(x[i], fma(x[i], x[i], 3.0f), 1.0f);"
    got = counted(source, mx.ones((THREADS,)))
    assert (got.floating, got.integer, got.conversions) == (2 * 24, THREADS, 0)


def test_a_loop_counts_its_body_and_its_counter_each_time() -> None:
    source = """float s = 0;
#pragma clang loop unroll(disable)
for (int k = 0; k < count[0]; k++) s = fma(s, 0.5f, x[k]);
out[i] = s;""".replace("count[0]", "int(y[0])")
    got = counted(source, mx.ones((THREADS,)), mx.array([37] * 8, mx.int32))
    # A counter goes up and is compared, and there is one comparison before the loop.
    assert (got.floating, got.integer) == (37 * THREADS, (2 * 37 + 1) * THREADS)


def test_a_function_that_stays_one_is_counted_in_itself() -> None:
    source = "out[i] = twice(x[i], 2.0f) + twice(x[63 - i], 3.0f);"
    got = counted(source, mx.ones((THREADS,)), header=NOINLINE)
    assert got.floating == (2 * 2 + 1) * THREADS


def test_looking_up_a_table_of_the_text_is_no_address() -> None:
    got = counted("out[i] = TABLE[as_type<uint>(x[i]) & 3];", header=TABLE)
    assert (got.floating, got.integer, got.conversions) == (0, THREADS, 0)


def test_a_counted_launch_computes_the_same() -> None:
    x = mx.arange(THREADS).astype(mx.float32)
    source = "float s = simd_sum(x[i]); threadgroup_barrier(mem_flags::mem_none);out[i] = s * x[t];"
    emulator = Emulator(check=False, count=True)
    assert (values(run(source, x, emulator=emulator)) == values(run(source, x))).all()


def test_checked_launches_are_not_counted() -> None:
    with pytest.raises(ValueError, match="check=False"):
        Emulator(count=True)
    emulator = Emulator()
    run("out[i] = x[i] + 1;", emulator=emulator)
    assert emulator.launches[0].operations is None
