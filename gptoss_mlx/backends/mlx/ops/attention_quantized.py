"""Attention with sinks over keys and values held in MLX's affine quantization.

MLX's fast attention takes sinks but no quantized keys. Here the keys are visited block by block
with a running maximum and sum (Milakov and Gimelshein, "Online normalizer calculation for softmax",
2018), so that scores take no more room in a longer context, and the cache is never dequantized as
a whole. A head's sink is one more score, whose value vector is zero: the running maximum begins at
the sink and the running sum at exp(0).
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from gptoss_mlx.plan.buffers import SCORES_BYTES


class Quantized(NamedTuple):
    """[1 or 2, heads, tokens, width] in MLX's affine mode: value = code x scale + bias."""

    codes: mx.array
    """uint32 [.., heads, tokens, width x bits / 32]"""
    scales: mx.array
    """float32 [.., heads, tokens, width / group size]"""
    biases: mx.array
    """As scales."""

    def part(self, start: int, end: int) -> Quantized:
        """The tokens at start, start + 1, ... end - 1."""
        return Quantized(*(a[..., start:end, :] for a in self))

    def half(self, which: int) -> Quantized:
        """Of keys and values quantized together, [2, ..], the keys (0) or the values (1)."""
        return Quantized(*(a[which : which + 1] for a in self))


def attention_quantized(
    q: mx.array,
    k: Quantized,
    v: Quantized,
    *,
    scale: float,
    sinks: mx.array,
    scores_bytes: int = SCORES_BYTES,
) -> mx.array:
    """softmax(scale q k^T) v where each head's sink adds to the denominator; causal.

    q [1, heads, tokens, width] are the last `tokens` of the positions that k and v hold; each
    attends to itself and to earlier ones. k and v have kv_heads, each shared by heads / kv_heads
    neighbouring heads of q. sinks [heads]. Returns q's shape and dtype; computed in float32.
    Scratch: about three times scores_bytes. Up to that many bytes of scores nothing is evaluated
    (one token among 131,072 with 64 heads is just within); beyond, each block is evaluated.
    """
    _, heads, tokens, width = q.shape
    kv_heads, held = k.codes.shape[1:3]
    group = heads // kv_heads
    layout = (width // k.scales.shape[-1], 32 * k.codes.shape[-1] // width)
    queries = (q.astype(mx.float32) * scale).reshape(1, kv_heads, group * tokens, width)
    position = mx.tile(mx.arange(held - tokens, held), group)[:, None]  # [group x tokens, 1]
    sinks = sinks.astype(mx.float32).reshape(1, kv_heads, group, 1)
    top = mx.repeat(sinks, tokens, axis=2)  # [1, kv_heads, group x tokens, 1]
    total, y = mx.ones_like(top), mx.zeros_like(queries)
    block = max(1, scores_bytes // (4 * heads * tokens))
    for start in range(0, held, block):
        end = min(start + block, held)
        scores = _product(queries, k.part(start, end), layout, transpose=True)
        if end > held - tokens + 1:
            scores = mx.where(mx.arange(start, end) <= position, scores, -mx.inf)
        before, top = top, mx.maximum(top, scores.max(axis=-1, keepdims=True))
        weights, shrink = mx.exp(scores - top), mx.exp(before - top)
        total = total * shrink + weights.sum(axis=-1, keepdims=True)
        y = y * shrink + _product(weights, v.part(start, end), layout, transpose=False)
        if end < held:
            mx.eval(y, total)  # or MLX would run ahead and hold the scores of several blocks
    return (y / total).reshape(q.shape).astype(q.dtype)


def _product(x: mx.array, w: Quantized, layout: tuple[int, int], *, transpose: bool) -> mx.array:
    """x w^T or x w of each head, in x's dtype; layout is (group size, bits)."""
    size, bits = layout
    return mx.quantized_matmul(x, *w, transpose=transpose, group_size=size, bits=bits)
