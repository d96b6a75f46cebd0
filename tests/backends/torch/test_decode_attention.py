"""Attention of decoded tokens in Triton, against float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.backends.torch.triton import decode_attention as module
from gptoss_mlx.backends.torch.triton.decode_attention import decode_attention, split
from tests.backends.torch.attention_oracle import DTYPES, TOLERANCE, numbers, off, one_query, random

pytestmark = pytest.mark.torch


def agrees(
    dtype: torch.dtype,
    lengths: Sequence[int],
    capacity: int,
    heads: int = 16,
    kv_heads: int = 2,
    dim: int = 64,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """What is found for rows in another order, of which the rest of the cache holds nothing."""
    tokens = len(lengths)
    cache = torch.full((tokens + 1, 2, kv_heads, capacity, dim), torch.nan, dtype=dtype)
    rows = list(np.random.default_rng(capacity).permutation(tokens + 1)[:tokens])
    for row, length in zip(rows, lengths, strict=True):
        cache[row, :, :, :length] = random(int(row), 2, kv_heads, length, dim, dtype=dtype)
    q = random(99, tokens, heads, dim, dtype=dtype)
    sinks = random(98, heads, dtype=dtype) if sinks is None else sinks
    ids, seen = (torch.tensor(x, dtype=torch.int32) for x in (rows, lengths))
    found = decode_attention(q, cache, ids, seen, sinks, dim**-0.5)
    expected = np.stack(
        [
            one_query(numbers(q[i]), *numbers(cache[row, :, :, :length]), numbers(sinks), dim**-0.5)
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True))
        ]
    )
    assert found.dtype == dtype
    assert found.shape == (tokens, heads * dim)
    assert off(found, expected) <= TOLERANCE[dtype]
    return found


@pytest.fixture
def nothing_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated but not written is not a number."""
    monkeypatch.setattr(torch, "empty", lambda *a, **k: torch.full(a, torch.nan, **k))


@pytest.mark.usefixtures("nothing_is_zero")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("processors", [1, 9, 132])
def test_sequences_of_any_length(
    dtype: torch.dtype, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part to a sequence, three, or one to every block of keys."""
    monkeypatch.setattr(module, "processors", lambda device: processors)
    agrees(dtype, (1, 32, 33, 128, 129, 400), 400, heads=4, kv_heads=1)


@pytest.mark.usefixtures("nothing_is_zero")
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sequences_go_to_more_programs(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST", 128)
    monkeypatch.setattr(module, "MERGED", 2)
    monkeypatch.setattr(module, "processors", lambda device: 1)
    agrees(dtype, (400, 1, 257, 128), 400, heads=4, kv_heads=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rings_take_one_launch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_combine", None)
    agrees(dtype, (128, 5, 128), 128)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_ring_may_begin_anywhere(dtype: torch.dtype) -> None:
    q, sinks = random(0, 1, 8, 64, dtype=dtype), random(1, 8, dtype=dtype)
    cache = random(2, 1, 2, 2, 128, 64, dtype=dtype)
    row, length = torch.tensor([0], dtype=torch.int32), torch.tensor([128], dtype=torch.int32)
    straight = decode_attention(q, cache, row, length, sinks, 0.125)
    turned = decode_attention(q, cache.roll(37, dims=3), row, length, sinks, 0.125)
    assert off(turned, numbers(straight)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("capacity", [128, 300])
@pytest.mark.parametrize("sink", [60.0, -60.0, -1e4, -torch.inf])
def test_sinks_of_any_size(sink: float, capacity: int) -> None:
    sinks = random(3, 4, dtype=torch.float32)
    sinks[::2] = sink
    agrees(torch.float32, (1, capacity), capacity, heads=4, kv_heads=1, sinks=sinks)


def test_a_sink_above_everything_leaves_nothing() -> None:
    for capacity in (128, 300):
        cache = random(0, 1, 2, 1, capacity, 64, dtype=torch.float32)
        q, sinks = random(1, 1, 4, 64, dtype=torch.float32), torch.full((4,), 1e4)
        row, length = torch.tensor([0], dtype=torch.int32), torch.tensor([capacity])
        assert not decode_attention(q, cache, row, length.int(), sinks, 0.125).any()


@pytest.mark.parametrize("capacity", [128, 300])
def test_an_empty_sequence_attends_to_nothing(capacity: int) -> None:
    cache = torch.full((1, 2, 2, capacity, 64), torch.nan)
    q, sinks = random(1, 1, 4, 64, dtype=torch.float32), torch.zeros(4)
    empty = torch.zeros(1, dtype=torch.int32)
    assert not decode_attention(q, cache, empty, empty, sinks, 0.125).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(1, 1, 16), (6, 2, 24), (16, 1, 64), (10, 2, 80)]
)
def test_other_shapes(dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    agrees(dtype, (270,), 300, heads, kv_heads, dim)


def test_a_cache_may_be_part_of_another() -> None:
    cache = random(0, 3, 2, 2, 2, 100, 64, dtype=torch.float32)
    q, sinks = random(1, 1, 4, 64, dtype=torch.float32), torch.zeros(4)
    row, length = torch.tensor([1], dtype=torch.int32), torch.tensor([100], dtype=torch.int32)
    part = cache[:, 0]
    a = decode_attention(q, part, row, length, sinks, 0.125)
    b = decode_attention(q, part.contiguous(), row, length, sinks, 0.125)
    assert torch.equal(a, b)


def test_shapes_that_do_not_fit_are_refused() -> None:
    row = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="17 queries"):
        decode_attention(
            torch.zeros(1, 17, 16), torch.zeros(1, 2, 1, 8, 16), row, row, torch.zeros(17), 1.0
        )


@given(
    capacity=st.integers(1, 131072),
    tokens=st.integers(1, 32),
    kv_heads=st.integers(1, 8),
    processors=st.integers(1, 200),
    block=st.sampled_from([32, 64, 128]),
    part_of=st.floats(0, 1),
)
def test_splits_hold_every_sequence(
    capacity: int, tokens: int, kv_heads: int, processors: int, block: int, part_of: float
) -> None:
    fewest, splits = split(capacity, tokens * kv_heads, processors, block)
    length = max(1, round(part_of * capacity))
    assert 1 <= fewest <= splits
    assert -(-length // share(length, fewest, block)) <= splits


def share(length: int, fewest: int, block: int) -> int:
    """The keys of a split, by its promise: whole blocks, shared evenly, but at most LONGEST."""
    even = -(-length // fewest)
    return min(-(-even // block) * block, module.LONGEST)


@pytest.mark.parametrize("context", [8192, 32768, 131072])
def test_one_sequence_fills_a_card(context: int) -> None:
    """Of 8 key-value heads on 132 multiprocessors, two programs each."""
    fewest, _ = split(131072, 8, 132, 128)
    programs = 8 * -(-context // share(context, fewest, 128))
    assert 0.9 * 264 <= programs <= 264


def test_a_short_sequence_does_not_pay_for_a_long_cache() -> None:
    fewest, _ = split(131072, 8, 132, 128)
    assert share(1024, fewest, 128) == 128
    fewest, _ = split(131072, 32 * 8, 132, 128)
    assert share(1024, fewest, 128) == 1024
