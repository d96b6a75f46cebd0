"""Section of benchmarks.cuda: what each operation takes at the model's shapes, beside PyTorch's.

The same operation of every layer goes in turn, with that layer's weights, keys and values, so that
they come from memory and not from the card's cache (`rotating_mib` says how much goes round).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.cuda.setup import Bench, Row, Section, line, tried
from benchmarks.cuda.timing import Work, each
from gptoss_mlx.backends.torch import reference
from gptoss_mlx.backends.torch.choice import is_reference
from gptoss_mlx.backends.torch.model import Transformer
from gptoss_mlx.backends.torch.operands import Groups
from gptoss_mlx.backends.torch.places import Layer

WAITS = frozenset({"decode_attention", "moe_gate_up", "moe_down"})
"""References that wait for the device: no CUDA graph can hold them."""


@dataclass(frozen=True)
class Piece:
    """One operation, once for each layer that has it.

    nbytes: of a call, weights, keys and values, what goes in and comes out; flops: of a call.
    plain: the same in PyTorch, or a floor for it; what: what that is.
    rotating: bytes of weights, keys and values of all calls.
    """

    operation: str
    where: str
    calls: Sequence[Work]
    nbytes: float
    flops: float
    plain: Sequence[Work]
    what: str
    rotating: float


Maker = Callable[[], Piece]


def pieces(bench: Bench) -> Section:
    """Decode steps of some sequences, then a chunk of a prompt."""
    for tokens in (*bench.amounts.piece_batches, bench.amounts.piece_prefill):
        decoding = tokens != bench.amounts.piece_prefill
        for operation, made in _made(bench, tokens, decoding):
            what = {"tokens": tokens, "operation": operation}
            yield tried(what, partial(_timed, bench, made))
            bench.release()


def _timed(bench: Bench, made: Maker) -> Row:
    piece = made()
    plain_waits = piece.operation in WAITS and piece.what == "reference"
    by_reference = is_reference(bench.kernels, piece.operation)
    waits = by_reference and piece.operation in WAITS
    taken = each(piece.calls, bench.device, waits, bench.amounts.runs)
    row: Row = {"where": piece.where, "us": 1e6 * taken}
    row["by"] = "reference" if by_reference else "triton"
    row |= bench.yard.read_at(piece.nbytes / taken) if piece.nbytes else {}
    row |= bench.yard.multiplied_at(piece.flops / taken) if piece.flops else {}
    row["rotating_mib"] = piece.rotating / (1 << 20)
    row["plain"] = piece.what
    try:
        plain = each(piece.plain, bench.device, plain_waits, bench.amounts.runs)
    except Exception as error:  # what a comparison lacks, the measurement need not
        return {**row, "plain_failed": line(error)}
    return {**row, "plain_us": 1e6 * plain, "times_plain": taken / plain}


def _made(bench: Bench, tokens: int, decoding: bool) -> Iterator[tuple[str, Maker]]:
    """Operations and what makes their pieces, so that no more than one is there at a time."""
    for name in ("qkv", "o", "router", *(["lm_head"] if decoding else [])):
        yield "linear", partial(_linear, bench, tokens, name)
    yield "add_norm", partial(_add_norm, bench, tokens)
    yield "rope_write", partial(_rope_write, bench, tokens, decoding)
    shortest, *longer = bench.amounts.contexts
    lengths = [shortest, *longer[:1]]
    if decoding:
        for length in lengths:
            yield "decode_attention", partial(_decode_attention, bench, tokens, length, False)
        yield "decode_attention", partial(_decode_attention, bench, tokens, lengths[0], True)
    else:
        for seen in sorted({tokens, max(tokens, lengths[-1])}):
            yield "prefill_attention", partial(_prefill_attention, bench, tokens, seen, False)
        yield "prefill_attention", partial(_prefill_attention, bench, tokens, tokens, True)
    yield "route", partial(_route, bench, tokens)
    for operation in ("moe_gate_up", "moe_down"):
        yield operation, partial(_experts, bench, tokens, operation)


def _linear(bench: Bench, tokens: int, name: str) -> Piece:
    model = bench.opened(1, 1)
    out = torch.float32 if name in ("router", "lm_head") else None
    if name == "lm_head":
        layers = [(model.lm_head, None)]
    elif name == "router":
        layers = [(block.moe.router, block.moe.router_bias) for block in model.blocks]
    else:
        of = [block.attention for block in model.blocks]
        layers = [(getattr(a, name), getattr(a, f"{name}_bias")) for a in of]
    rows, inputs = layers[0][0].weight.shape
    x = _normal(bench, tokens, inputs)
    size = bench.dtype.itemsize
    held = bench.sizes.matrix(rows, inputs) if name != "router" else rows * inputs * size
    written = rows * (4 if out else size)
    # PyTorch's has the floats that the bytes stand for.
    floats = [reference.dense(m, bench.dtype) for m, _ in layers] if bench.bits else None
    weights = floats or [m.weight for m, _ in layers]
    return Piece(
        "linear",
        name,
        [partial(bench.kernels.linear, x, m, b, out) for m, b in layers],
        held + tokens * (inputs * size + written),
        2 * tokens * rows * inputs,
        [partial(F.linear, x, w, b) for w, (_, b) in zip(weights, layers, strict=True)],
        "F.linear",
        held * len(layers),
    )


def _add_norm(bench: Bench, tokens: int) -> Piece:
    model = bench.opened(1, 1)
    hidden, k = bench.config.hidden_size, bench.config.num_experts_per_tok
    x = _normal(bench, tokens, hidden)
    updates = _normal(bench, tokens, k, hidden, dtype=torch.float32)
    arguments = [(x, updates, block.before.weight, block.before.eps) for block in model.blocks]
    nbytes = 3 * x.nbytes + updates.nbytes
    return _alike(bench, "add_norm", f"{k} experts' parts", arguments, nbytes, 0, 0)


def _rope_write(bench: Bench, tokens: int, decoding: bool) -> Piece:
    positions = torch.arange(tokens, dtype=torch.int32, device=bench.device)
    model = bench.opened(tokens if decoding else 1, 1 if decoding else tokens)
    qkv = _normal(bench, tokens, bench.sizes.qkv_rows)
    zero = torch.zeros_like(positions)
    rows, places = (positions, zero) if decoding else (zero, positions)
    arguments = [
        (qkv, positions, rows, places, model.cache.layers[a.number], a.periods, a.heads)
        for a in _attentions(model, sliding=False)
    ]
    return _alike(bench, "rope_write", "full layers", arguments, 2 * qkv.nbytes, 0, 0)


def _decode_attention(bench: Bench, tokens: int, length: int, sliding: bool) -> Piece:
    model = bench.opened(tokens, length)
    seen = min(length, bench.config.sliding_window) if sliding else length
    rows = torch.arange(tokens, dtype=torch.int32, device=bench.device)
    lengths = torch.full_like(rows, seen)
    layers = _attentions(model, sliding)
    q = _normal(bench, tokens, bench.config.num_attention_heads, bench.config.head_dim)
    held = [model.cache.layers[a.number] for a in layers]
    work = bench.kernels.decode_attention
    calls = [
        partial(work, q, kv, rows, lengths, a.sinks, a.scale)
        for kv, a in zip(held, layers, strict=True)
    ]
    plain = [
        _sdpa(q[:, :, None], kv[:tokens, 0, :, :seen], kv[:tokens, 1, :, :seen], a, False)
        for kv, a in zip(held, layers, strict=True)
    ]
    read = tokens * held[0][0, :, :, :seen].numel() * bench.dtype.itemsize
    flops = 4 * tokens * seen * bench.sizes.width
    where = f"{'window' if sliding else 'full'}, {seen} tokens seen"
    return Piece(
        *("decode_attention", where, calls, read + 2 * q.nbytes, flops),
        *(plain, "attention without sinks", read * len(held)),
    )


def _prefill_attention(bench: Bench, tokens: int, seen: int, sliding: bool) -> Piece:
    model = bench.opened(1, seen)
    layers = _attentions(model, sliding)
    q = _normal(bench, tokens, bench.config.num_attention_heads, bench.config.head_dim)
    heads, width = bench.config.num_key_value_heads, bench.config.head_dim
    if sliding:
        held = [_normal(bench, 2, heads, seen, width)] * len(layers)
    else:
        held = [model.cache.layers[a.number][0, :, :, :seen] for a in layers]
    work = bench.kernels.prefill_attention
    calls = [
        partial(work, q, kv, a.sinks, a.scale, a.window) for kv, a in zip(held, layers, strict=True)
    ]
    of = q.transpose(0, 1)[None]
    # Where there are earlier keys, PyTorch's fast kernels see all of the chunk's own as well.
    plain = [
        _sdpa(of, kv[:1], kv[1:], a, seen == tokens) for kv, a in zip(held, layers, strict=True)
    ]
    layer = layers[0].number
    pairs = bench.sizes.pairs(seen, layer) - bench.sizes.pairs(seen - tokens, layer)
    read = held[0].numel() * bench.dtype.itemsize
    where = f"{'window' if sliding else 'full'}, {seen} tokens seen"
    kind = "causal" if seen == tokens else "full"
    return Piece(
        *("prefill_attention", where, calls, read + 2 * q.nbytes, 4 * pairs * bench.sizes.width),
        *(plain, f"{kind} attention without sinks", read * (1 if sliding else len(held))),
    )


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Layer, causal: bool
) -> Callable[[], torch.Tensor]:
    return partial(
        F.scaled_dot_product_attention, q, k, v,
        is_causal=causal, scale=layer.scale, enable_gqa=True,
    )  # fmt: skip


def _route(bench: Bench, tokens: int) -> Piece:
    config, tile = bench.config, _tile(bench, tokens)
    logits = _normal(bench, tokens, config.num_local_experts, dtype=torch.float32)
    arguments = [(logits, config.num_experts_per_tok, tile)] * config.num_hidden_layers
    return _alike(bench, "route", f"tiles of {tile}", arguments, logits.nbytes, 0, 0)


def _experts(bench: Bench, tokens: int, operation: str) -> Piece:
    model, config = bench.opened(1, 1), bench.config
    first = operation == "moe_gate_up"
    inputs, k = config.hidden_size, config.num_experts_per_tok
    width = config.intermediate_size
    x = _normal(bench, tokens, inputs) if first else _normal(bench, tokens * k, width)
    arguments, distinct = [], 0
    for layer, block in enumerate(model.blocks):
        ids, weights = _visits(bench, tokens, layer)
        groups: Groups = bench.kernels.group_pairs(
            ids, config.num_local_experts, _tile(bench, tokens)
        )
        last: Any = config.swiglu_limit if first else weights
        arguments.append((x, block.moe.experts.bank, groups, ids, last))
        distinct += len(ids.unique())
    half = "gate_up" if first else "down"
    bank = model.blocks[0].moe.experts.bank
    arrays = [getattr(bank, f"{half}_{part}") for part in ("blocks", "scales", "bias")]
    visited = distinct / len(model.blocks)
    read = visited * sum(array[0].nbytes for array in arrays)
    ways = width * bench.dtype.itemsize if first else inputs * 4
    nbytes = read + x.nbytes + tokens * k * ways
    flops = 2 * tokens * k * inputs * width * (2 if first else 1)
    where = f"{visited:.1f} experts a layer"
    return _alike(bench, operation, where, arguments, nbytes, flops, read * len(model.blocks))


def _alike(
    bench: Bench,
    operation: str,
    where: str,
    arguments: Sequence[tuple[Any, ...]],
    nbytes: float,
    flops: float,
    rotating: float,
) -> Piece:
    """An operation whose peer is its own reference."""
    ours, plain = getattr(bench.kernels, operation), getattr(reference, operation)
    few = arguments[:4] if operation in WAITS else arguments  # one call after another, slowly
    return Piece(
        operation,
        where,
        [partial(ours, *one) for one in arguments],
        nbytes,
        flops,
        [partial(plain, *one) for one in few],
        "reference",
        rotating,
    )


def _attentions(model: Transformer, sliding: bool) -> list[Layer]:
    layers = [block.attention.layer for block in model.blocks]
    return [layer for layer in layers if (layer.window is not None) == sliding]


def _visits(bench: Bench, tokens: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and weights of random logits, others in every layer."""
    random = torch.Generator(bench.device).manual_seed(layer)
    shape = (tokens, bench.config.num_local_experts)
    logits = torch.randn(shape, device=bench.device, generator=random)
    return reference.router_topk(logits, bench.config.num_experts_per_tok)


def _tile(bench: Bench, tokens: int) -> int:
    pairs = tokens * bench.config.num_experts_per_tok
    return bench.kernels.tile_for(pairs, bench.config.num_local_experts)


def _normal(bench: Bench, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    random = torch.Generator(bench.device).manual_seed(3)
    made = torch.empty(shape, dtype=dtype or bench.dtype, device=bench.device)
    return made.normal_(generator=random)
