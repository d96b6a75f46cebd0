"""Queries, keys and values of few tokens against float64, by MLX's operations and by the kernel."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops import decode_qkv as op
from gptoss_mlx.backends.mlx.ops.decode_qkv import Heads
from gptoss_mlx.backends.mlx.ops.matrix import Norm
from gptoss_mlx.backends.mlx.ops.metal import Factory
from gptoss_mlx.backends.mlx.ops.place import Spot, anywhere, places
from gptoss_mlx.spec.config import QuantizationSpec
from tests.backends.mlx.ops.matrices import MXFP4, affine, exact, normal, normed, random_case
from tests.support.comparison import worst_row
from tests.support.metal_emulator import Emulator, available
from tests.support.released_tensors import Values

emulated = pytest.mark.skipif(available() is not None, reason=available() or "")

ORDERS = ["forward", "reverse", "random"]
EXACT = {mx.float32: 1e-6, mx.bfloat16: 4e-3}  # relative L2 of a token's queries, keys or values
EPS = 1e-5


def rope(y: Values, offset: int, periods: Values) -> Values:
    """Pairs (i, i + d / 2) of y [heads, tokens, d] turned by position / period."""
    angle = (offset + np.arange(y.shape[1]))[:, None] / periods
    first, second = np.split(y, 2, axis=-1)
    return np.concatenate(
        [
            first * np.cos(angle) - second * np.sin(angle),
            first * np.sin(angle) + second * np.cos(angle),
        ],
        axis=-1,
    )


def errors(
    factory: Factory | None,
    heads: Heads,
    inputs: int,
    tokens: int,
    spec: QuantizationSpec | None,
    dtype: mx.Dtype,
    *offsets: int,
    room: int | None = None,
) -> list[float]:
    """The worst token's relative L2 of queries, keys and values; None: by MLX.

    offsets: the first token's, or each one's. room: tokens of the pages they are written into, at
    every other place of which nothing may change.
    """
    rng = np.random.default_rng(inputs + tokens)
    count, width = heads.heads + heads.kv_heads, heads.head_dim
    rows = (count + heads.kv_heads) * width
    case = random_case(rng, rows, inputs, spec, dtype)
    x, gain, bias = (normal(rng, dtype, *s) for s in ((tokens, inputs), (inputs,), (rows,)))
    periods = (150_000 ** (np.arange(0, width, 2) / width)).astype(np.float32)
    pages, place = None, anywhere(*offsets)
    slots = rng.integers(0, room or 1, tokens).tolist()
    if room is not None:
        pages = normal(rng, dtype, tokens, 2, heads.kv_heads, room, width)
        spots = [[Spot(7, 7, 7), Spot(0, slot, slot + 1)] for slot in slots]
        place = places(offsets, spots)[1]
    run = op.decode_qkv if factory is None else op.metal(factory)
    q, kv = run(
        x,
        [(case.matrix, bias)],
        Norm(gain, EPS),
        heads,
        mx.array(periods),
        place,
        pages,
    )
    assert q.shape == (heads.heads, tokens, width)
    if pages is not None:
        for slot, before, after in zip(slots, exact(pages), exact(kv), strict=True):
            others = (np.delete(a, slot, axis=2) for a in (before, after))
            np.testing.assert_array_equal(*others)
        kv = mx.stack([page[:, :, slot] for page, slot in zip(kv, slots, strict=True)], axis=2)
    assert kv.shape == (2, heads.kv_heads, tokens, width)
    assert q.dtype == kv.dtype == dtype
    y = normed(x, gain, EPS) @ case.values.T + exact(bias)
    y = y.reshape(tokens, -1, width).swapaxes(0, 1)
    positions = enumerate(offsets if len(offsets) > 1 else range(offsets[0], offsets[0] + tokens))
    each = [rope(y[:count, i : i + 1], at, periods.astype(np.float64)) for i, at in positions]
    turned = np.concatenate(each, axis=1)
    expected = turned[: heads.heads], turned[heads.heads :], y[count:]
    return [
        worst_row(exact(a).swapaxes(0, 1), b.swapaxes(0, 1))
        for a, b in zip((q, kv[0], kv[1]), expected, strict=True)
    ]


@pytest.mark.parametrize("heads", [Heads(4, 2, 16), Heads(3, 1, 64)])
def test_the_reference(heads: Heads) -> None:
    # Not for large positions: MLX rounds the angle to float32.
    assert max(errors(None, heads, 96, 3, affine(8, 32), mx.float32, 9)) <= 2e-6


@emulated
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("heads", "inputs", "spec"),
    [
        (Heads(4, 2, 16), 96, affine(8, 32)),
        (Heads(3, 1, 64), 64, MXFP4),
        (Heads(2, 1, 64), 2880, affine(4, 64)),
        (Heads(1, 1, 128), 128, None),
    ],
)
def test_the_kernel(
    heads: Heads, inputs: int, spec: QuantizationSpec | None, tokens: int, dtype: mx.Dtype
) -> None:
    for order in ORDERS:
        factory = Emulator(check=True, order=order).metal_kernel
        assert max(errors(factory, heads, inputs, tokens, spec, dtype, 77)) <= EXACT[dtype]


def test_the_reference_with_a_page() -> None:
    assert max(errors(None, Heads(4, 2, 16), 96, 1, None, mx.float32, 9, room=7)) <= 2e-6
    assert max(errors(None, Heads(4, 2, 16), 96, 3, None, mx.float32, 9, 0, 70, room=7)) <= 2e-6
    assert max(errors(None, Heads(4, 2, 16), 96, 3, None, mx.float32, 9, 0, 70)) <= 2e-6


@emulated
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(
    ("heads", "room"), [(Heads(4, 2, 16), 9), (Heads(3, 1, 64), 64), (Heads(1, 1, 128), 1)]
)
@pytest.mark.parametrize("offsets", [(77,), (77, 0), (300, 5, 64), (9, 1, 8, 2, 7, 3, 6, 131_071)])
def test_each_sequences_token_into_its_page(
    heads: Heads, room: int, offsets: tuple[int, ...], dtype: mx.Dtype
) -> None:
    for order in ORDERS:
        factory = Emulator(check=True, order=order).metal_kernel
        found = errors(factory, heads, 96, len(offsets), None, dtype, *offsets, room=room)
        assert max(found) <= EXACT[dtype]


@emulated
def test_each_sequences_token_without_a_page() -> None:
    factory = Emulator(check=True, order="random").metal_kernel
    found = errors(factory, Heads(4, 2, 16), 96, 3, None, mx.float32, 300, 5, 64)
    assert max(found) <= EXACT[mx.float32]


@emulated
@pytest.mark.parametrize("offset", [0, 1, 6, 4095, 65_537, 131_064, 16_000_000])
def test_positions_as_far_as_the_context_reaches(offset: int) -> None:
    factory = Emulator(check=True).metal_kernel
    assert max(errors(factory, Heads(4, 2, 64), 64, 8, None, mx.float32, offset)) <= 1e-6


@emulated
def test_heads_too_wide_for_the_kernel_go_to_the_reference() -> None:
    factory = Emulator(check=True).metal_kernel
    assert max(errors(factory, Heads(1, 1, 256), 64, 8, None, mx.float32, 3)) <= 2e-6


@emulated
def test_the_examples_agree_with_the_reference() -> None:
    run = op.metal(Emulator(check=True).metal_kernel)
    for arguments in op.examples(mx.float32):
        for a, b in zip(run(*arguments), op.decode_qkv(*arguments), strict=True):
            assert worst_row(exact(a), exact(b)) <= 2e-6
