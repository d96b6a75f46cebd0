"""A token's attention over two parts against float64, by MLX's operations and by the kernels."""

from __future__ import annotations

from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops import decode_attention as op
from gptoss_mlx.backends.mlx.ops.decode_attention import RANGE, WHOLE
from gptoss_mlx.backends.mlx.ops.metal import Factory
from gptoss_mlx.backends.mlx.ops.place import Spot, places
from tests.backends.mlx.ops.matrices import exact, normal
from tests.support.comparison import worst_row
from tests.support.metal_emulator import Emulator, available

emulated = pytest.mark.skipif(available() is not None, reason=available() or "")

ORDERS = ["forward", "reverse", "random"]
EXACT = {mx.float32: 1e-6, mx.bfloat16: 4e-3}  # relative L2 of a head's values
SHAPES = [(8, 1, 64), (6, 2, 32), (4, 1, 128), (3, 3, 24), (7, 1, 40)]  # heads, of keys, width
LENGTHS = [(0, 1), (0, 128), (1, 1), (100, 64), (77, 16)]  # in the arena, in the page
LONG = [(WHOLE, 1), (3 * RANGE + 5, 64)]


def error(
    factory: Factory | None,
    shape: tuple[int, int, int],
    lengths: tuple[int, int],
    dtype: mx.Dtype,
    sink: float = 0.0,
) -> float:
    """The worst head's relative L2; sink: added to every sink."""
    (heads, kv_heads, width), (held, count) = shape, lengths
    rng = np.random.default_rng(heads + held)
    q, sinks = 2 * normal(rng, dtype, heads, 1, width), normal(rng, dtype, heads) + sink
    parts = [
        normal(rng, dtype, 2, kv_heads, tokens, width) for tokens in (held + 3, max(count, 64))
    ]
    for part, length in zip(parts, lengths, strict=True):
        part[..., length:, :] = mx.nan
    run = op.decode_attention if factory is None else op.metal(factory)
    place = places(held + count, [Spot(1, 2, 3), Spot(held, count - 1, count)])[1]
    y = run(q, *parts, place, sinks, width**-0.5)
    assert (y.shape, y.dtype) == ((1, heads * width), dtype)
    both = zip(parts, lengths, strict=True)
    kv = np.concatenate([exact(part)[:, :, :length] for part, length in both], axis=2)
    keys, values = np.repeat(kv, heads // kv_heads, axis=1)
    scores = np.einsum("hd,htd->ht", exact(q)[:, 0], keys) * width**-0.5
    scores = np.concatenate([scores, exact(sinks)[:, None]], axis=1)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("ht,htd->hd", weights[:, :-1], values)
    return worst_row(exact(y).reshape(heads, width), expected)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_reference(lengths: tuple[int, int]) -> None:
    assert error(None, (6, 2, 32), lengths, mx.float32) <= 1e-6


@emulated
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(
    ("shape", "lengths"), [*zip(SHAPES, LENGTHS, strict=True), *product(SHAPES[:2], LONG)]
)
def test_the_kernels(
    shape: tuple[int, int, int], lengths: tuple[int, int], dtype: mx.Dtype
) -> None:
    for order in ORDERS:
        factory = Emulator(check=True, order=order).metal_kernel
        assert error(factory, shape, lengths, dtype) <= EXACT[dtype]


@emulated
@pytest.mark.parametrize("sink", [-30.0, 8.0])
def test_sinks_far_from_the_scores(sink: float) -> None:
    factory = Emulator(check=True).metal_kernel
    for lengths in ((70, 30), LONG[1]):
        assert error(factory, (8, 1, 64), lengths, mx.float32, sink) <= EXACT[mx.float32]


@emulated
def test_what_the_kernel_is_not_written_for_goes_to_the_reference() -> None:
    factory = Emulator(check=True).metal_kernel
    for shape in ((3, 1, 256), (9, 1, 32), (2, 1, 6)):
        assert error(factory, shape, (9, 5), mx.float32) <= 2e-6


@emulated
@pytest.mark.parametrize(("dtype", "lengths"), [(mx.float32, (100, 60)), (mx.bfloat16, LONG[1])])
def test_keys_and_values_are_read_once_in_whole_lines(
    dtype: mx.Dtype, lengths: tuple[int, int]
) -> None:
    emulator = Emulator(trace=True)
    error(emulator.metal_kernel, (8, 1, 64), lengths, dtype)
    traffic = emulator.launches[0].traffic
    for name, tokens in zip(("arena", "page"), lengths, strict=True):
        token = 2 * 64 * dtype.size
        assert traffic[name].touched_read == tokens * token
        # Where the last block is not full, its last token stands in for those that are missing.
        assert traffic[name].distinct_bytes - tokens * token in range(0, 8 * token)
        assert traffic[name].lines == traffic[name].fewest_lines


@emulated
def test_only_a_long_context_takes_a_second_launch() -> None:
    for lengths, launches in (((WHOLE - 1, 1), 1), ((WHOLE, 1), 2)):
        emulator = Emulator(check=False)
        error(emulator.metal_kernel, (8, 1, 64), lengths, mx.float32)
        assert len(emulator.launches) == launches
