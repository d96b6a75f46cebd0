"""Sections of benchmarks.cuda about the whole model: the card, memory, prefill, decode."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.cuda.setup import GIB, Bench, Row, Section, at, tried, twin, watched
from benchmarks.cuda.timing import median, seconds
from gptoss_mlx.backends.torch.cache import State
from gptoss_mlx.backends.torch.choice import implementations
from gptoss_mlx.backends.torch.device import driver_version
from gptoss_mlx.backends.torch.model import Transformer

PRODUCTS = 4  # in a row


def card(bench: Bench) -> Section:
    """What this runs on, and what it can do at best."""
    yield {"what": "software", **_software(bench)}
    buffer = bench.amounts.buffer
    if bench.on_card:
        buffer = min(buffer, torch.cuda.mem_get_info(bench.device)[0] // 4)
    bench.yard.copy, bench.yard.read = _bandwidths(buffer, bench.device)
    yield {"what": "copy", "buffer_bytes": buffer, "gb_s": bench.yard.copy / 1e9}
    yield {"what": "read", "buffer_bytes": buffer, "gb_s": bench.yard.read / 1e9}
    side = bench.amounts.matmul
    m, n = torch.randn(2, side, side, dtype=bench.dtype, device=bench.device).unbind()
    each = median(lambda: [m @ n for _ in range(PRODUCTS)], bench.device, 10) / PRODUCTS
    bench.yard.flops = 2 * side**3 / each
    yield {"what": f"product of matrices {side}", "tflop_s": bench.yard.flops / 1e12}


def _bandwidths(buffer: int, device: torch.device) -> tuple[float, float]:
    """Bytes a second of a copy, read and written ones, and of a sum."""
    a, b = torch.empty(2, buffer // 4, device=device).normal_().unbind()
    for work in (lambda: a.copy_(b), a.sum):
        work()
    copied = median(lambda: a.copy_(b), device, 10)
    summed = median(a.sum, device, 10)
    return 2 * a.nbytes / copied, a.nbytes / summed


def _software(bench: Bench) -> Row:
    row: Row = {"torch": torch.__version__, "dtype": str(bench.dtype).removeprefix("torch.")}
    try:
        import triton

        row["triton"] = triton.__version__
    except ImportError:
        row["triton"] = None
    row["operations"] = implementations(bench.kernels)
    if not bench.on_card:
        return {"card": f"none: {platform.machine()} CPU", **row}
    of = torch.cuda.get_device_properties(bench.device)
    return {
        "card": of.name,
        "capability": f"{of.major}.{of.minor}",
        "processors": of.multi_processor_count,
        "memory_gib": of.total_memory / GIB,
        "l2_mib": getattr(of, "L2_cache_size", 0) / (1 << 20),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        **row,
    }


def memory(bench: Bench) -> Section:
    """The model is built; what it takes beside what it should."""
    before = 0
    if bench.on_card:
        before = torch.cuda.memory_allocated(bench.device)
        torch.cuda.reset_peak_memory_stats(bench.device)
    taken = seconds(bench.build, bench.device)
    assert bench.model is not None
    cache = bench.model.cache
    weights, kept = bench.sizes.weights, bench.sizes.cache(cache.rows, cache.context)
    row: Row = {
        "what": "model",
        "build_s": taken,
        "rows": cache.rows,
        "context": cache.context,
        "expected_weights_gib": weights / GIB,
        "expected_cache_gib": kept / GIB,
    }
    if not bench.on_card:
        yield {**row, "left_out": "memory in use needs a card"}
        return
    free, total = torch.cuda.mem_get_info(bench.device)
    held = torch.cuda.memory_allocated(bench.device) - before
    yield {
        **row,
        "allocated_gib": held / GIB,
        "over_expected": held / (weights + kept),
        "reserved_gib": torch.cuda.memory_reserved(bench.device) / GIB,
        "peak_gib": torch.cuda.max_memory_allocated(bench.device) / GIB,
        "card_used_gib": (total - free) / GIB,
    }


def prefill(bench: Bench) -> Section:
    """Prompts read by an empty sequence, in the model's chunks."""
    ids = bench.ids(max(bench.amounts.prefill)).tolist()
    for tokens in bench.amounts.prefill:
        yield tried({"tokens": tokens}, partial(_prefilled, bench, ids[:tokens]))


def _prefilled(bench: Bench, ids: Sequence[int]) -> Row:
    model = bench.opened(1, len(ids))
    [state] = at(model, 1, 0)
    held = 0
    if bench.on_card:
        torch.cuda.reset_peak_memory_stats(bench.device)
        held = torch.cuda.memory_allocated(bench.device)
    read = _reading(model, state, ids)
    first = seconds(read, bench.device)
    taken = median(read, bench.device, bench.amounts.runs, 12.0)
    flops = bench.sizes.prefill_flops(len(ids)) / taken
    row: Row = {"chunk": bench.chunk, "tok_s": len(ids) / taken, "first_s": first}
    row |= bench.yard.multiplied_at(flops)
    if bench.on_card:
        row["activations_gib"] = (torch.cuda.max_memory_allocated(bench.device) - held) / GIB
    return row


def _reading(model: Transformer, state: State, ids: Sequence[int]) -> Callable[[], None]:
    def read() -> None:
        state.offset = 0
        for i in range(0, len(ids), model.chunk):
            model.prefill(ids[i : i + model.chunk], state)

    return read


def decode(bench: Bench) -> Section:
    """Steps of several sequences in what a cache of random keys and values says they have read."""
    shortest = min(bench.amounts.contexts)
    for context in bench.amounts.contexts:
        for batch in bench.amounts.batches:
            ways = ["random"]
            if batch == 1 and context == shortest:
                ways += ["argmax", "random, no CUDA graph"]
            for fed in ways:
                what = {"batch": batch, "context": context, "fed": fed}
                if fed.endswith("graph") and not bench.on_card:
                    yield {**what, "left_out": "a CUDA graph needs a card"}
                else:
                    yield tried(what, partial(_decoded, bench, batch, context, fed))


def _decoded(bench: Bench, batch: int, context: int, fed: str) -> Row:
    """fed: "argmax" for the most probable token, else random ones, so that experts vary."""
    model = bench.opened(batch, context)
    if fed.endswith("graph"):
        model = twin(model, eager=True)
    steps, states = bench.amounts.steps, at(model, batch, context - 1)
    ids = bench.ids(steps, batch, 1)

    def step(i: int, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        logits = model.decode(tokens, states)
        if fed == "argmax":
            return logits.argmax(-1, keepdim=True)
        return ids[(i + 1) % steps]

    def run() -> None:
        for state in states:
            state.offset = context - 1
        tokens = ids[0]
        for i in range(steps):
            tokens = step(i, list(tokens))

    first = seconds(lambda: step(0, list(ids[0])), bench.device)
    taken = median(run, bench.device, bench.amounts.runs, 4.0) / steps
    experts = distinct_experts(bench, model, ids[0], states, context)
    # Sequences grow while they are timed.
    nbytes = bench.sizes.step(batch, context + (steps - 1) // 2, experts)
    row: Row = {"tok_s": batch / taken, "ms": 1000 * taken, "first_s": first}
    row |= {"experts_a_layer": experts, "bytes": nbytes, **bench.yard.read_at(nbytes / taken)}
    if bench.yard.read:
        row["limit_tok_s"] = batch * bench.yard.read / nbytes
    return row


def distinct_experts(
    bench: Bench, model: Transformer, ids: torch.Tensor, states: Sequence[State], context: int
) -> float:
    """Different experts that one step visits in a layer, on average over layers."""
    kernels, chosen = watched(bench.kernels)
    looked_at = twin(model, kernels=kernels, eager=True)
    for state in states:
        state.offset = context - 1
    looked_at.decode(list(ids), states)
    return sum(len(layer.unique()) for layer in chosen) / len(chosen)
