"""Simdgroup functions, matrices and atomics against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from . import Emulator
from .harness import ORDERS, needs_clang, run, values
from .rounding import to_bfloat

pytestmark = needs_clang

Lanes = npt.NDArray[Any]
LANE = np.arange(32)


def lanes(function: Callable[[Lanes], Any], x: Lanes, width: int = 32) -> Lanes:
    """`function` of each simdgroup's (or quad's) elements."""
    parts = x.reshape(-1, width)
    return np.stack([np.broadcast_to(function(part), (width,)) for part in parts]).reshape(-1)


MOVES: dict[str, Callable[[Lanes], Any]] = {
    "simd_broadcast(x[i], 5)": lambda v: v[5],
    "simd_broadcast_first(x[i])": lambda v: v[0],
    "simd_shuffle(x[i], (t * 7 + 3) % 32)": lambda v: v[(LANE * 7 + 3) % 32],
    "simd_shuffle_xor(x[i], 9)": lambda v: v[LANE ^ 9],
    "simd_shuffle_down(x[i], 3)": lambda v: np.where(LANE < 29, np.roll(v, -3), v),
    "simd_shuffle_up(x[i], 3)": lambda v: np.where(LANE >= 3, np.roll(v, 3), v),
    "simd_shuffle_rotate_down(x[i], 3)": lambda v: np.roll(v, -3),
    "simd_shuffle_rotate_up(x[i], 3)": lambda v: np.roll(v, 3),
    "simd_shuffle_and_fill_down(x[i], -x[i], 3)": lambda v: np.concatenate([v[3:], -v[:3]]),
    "simd_shuffle_and_fill_up(x[i], -x[i], 3)": lambda v: np.concatenate([-v[-3:], v[:-3]]),
    "simd_max(x[i])": np.max,
    "simd_min(x[i])": np.min,
}


@pytest.mark.parametrize("call", MOVES)
@pytest.mark.parametrize(("kind", "dtype"), [("float", mx.float32), ("half", mx.float16)])
def test_lanes_exchange_values(call: str, kind: str, dtype: mx.Dtype) -> None:
    x = mx.array(np.random.default_rng(2).standard_normal(96).astype(np.float32)).astype(dtype)
    for order in ORDERS:
        emulator = Emulator(order=order)
        out = run(
            f"out[i] = {call};", x, threads=96, threadgroup=96, dtype=dtype, emulator=emulator
        )
        np.testing.assert_array_equal(values(out), lanes(MOVES[call], values(x)))


@pytest.mark.parametrize("call", ["simd_shuffle_xor(x[i], 1)", "simd_broadcast(x[i], 31)"])
def test_bfloat_and_vectors_travel(call: str) -> None:
    x = mx.arange(32).astype(mx.bfloat16)
    expected = lanes(MOVES["simd_shuffle_xor(x[i], 9)"], values(x))
    out = run("out[i] = simd_shuffle_xor(x[i], 9);", x, threads=32, dtype=mx.bfloat16)
    np.testing.assert_array_equal(values(out), expected)
    vector = call.replace("x[i]", "float4(0, 1, 2, x[i])")
    last = values(run(f"out[i] = {vector}.w;", x, threads=32))
    np.testing.assert_array_equal(last, values(run(f"out[i] = {call};", x, threads=32)))


@pytest.mark.parametrize(
    ("call", "oracle", "width"),
    [
        ("simd_sum(x[i])", np.sum, 32),
        ("simd_product(x[i])", np.prod, 32),
        ("simd_and(x[i])", np.bitwise_and.reduce, 32),
        ("simd_or(x[i])", np.bitwise_or.reduce, 32),
        ("simd_xor(x[i])", np.bitwise_xor.reduce, 32),
        ("simd_prefix_inclusive_sum(x[i])", np.cumsum, 32),
        ("simd_prefix_exclusive_sum(x[i])", lambda v: np.cumsum(v) - v, 32),
        ("simd_prefix_inclusive_product(x[i])", np.cumprod, 32),
        ("quad_sum(x[i])", np.sum, 4),
        ("quad_max(x[i])", np.max, 4),
        ("quad_broadcast(x[i], 2)", lambda v: v[2], 4),
        ("quad_shuffle_xor(x[i], 1)", lambda v: v[[1, 0, 3, 2]], 4),
        (
            "uint(ulong(simd_vote::vote_t(simd_ballot(x[i] & 1))))",
            lambda v: np.bitwise_or.reduce((v & 1).astype(np.uint32) << LANE.astype(np.uint32)),
            32,
        ),
        ("uint(simd_any(x[i] > 4000000000u))", lambda v: (v > 4000000000).any(), 32),
        ("uint(simd_all(x[i] > 100000000u))", lambda v: (v > 100000000).all(), 32),
        ("uint(simd_is_first())", lambda v: LANE == 0, 32),
    ],
)
def test_reductions_of_integers(call: str, oracle: Callable[[Lanes], Any], width: int) -> None:
    rng = np.random.default_rng(3)
    x = (rng.integers(0, 1 << 32, 64, dtype=np.uint32) | 1).astype(np.uint32)
    out = np.array(run(f"out[i] = {call};", mx.array(x), dtype=mx.uint32))
    expected = lanes(lambda v: np.asarray(oracle(v)).astype(np.uint32), x, width)
    np.testing.assert_array_equal(out, expected)


def test_sums_are_within_rounding() -> None:
    x = np.random.default_rng(4).standard_normal(64).astype(np.float32)
    out = values(run("out[i] = simd_sum(x[i]);", mx.array(x)))
    np.testing.assert_allclose(out, lanes(np.sum, x.astype(np.float64)), atol=1e-5)


def test_sums_of_bfloat_round_once() -> None:
    x = mx.array(np.random.default_rng(4).uniform(1, 2, 32).astype(np.float32)).astype(mx.bfloat16)
    out = values(run("out[i] = simd_sum(x[i]);", x, threads=32, dtype=mx.bfloat16))
    np.testing.assert_array_equal(out, to_bfloat(np.full(32, values(x).astype(np.float64).sum())))


def test_a_partial_simdgroup_and_lanes_that_left_do_not_count() -> None:
    x = mx.arange(40).astype(mx.float32)
    out = values(run("out[i] = simd_sum(x[i]);", x, threads=40, threadgroup=40))
    assert out[0] == sum(range(32))
    assert out[39] == sum(range(32, 40))
    out = values(run("if (t % 2) { out[i] = 0; return; }\nout[i] = simd_sum(x[i]);", x, threads=32))
    assert out[0] == sum(range(0, 32, 2))


MATRIX = """
simdgroup_matrix<T, 8, 8> a, b;
simdgroup_float8x8 c = make_filled_simdgroup_matrix<float, 8, 8>(0.0f), d;
threadgroup T tile[2][64];
for (int n = t; n < 64; n += 32) { tile[0][n] = x[n]; tile[1][n] = y[n]; }
simdgroup_barrier(mem_flags::mem_threadgroup);
simdgroup_load(a, tile[0], 8);
simdgroup_load(b, y, 8, ulong2(0, 0), TRANSPOSED);
c.thread_elements()[0] = 1; c.thread_elements()[1] = 1;
simdgroup_multiply_accumulate(d, a, b, c);
simdgroup_multiply(c, a, b);
simdgroup_store(d, out, 8);
simdgroup_store(c, out + 64, 8, ulong2(0, 0), true);
"""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("order", ORDERS)
def test_matrices_multiply(dtype: mx.Dtype, transposed: bool, order: str) -> None:
    rng = np.random.default_rng(6)
    x, y = (mx.array(rng.standard_normal((8, 8)).astype(np.float32)).astype(dtype) for _ in "xy")
    a, b = values(x).astype(np.float64), values(y).astype(np.float64)
    b = b.T if transposed else b
    template = [("T", dtype), ("TRANSPOSED", transposed)]
    emulator = Emulator(order=order)
    out = values(
        run(MATRIX, x, y, threads=32, shape=(2, 8, 8), template=template, emulator=emulator)
    )
    np.testing.assert_allclose(out[0], a @ b + 1, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(out[1].T, a @ b, rtol=2e-6, atol=2e-6)


def test_a_diagonal_matrix_and_its_lanes() -> None:
    source = "simdgroup_store(simdgroup_float8x8(3.0f), out, 8);"
    out = values(run(source, threads=32, shape=(8, 8)))
    np.testing.assert_array_equal(out, 3 * np.eye(8))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["int32", "uint32", "float32"])
def test_atomics_add_up_over_threadgroups(kind: str, order: str) -> None:
    dtype = getattr(mx, kind)
    x = mx.arange(128).astype(dtype)
    source = """
    atomic_fetch_add_explicit(&out[0], x[i], memory_order_relaxed);
    atomic_fetch_sub_explicit(&out[1], x[i], memory_order_relaxed);
    atomic_fetch_max_explicit(&out[2], x[i], memory_order_relaxed);
    atomic_fetch_min_explicit(&out[3], x[i], memory_order_relaxed);
    """
    emulator = Emulator(order=order)
    out = run(
        source,
        x,
        threads=128,
        shape=(4,),
        dtype=dtype,
        init_value=1,
        atomic_outputs=True,
        emulator=emulator,
    )
    expected = np.array([1 + 8128, 1 - 8128, 127, 0]).astype(np.array(x).dtype)
    np.testing.assert_array_equal(np.array(out), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_atomics_in_threadgroup_memory(order: str) -> None:
    source = """
    threadgroup atomic_uint bits, turns;
    if (t == 0) {
      atomic_store_explicit(&bits, 0, memory_order_relaxed);
      atomic_store_explicit(&turns, 0, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_or_explicit(&bits, 1u << (t % 32), memory_order_relaxed);
    uint was = atomic_load_explicit(&turns, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&turns, &was, was + 1, memory_order_relaxed,
                                                  memory_order_relaxed)) {}
    threadgroup_barrier(mem_flags::mem_threadgroup);
    out[i] = float(atomic_load_explicit(&bits, memory_order_relaxed) == ~0u)
             + float(atomic_load_explicit(&turns, memory_order_relaxed));
    """
    out = values(run(source, emulator=Emulator(order=order)))
    assert out.tolist() == [65.0] * 64
