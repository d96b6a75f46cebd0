"""Each kernel: whether it agrees with its reference here, and its time against MLX's operations.

A case calls the operation as a model of the given shape does, each call on other weights, so that
none of them come from a cache. Bytes are the floor: each needed byte once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.mac.machine import flat, on_gpu, sampled
from benchmarks.mac.rows import Absent
from gptoss_mlx.backends.kernels import agreement
from gptoss_mlx.backends.mlx.ops.choice import MODULES
from gptoss_mlx.backends.mlx.ops.decode_qkv import Heads
from gptoss_mlx.backends.mlx.ops.matrix import Matrix, Norm
from gptoss_mlx.backends.mlx.ops.metal import DECODED
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection, random_projection
from gptoss_mlx.backends.mlx.ops.place import Spot, anywhere, places
from gptoss_mlx.backends.mlx.ops.routing import Routing
from gptoss_mlx.backends.mlx.ops.trial import disagreement
from gptoss_mlx.plan.buffers import PAGE
from gptoss_mlx.spec.config import QuantizationSpec
from tests.support.checkpoints import SHAPES, Shape

UNCACHED = 256 << 20  # bytes of weights that the calls of a sample go through, where there is room
MOST_CALLS = 16
SAMPLE = 0.002  # seconds a sample should take: waiting for a device costs a tenth of that
MOST_TIMES = 32  # that a sample goes through the calls
LIMIT = 7.0
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """calls: arguments of each call of a sample; nbytes and flops of one call."""

    calls: tuple[tuple[Any, ...], ...]
    nbytes: float
    flops: float


Build = Callable[[Shape, int, mx.Dtype], Case]


def check(operation: str, dtype: str) -> dict[str, Any]:
    """How far the Metal kernel is from its reference on its examples; raises if too far."""
    _need_gpu()
    kind: mx.Dtype = getattr(mx, dtype)
    module = MODULES[operation]
    kernel, reference = module.metal(), getattr(module, operation)
    worst = 0.0
    for arguments in module.examples(kind):
        pair = (flat(function(*arguments)) for function in (kernel, reference))
        worst = max(worst, disagreement(*pair))
    if not worst <= agreement(kind):
        raise ValueError(f"it differs from its reference by {worst:.1e}")
    return {"difference": worst}


def measure(operation: str, case: str, tokens: int, by: str, shape: str) -> dict[str, Any]:
    """The median time of a call: by "metal", our kernel, or "mlx", its reference in MLX's ops."""
    if by == "metal":
        _need_gpu()
    module = MODULES[operation]
    dtype = mx.bfloat16 if on_gpu() else mx.float32
    function = module.metal() if by == "metal" else getattr(module, operation)
    built = CASES[operation, case](SIZES[shape], tokens, dtype)

    def seconds_of(calls: Sequence[tuple[Any, ...]]) -> float:
        return sampled(lambda: mx.eval([flat(function(*call)) for call in calls])) / len(calls)

    seconds = seconds_of(built.calls)
    times = min(MOST_TIMES, ceil(SAMPLE / (seconds * len(built.calls))))
    if times > 1:
        seconds = seconds_of(built.calls * times)
    return {
        "us": seconds * 1e6,
        "gb_s": built.nbytes / seconds / 1e9,
        "gflop_s": built.flops / seconds / 1e9,
        "bytes": built.nbytes,
    }


def _need_gpu() -> None:
    if not on_gpu():
        raise Absent("MLX computes on the CPU here: Metal kernels cannot run")


def _moe(shape: Shape, tokens: int, dtype: mx.Dtype, half: str) -> Case:
    """A half of the experts, for tokens each with its own; many of them grouped by expert."""
    outputs, inputs = (
        (2 * shape.intermediate, shape.hidden)
        if half == "gate_up"
        else (shape.hidden, shape.intermediate)
    )
    projection = random_projection(shape.experts, outputs, inputs, dtype)
    grouped = tokens > DECODED
    calls, touched = [], 0.0
    for seed in range(1 if grouped else 8):
        draws = mx.random.uniform(shape=(tokens, shape.experts), key=mx.random.key(seed))
        ids = mx.argsort(draws, axis=-1)[:, : shape.active].astype(mx.uint32)
        ids = mx.sort(ids.reshape(-1)).reshape(-1, 1) if grouped else ids
        calls += [_moe_call(half, ids, projection, inputs, dtype, grouped)]
        touched += np.unique(np.asarray(ids)).size
    expert = sum(a.nbytes for a in projection) / shape.experts
    rows = tokens * shape.active
    vectors = (tokens if half == "gate_up" and not grouped else rows) * inputs
    written = rows * outputs / 2 if half == "gate_up" else (rows if grouped else tokens) * outputs
    nbytes = touched / len(calls) * expert + (vectors + written) * dtype.size
    return Case(tuple(calls), nbytes, 2.0 * rows * outputs * inputs)


def _moe_call(
    half: str,
    ids: mx.array,
    projection: Projection,
    inputs: int,
    dtype: mx.Dtype,
    grouped: bool,
) -> tuple[Any, ...]:
    tokens, k = ids.shape
    routing = Routing(ids, ids, mx.full((tokens, k), 1 / k, dtype), grouped)
    if half == "gate_up":
        return (_noise((tokens, inputs), dtype), projection, routing, LIMIT)
    return (_noise((tokens, k, inputs), dtype), projection, routing)


def _projection(outputs: str, inputs: str, bits: int | None, extras: str) -> Build:
    """Of quantized_matvec: the names of its sizes; extras: bias, norm, residual."""

    def build(shape: Shape, tokens: int, dtype: mx.Dtype) -> Case:
        n, k = _size(shape, outputs), _size(shape, inputs)
        x = _noise((tokens, k), dtype)
        matrices, nbytes = _matrices(n, k, bits, dtype)
        given = {
            "bias": mx.zeros((n,), dtype),
            "norm": Norm(mx.ones((k,), dtype), EPS),
            "residual": _noise((tokens, n), dtype),
        }
        after = [given[name] if name in extras else None for name in given]
        calls = [(x, matrix, *after) for matrix in matrices]
        vectors = (k + n * (2 if "residual" in extras else 1)) * tokens * dtype.size
        return Case(tuple(calls), nbytes + vectors, 2.0 * tokens * n * k)

    return build


def _qkv(shape: Shape, tokens: int, dtype: mx.Dtype) -> Case:
    n, k = (shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.hidden
    matrices, nbytes = _matrices(n, k, 8, dtype)
    bias, norm = mx.zeros((n,), dtype), Norm(mx.ones((k,), dtype), EPS)
    heads = Heads(shape.heads, shape.kv_heads, shape.head_dim)
    turning = (mx.ones((shape.head_dim // 2,)), anywhere(1000))
    x = _noise((tokens, k), dtype)
    calls = tuple((x, [(matrix, bias)], norm, heads, *turning) for matrix in matrices)
    return Case(calls, nbytes + (n + k) * tokens * dtype.size, 2.0 * tokens * n * k)


def _attention(held: int) -> Build:
    """Of one token to a sliding layer's window, or to `held` tokens and a page of more."""

    def build(shape: Shape, tokens: int, dtype: mx.Dtype) -> Case:
        width, room = shape.head_dim, PAGE if held else shape.window
        nbytes = 2 * shape.kv_heads * (held + room) * width * dtype.size
        q, sinks = _noise((shape.heads, 1, width), dtype), mx.zeros((shape.heads,), dtype)
        calls = []
        for _ in range(max(1, min(MOST_CALLS, ceil(UNCACHED / nbytes)))):
            arena, page = (
                _noise((2, shape.kv_heads, n, width), dtype) for n in (max(held, 1), room)
            )
            (place,) = places([held + room - 1], [[Spot(held, room - 1, room)]])
            calls += [(q, [arena], page[None], place, sinks, width**-0.5)]
        vectors = 2 * shape.heads * width * dtype.size
        return Case(tuple(calls), nbytes + vectors, 4.0 * q.size * (held + room))

    return build


def _router(shape: Shape, tokens: int, dtype: mx.Dtype) -> Case:
    n, k = shape.experts, shape.hidden
    matrices, nbytes = _matrices(n, k, None, dtype)
    after = (mx.zeros((n,), dtype), Norm(mx.ones((k,), dtype), EPS))
    calls = tuple((_noise((tokens, k), dtype), matrix, *after) for matrix in matrices)
    vectors = 2 * tokens * k * dtype.size + 4 * tokens * n
    return Case(calls, nbytes + vectors, 2.0 * tokens * n * k)


def _topk(shape: Shape, tokens: int, dtype: mx.Dtype) -> Case:
    logits = _noise((tokens, shape.experts), mx.float32)
    nbytes = logits.nbytes + 8 * tokens * shape.active
    return Case(((logits, shape.active),) * MOST_CALLS, nbytes, logits.size)


def _matrices(n: int, k: int, bits: int | None, dtype: mx.Dtype) -> tuple[list[Matrix], float]:
    """Matrices [n, k], as many as it takes to go past a cache, and the bytes of one."""
    group = 64 if k % 64 == 0 else 32
    wide = dtype.size if bits is None else bits / 8 + 2 * dtype.size / group
    per_matrix = n * k * wide
    count = max(1, min(MOST_CALLS, ceil(UNCACHED / per_matrix)))
    if bits is None:
        return [Matrix(_noise((n, k), dtype)) for _ in range(count)], per_matrix
    spec = QuantizationSpec(bits, group, "affine")
    scales, biases = mx.full((n, k // group), 0.01, dtype), mx.zeros((n, k // group), dtype)
    packed = (n, k * bits // 32)
    return [
        Matrix(mx.random.randint(0, 1 << 31, packed, mx.uint32), scales, biases, spec)
        for _ in range(count)
    ], per_matrix


def _noise(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(prod(shape))).astype(dtype)


def _size(shape: Shape, name: str) -> int:
    return shape.heads * shape.head_dim if name == "attention" else int(getattr(shape, name))


SIZES: dict[str, Shape] = {**SHAPES, "small": Shape(2, 64, 64, 4, 2, 4, 2, 32, 256)}

CASES: dict[tuple[str, str], Build] = {
    ("moe_gate_up", "experts, gate and up"): lambda s, t, d: _moe(s, t, d, "gate_up"),
    ("moe_down", "experts, down"): lambda s, t, d: _moe(s, t, d, "down"),
    ("quantized_matvec", "lm_head, 8 bits"): _projection("vocab", "hidden", 8, "norm"),
    ("quantized_matvec", "lm_head, 6 bits"): _projection("vocab", "hidden", 6, "norm"),
    ("quantized_matvec", "lm_head, 4 bits"): _projection("vocab", "hidden", 4, "norm"),
    ("quantized_matvec", "o, 8 bits"): _projection("hidden", "attention", 8, "bias, residual"),
    ("decode_qkv", "qkv, 8 bits"): _qkv,
    ("decode_attention", "attention, window"): _attention(0),
    ("decode_attention", "attention, 8192 tokens"): _attention(8192 - PAGE),
    ("decode_router", "router"): _router,
    ("router_topk", "choice"): _topk,
}
"""By operation and name, as plan.py has them: what the calls are."""
