"""Attention of sequences' tokens against float64, by MLX's operations and by the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops import decode_attention as op
from gptoss_mlx.backends.mlx.ops.metal import Factory
from gptoss_mlx.backends.mlx.ops.place import RANGE, WHOLE, Place, Spot, places
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
    lengths: Sequence[tuple[int, int]],
    dtype: mx.Dtype,
    sink: float = 0.0,
) -> float:
    """The worst head's relative L2, of all sequences; sink: added to every sink.

    lengths: of each sequence the tokens in the arena and in the page.
    """
    heads, kv_heads, width = shape
    calls = arguments(shape, lengths, dtype, sink)
    q, arenas, pages, _, sinks, _ = calls
    run = op.decode_attention if factory is None else op.metal(factory)
    y = run(*calls)
    assert (y.shape, y.dtype) == ((len(lengths), heads * width), dtype)
    worst = 0.0
    for i, (held, count) in enumerate(lengths):
        parts = exact(arenas[i])[:, :, :held], exact(pages[i])[:, :, :count]
        keys, values = np.repeat(np.concatenate(parts, axis=2), heads // kv_heads, axis=1)
        scores = np.einsum("hd,htd->ht", exact(q)[:, i], keys) * width**-0.5
        scores = np.concatenate([scores, exact(sinks)[:, None]], axis=1)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        expected = np.einsum("ht,htd->hd", weights[:, :-1], values)
        worst = max(worst, worst_row(exact(y[i]).reshape(heads, width), expected))
    return worst


def arguments(
    shape: tuple[int, int, int],
    lengths: Sequence[tuple[int, int]],
    dtype: mx.Dtype,
    sink: float = 0.0,
) -> tuple[mx.array, list[mx.array], mx.array, Place, mx.array, float]:
    """Of a call; what no sequence may attend to is NaN."""
    heads, kv_heads, width = shape
    rng = np.random.default_rng(heads + lengths[0][0])
    q = 2 * normal(rng, dtype, heads, len(lengths), width)
    sinks = normal(rng, dtype, heads) + sink
    arenas = [normal(rng, dtype, 2, kv_heads, held + 3, width) for held, _ in lengths]
    room = max(64, *(count for _, count in lengths))
    pages = normal(rng, dtype, len(lengths), 2, kv_heads, room, width)
    for i, (held, count) in enumerate(lengths):
        arenas[i][..., held:, :] = mx.nan
        pages[i, ..., count:, :] = mx.nan
    spots = [[Spot(1, 2, 3), Spot(held, count - 1, count)] for held, count in lengths]
    place = places([held + count for held, count in lengths], spots)[1]
    return q, arenas, pages, place, sinks, width**-0.5


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_reference(lengths: tuple[int, int]) -> None:
    assert error(None, (6, 2, 32), [lengths, (40, 20)], mx.float32) <= 1e-6


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
        assert error(factory, shape, [lengths], dtype) <= EXACT[dtype]


TOGETHER = [(0, 1), (WHOLE, 1), (100, 64), (3 * RANGE, 5), (7, 3), (0, 64), (WHOLE - 9, 9), (64, 2)]


@emulated
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("sequences", [2, 3, 8])
def test_each_sequence_attends_to_its_own_tokens(sequences: int, dtype: mx.Dtype) -> None:
    factory = Emulator(check=True, order="random").metal_kernel
    assert error(factory, (6, 2, 32), TOGETHER[:sequences], dtype) <= EXACT[dtype]


@emulated
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_sequence_gets_the_same_bits_alone(dtype: mx.Dtype) -> None:
    """Also where another one is long enough to be divided into ranges."""
    run = op.metal(Emulator(check=False).metal_kernel)
    q, arenas, pages, _, sinks, scale = arguments((6, 2, 32), TOGETHER, dtype)
    together = run(*arguments((6, 2, 32), TOGETHER, dtype))
    for i, (held, count) in enumerate(TOGETHER):
        (place,) = places([held + count], [[Spot(held, count - 1, count)]])
        alone = run(q[:, i : i + 1], [arenas[i]], pages[i : i + 1], place, sinks, scale)
        assert mx.array_equal(alone[0], together[i])


@emulated
@pytest.mark.parametrize("sink", [-30.0, 8.0])
def test_sinks_far_from_the_scores(sink: float) -> None:
    factory = Emulator(check=True).metal_kernel
    for lengths in ((70, 30), LONG[1]):
        assert error(factory, (8, 1, 64), [lengths], mx.float32, sink) <= EXACT[mx.float32]


@emulated
def test_what_the_kernel_is_not_written_for_goes_to_the_reference() -> None:
    factory = Emulator(check=True).metal_kernel
    for shape in ((3, 1, 256), (9, 1, 32), (2, 1, 6)):
        assert error(factory, shape, [(9, 5), (2, 1)], mx.float32) <= 2e-6
    assert error(factory, (6, 2, 32), [*TOGETHER, (1, 1)], mx.float32) <= 2e-6


@emulated
@pytest.mark.parametrize(("dtype", "lengths"), [(mx.float32, (100, 60)), (mx.bfloat16, LONG[1])])
def test_keys_and_values_are_read_once_in_whole_lines(
    dtype: mx.Dtype, lengths: tuple[int, int]
) -> None:
    emulator = Emulator(trace=True)
    error(emulator.metal_kernel, (8, 1, 64), [lengths], dtype)
    traffic = emulator.launches[0].traffic
    for name, tokens in zip(("arena0", "pages"), lengths, strict=True):
        token = 2 * 64 * dtype.size
        assert traffic[name].touched_read == tokens * token
        # Where the last block is not full, its last token stands in for those that are missing.
        assert traffic[name].distinct_bytes - tokens * token in range(0, 8 * token)
        assert traffic[name].lines == traffic[name].fewest_lines


@emulated
def test_only_a_long_context_takes_a_second_launch() -> None:
    for lengths, launches in (((WHOLE - 1, 1), 1), ((WHOLE, 1), 2)):
        emulator = Emulator(check=False)
        error(emulator.metal_kernel, (8, 1, 64), [lengths], mx.float32)
        assert len(emulator.launches) == launches
