"""Attention over a quantized cache against float64 by hand over what its codes say."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.ops.attention_quantized import Quantized, attention_quantized

Values = NDArray[np.float64]

LIMIT = 1e-5
"""Relative L2 to float64; measured: at most 1e-6."""

SHAPES = [
    # heads, kv heads, width, group, held, tokens
    (1, 1, 32, 32, 1, 1),
    (4, 2, 64, 64, 300, 1),
    (8, 2, 64, 64, 300, 37),
    (64, 8, 64, 64, 130, 5),
    (6, 1, 32, 32, 77, 77),
    (3, 3, 128, 64, 50, 2),
    (5, 1, 96, 32, 90, 9),
]


class Case:
    """Random queries, sinks, and keys and values quantized by MLX."""

    def __init__(
        self, heads: int, kv_heads: int, width: int, group: int, held: int, tokens: int
    ) -> None:
        rng = np.random.default_rng(held)
        self.group, self.scale = group, width**-0.5
        self.q = rng.standard_normal((1, heads, tokens, width), np.float32) * 2
        self.sinks = rng.standard_normal(heads).astype(np.float32) * 2 + 3
        held_shape = (1, kv_heads, held, width)
        # An offset that all keys share, as biases of projections give, and one that values share.
        self.k = self._quantized(rng.standard_normal(held_shape, np.float32) * 2 + 1)
        self.v = self._quantized(rng.standard_normal(held_shape, np.float32) - 3)

    def _quantized(self, values: NDArray[np.float32]) -> Quantized:
        return Quantized(*mx.quantize(mx.array(values), group_size=self.group, bits=8))

    def _values(self, held: Quantized) -> Values:
        codes, scales, biases = (np.array(a)[0] for a in held)
        scale, bias = (np.repeat(a.astype(np.float64), self.group, -1) for a in (scales, biases))
        values: Values = codes.view(np.uint8) * scale + bias
        return values

    def ours(self, **changed: object) -> Values:
        given = {"q": mx.array(self.q), "k": self.k, "v": self.v, "sinks": mx.array(self.sinks)}
        y = attention_quantized(**{"scale": self.scale, **given, **changed})  # type: ignore[arg-type]
        return np.array(y.astype(mx.float32)).astype(np.float64)

    def exact(self) -> Values:
        """Head by head, all scores at once."""
        k, v, q = self._values(self.k), self._values(self.v), self.q.astype(np.float64)
        (_, heads, tokens, _), held = q.shape, k.shape[1]
        seen = np.arange(held) <= np.arange(held - tokens, held)[:, None]
        out = np.empty_like(q)
        for head in range(heads):
            of = head * len(k) // heads
            scores = np.where(seen, q[0, head] @ k[of].T * self.scale, -np.inf)
            sink = float(self.sinks[head])
            top = np.maximum(scores.max(axis=-1, keepdims=True), sink)
            weights = np.exp(scores - top)
            total = weights.sum(axis=-1, keepdims=True) + np.exp(sink - top)
            out[0, head] = weights / total @ v[of]
        return out


def _distance(ours: Values, exact: Values) -> float:
    assert ours.shape == exact.shape
    return float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))


def _bytes_for(case: Case, keys: int) -> int:
    """What makes a block have that many keys."""
    return 4 * case.q.shape[1] * case.q.shape[2] * keys


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keys", [None, 1, 16, 64])
def test_against_float64(shape: tuple[int, ...], keys: int | None) -> None:
    case = Case(*shape)
    blocks = {} if keys is None else {"scores_bytes": _bytes_for(case, keys)}
    assert _distance(case.ours(**blocks), case.exact()) < LIMIT


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_sizes_and_blocks(data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([32, 64]))
    heads, width = kv_heads * data.draw(st.integers(1, 5)), group * data.draw(st.integers(1, 2))
    held = data.draw(st.integers(1, 150))
    tokens = data.draw(st.integers(1, min(held, 40)))
    case = Case(heads, kv_heads, width, group, held, tokens)
    keys = data.draw(st.integers(1, held + 1))
    assert _distance(case.ours(scores_bytes=_bytes_for(case, keys)), case.exact()) < LIMIT


@pytest.mark.parametrize("keys", [1000, 7])
def test_every_head_has_its_own_sink(keys: int) -> None:
    case = Case(*SHAPES[2])
    blocks = _bytes_for(case, keys)
    before = case.ours(scores_bytes=blocks)
    case.sinks[3] = 60.0  # far above all scores: nearly all of the head's weight goes to it
    after = case.ours(scores_bytes=blocks)
    assert np.abs(after[0, 3]).max() < 1e-6 < 1e-2 < np.abs(before[0, 3]).min(axis=-1).max()
    others = [head for head in range(8) if head != 3]
    np.testing.assert_array_equal(after[0, others], before[0, others])
    assert _distance(after, case.exact()) < LIMIT


def test_no_sink_at_all_is_plain_softmax() -> None:
    case = Case(*SHAPES[2])
    with_sinks = case.ours()
    case.sinks[:] = -math.inf
    assert _distance(case.ours(), case.exact()) < LIMIT
    assert _distance(case.ours(), with_sinks) > 1e-3


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    case = Case(*SHAPES[2])
    case.scale = 100.0
    for sink in (-1e4, 0.0, 1e3):
        case.sinks[:] = sink
        ours = case.ours(scores_bytes=_bytes_for(case, 20))
        assert np.isfinite(ours).all()
        # Scores of about a thousand are themselves rounded to 1e-4.
        np.testing.assert_allclose(ours, case.exact(), atol=1e-2)


def test_any_chunks_of_queries_give_one_pass() -> None:
    case = Case(8, 2, 64, 64, 90, 90)
    whole, parts, at = case.ours(), [], 0
    for count in (1, 1, 30, 7, 1, 50):
        end = at + count
        held = {"k": case.k.part(0, end), "v": case.v.part(0, end)}
        q = mx.array(case.q[:, :, at:end])
        parts.append(case.ours(q=q, **held, scores_bytes=_bytes_for(case, 8)))
        at = end
    assert _distance(np.concatenate(parts, axis=2), whole) < LIMIT


def test_bfloat16_is_only_rounded_at_the_end() -> None:
    case = Case(*SHAPES[2])
    q = mx.array(case.q).astype(mx.bfloat16)
    case.q, case.scale = np.array(q.astype(mx.float32)), 0.3  # not a power of two
    y = attention_quantized(q, case.k, case.v, scale=case.scale, sinks=mx.array(case.sinks))
    assert y.dtype == mx.bfloat16
    # Half a unit in the last of eight bits.
    np.testing.assert_allclose(case.ours(q=q), case.exact(), rtol=2.0**-8, atol=1e-6)


def _peak(case: Case, scores_bytes: int) -> int:
    """Bytes MLX held at most while computing, above those it held before."""
    mx.eval(case.k, case.v)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    case.ours(scores_bytes=scores_bytes)
    return int(mx.get_peak_memory() - before)


def test_scratch_does_not_grow_with_the_context() -> None:
    short, long = (Case(8, 1, 64, 64, held, 64) for held in (512, 4096))
    limit = 256 << 10  # 128 keys a block
    inputs = 4 * short.q.nbytes
    assert _peak(short, limit) < 5 * limit + inputs
    assert _peak(long, limit) < 5 * limit + inputs
    # A dequantized copy of the long one's keys would take 1 MiB, all its scores 8 MiB.


def test_one_block_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[object] = []
    monkeypatch.setattr(mx, "eval", lambda *arrays: waits.append(arrays))
    one, several = Case(64, 8, 64, 64, 3000, 1), Case(64, 8, 64, 64, 600, 300)
    for case, count in ((one, 0), (several, 1)):
        attention_quantized(
            mx.array(case.q), case.k, case.v, scale=case.scale, sinks=mx.array(case.sinks)
        )
        assert len(waits) == count
