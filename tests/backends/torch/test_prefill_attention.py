"""Attention of a chunk in Triton, against float64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from gptoss_mlx.backends.torch.triton.prefill_attention import prefill_attention
from tests.backends.torch.attention_oracle import DTYPES, TOLERANCE, numbers, off, one_query, random

pytestmark = pytest.mark.torch


def agrees(
    dtype: torch.dtype,
    tokens: int,
    seen: int,
    window: int | None = None,
    heads: int = 8,
    kv_heads: int = 1,
    dim: int = 64,
    sinks: torch.Tensor | None = None,
) -> None:
    """Of keys and values that are part of an arena, which holds nothing yet after them."""
    arena = torch.full((2, kv_heads, seen + 7, dim), torch.nan, dtype=dtype)
    kv = arena[:, :, :seen]
    kv.copy_(random(seen, 2, kv_heads, seen, dim, dtype=dtype))
    q = random(99, tokens, heads, dim, dtype=dtype)
    sinks = random(98, heads, dtype=dtype) if sinks is None else sinks
    found = prefill_attention(q, kv, sinks, dim**-0.5, window)
    rows = []
    for i in range(tokens):
        end = seen - tokens + i + 1
        begin = 0 if window is None else max(0, end - window)
        keys, values = numbers(kv[:, :, begin:end])
        rows.append(one_query(numbers(q[i]), keys, values, numbers(sinks), dim**-0.5))
    assert found.dtype == dtype
    assert found.shape == (tokens, heads * dim)
    assert off(found, np.stack(rows)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "seen"),
    [
        (1, 1),  # a first token
        (1, 65),
        (16, 16),  # 128 queries: a whole block
        (17, 64),
        (17, 80),
        (5, 133),
        (40, 40),
    ],
)
def test_chunks_of_any_length(dtype: torch.dtype, tokens: int, seen: int) -> None:
    agrees(dtype, tokens, seen)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "seen", "window"),
    [(1, 1, 128), (3, 131, 128), (20, 148, 128), (20, 127, 128), (33, 33, 1), (40, 70, 5)],
)
def test_windows(dtype: torch.dtype, tokens: int, seen: int, window: int) -> None:
    agrees(dtype, tokens, seen, window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(1, 1, 16), (6, 2, 24), (32, 2, 64), (3, 1, 80)]
)
def test_other_shapes(dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    agrees(dtype, 9, 40, None, heads, kv_heads, dim)


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("sink", [60.0, -60.0, -1e4, -torch.inf])
def test_sinks_of_any_size(sink: float, window: int | None) -> None:
    sinks = random(3, 8, dtype=torch.float32)
    sinks[::2] = sink
    agrees(torch.float32, 5, 40, window, sinks=sinks)


def test_keys_outside_the_window_are_not_read() -> None:
    kv = torch.full((2, 1, 1000, 64), torch.nan)
    kv[:, :, -150:] = random(0, 2, 1, 150, 64, dtype=torch.float32)
    q, sinks = random(1, 20, 8, 64, dtype=torch.float32), torch.zeros(8)
    found = prefill_attention(q, kv, sinks, 0.125, 128)
    assert torch.equal(found, prefill_attention(q, kv[:, :, -150:], sinks, 0.125, 128))


def test_a_sink_above_everything_leaves_nothing() -> None:
    kv, q = random(0, 2, 1, 40, 64, dtype=torch.float32), random(1, 9, 4, 64, dtype=torch.float32)
    assert not prefill_attention(q, kv, torch.full((4,), 1e4), 0.125).any()


def test_strides_that_do_not_fit_are_refused() -> None:
    kv = torch.zeros(2, 1, 16, 8).transpose(2, 3)
    with pytest.raises(ValueError, match="contiguous"):
        prefill_attention(torch.zeros(1, 1, 16), kv, torch.zeros(1), 1.0)
