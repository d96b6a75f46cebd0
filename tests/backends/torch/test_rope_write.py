"""Rotary embedding and the cache's keys and values in Triton, against float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch.operands import Heads
from gptoss_mlx.backends.torch.triton.rope_write import cos_sin, rope_write
from tests.backends.torch.attention_oracle import DTYPES, TOLERANCE, Array, numbers, off, random

pytestmark = pytest.mark.torch

LAST = 131071  # position that the models are made for
SIZE = 1 << 13


@triton.jit
def _cos_sin(angles, cos, sin, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    c, s = cos_sin(tl.load(angles + at))
    tl.store(cos + at, c)
    tl.store(sin + at, s)


def periods_of(dim: int) -> torch.Tensor:
    return torch.from_numpy((1.5e5 ** (np.arange(0, dim, 2) / dim)).astype(np.float32))


def turned(x: Array, positions: Sequence[int], periods: torch.Tensor) -> Array:
    """x [tokens, heads, d], rotated by angles as float32 has them."""
    angles = np.float32(positions)[:, None] / periods.numpy()
    cos, sin = (f(angles.astype(np.float64))[:, None] for f in (np.cos, np.sin))
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [Heads(64, 8, 64), Heads(6, 2, 24), Heads(1, 1, 2)])
def test_queries_are_turned_and_keys_and_values_kept(dtype: torch.dtype, heads: Heads) -> None:
    positions, rows, places = (0, 1, 4095, LAST), (3, 0, 4, 0), (2, 0, 1, 1)
    cache = random(0, 5, 2, heads.kv_heads, 3, heads.head_dim, dtype=dtype)
    before = cache.clone()
    width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim
    qkv, periods = random(1, 4, width, dtype=dtype), periods_of(heads.head_dim)
    where = (torch.tensor(x, dtype=torch.int32) for x in (positions, rows, places))
    found = rope_write(qkv, *where, cache, periods, heads)

    q, k, v = np.split(
        numbers(qkv).reshape(4, -1, heads.head_dim),
        [heads.heads, heads.heads + heads.kv_heads],
        axis=1,
    )
    assert found.dtype == dtype
    assert found.shape == (4, heads.heads, heads.head_dim)
    assert off(found, turned(q, positions, periods)) <= TOLERANCE[dtype]
    keys, values = cache[list(rows), :, :, list(places)].unbind(1)
    assert off(keys, turned(k, positions, periods)) <= TOLERANCE[dtype]
    assert np.array_equal(numbers(values), v)
    cache[list(rows), :, :, list(places)] = before[list(rows), :, :, list(places)]
    assert torch.equal(cache, before)


def test_a_cache_may_be_part_of_another() -> None:
    heads, whole = Heads(2, 1, 16), torch.zeros(2, 3, 2, 1, 4, 16)
    qkv, one = random(0, 1, 64, dtype=torch.float32), torch.ones(1, dtype=torch.int32)
    rope_write(qkv, one, one, one, whole[:, 2], periods_of(16), heads)
    assert torch.equal(whole[1, 2, 1, 0, 1], qkv[0, -16:])
    assert int(whole.any(-1).sum()) == 2


def test_angles_of_every_position() -> None:
    """Beside multiples of pi / 4, and at random; float32 itself is within 6e-8 of a cosine."""
    grid = np.arange(4 * SIZE, dtype=np.float32)
    eighths = np.float32(np.arange(SIZE) * 20 * np.pi / 4)
    near = [np.nextafter(eighths, np.float32(side)) for side in (0, 2e5)]
    some = np.random.default_rng(0).uniform(0, LAST, 2 * SIZE).astype(np.float32)
    angles = np.concatenate([grid * (LAST / grid[-1]), eighths, *near, some]).astype(np.float32)
    found = [torch.empty(len(angles)) for _ in range(2)]
    _cos_sin[(len(angles) // SIZE,)](torch.from_numpy(angles), *found, SIZE)
    exact = angles.astype(np.float64)
    assert np.abs(numbers(found[0]) - np.cos(exact)).max() <= 8e-8
    assert np.abs(numbers(found[1]) - np.sin(exact)).max() <= 8e-8


def test_strides_that_do_not_fit_are_refused() -> None:
    cache, one = torch.zeros(1, 2, 1, 16, 4).transpose(3, 4), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="contiguous"):
        rope_write(torch.zeros(1, 48), one, one, one, cache, periods_of(16), Heads(1, 1, 16))
