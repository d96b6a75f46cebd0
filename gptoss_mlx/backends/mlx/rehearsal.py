"""Kernel warm-up: calls every kernel of a model at its real sizes, before the first answer.

So no trial of a kernel (ops/trial.py) delays an answer. A pipeline that an earlier start has tried
is not tried again, and nothing is evaluated for it.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from gptoss_mlx.backends.mlx.cache import QuantizedArena
from gptoss_mlx.backends.mlx.ops.metal import CONSTANT, DECODED, padded
from gptoss_mlx.backends.mlx.ops.place import RANGE, WHOLE, anywhere, places
from gptoss_mlx.backends.mlx.ops.routing import Routing
from gptoss_mlx.plan.buffers import PAGE

CONTEXTS = (WHOLE - PAGE, WHOLE + RANGE)  # tokens: in one range, and split into several


def rehearse(model: Any) -> None:
    """Try every pipeline that has not been tried. model: a `Transformer`, its weights loaded.

    Raises KernelError if a kernel that is insisted on cannot be used.
    """
    if model.kernels.trials is None:
        return
    model.kernels.trials.before = None
    x = _random(DECODED, model.norm.weight)
    for number, block in enumerate(model.blocks):
        _attention(model, number, x)
        _experts(block.moe, x, model.chunk, model.rows)
    for tokens in _counts():
        model.logits(x[:tokens])
    mx.reset_peak_memory()


def _counts() -> tuple[int, ...]:
    """The numbers of tokens that decode kernels are compiled for: powers of two to DECODED."""
    return tuple(1 << i for i in range(DECODED.bit_length()))


def _attention(model: Any, number: int, x: mx.array) -> None:
    attend = model.blocks[number].attend
    heads = attend.heads
    for tokens in _counts():
        q, _ = attend._qkv(x[:tokens], anywhere(0))
        attend.o(q.swapaxes(0, 1).reshape(tokens, -1), residual=x[:tokens])
    for context in CONTEXTS:
        width = heads.kv_heads * heads.head_dim
        kv = _random(2 * context, mx.zeros((width,), x.dtype))
        kv = kv.reshape(2, context, heads.kv_heads, heads.head_dim).swapaxes(1, 2)
        for sequences in (n for n in _counts() if n <= padded(min(model.rows, DECODED))):
            states = [model.new_state() for _ in range(sequences)]
            caches = [state.layers[number] for state in states]
            if isinstance(caches[0], QuantizedArena):
                return
            for state, cache in zip(states, caches, strict=True):
                cache.extend(kv, 0)
                state.offset = context
            place = places([context] * sequences, [state.spots() for state in states])[number]
            attend.decode(x[:sequences], caches, place)


def _experts(moe: Any, x: mx.array, chunk: int, rows: int) -> None:
    for tokens in _counts():
        logits, h = moe.route(x[:tokens])
    _, weights = moe.kernels.router_topk(logits, moe.k)
    bank = getattr(moe.experts, "bank", moe.experts)
    chosen = mx.broadcast_to(mx.arange(moe.k, dtype=mx.uint32), weights.shape)
    streamed = bank is not moe.experts
    for tokens in (1, 2, DECODED) if rows > 1 or streamed else (1,):
        routing = Routing(chosen[:tokens], chosen[:tokens], weights[:tokens])
        bank.down(bank.gate_up(h[:tokens], routing), routing, x[:tokens])
        if streamed:  # in waves of any number of pairs
            slots, shares = (a.reshape(-1, 1)[:tokens] for a in (chosen, weights))
            bank.gate_up(h[:tokens], Routing(slots, slots, shares))
    for visits in (2, chunk * moe.k) if streamed or 2 * moe.k < CONSTANT else (chunk * moe.k,):
        slots = (mx.arange(visits, dtype=mx.uint32) * bank.size // visits)[:, None]
        grouped = Routing(slots, slots, mx.full((visits, 1), 1 / moe.k), grouped=True)
        bank.down(bank.gate_up(_random(visits, h[0]), grouped), grouped)


def _random(rows: int, like: mx.array) -> mx.array:
    """[rows, width] of a normal distribution, always the same."""
    return mx.random.normal((rows, like.shape[-1]), key=mx.random.key(rows)).astype(like.dtype)
