"""The jobs whose kernels are compared: gpt-oss's largest products, by this project and by MLX."""

from __future__ import annotations

import mlx.core as mx

from benchmarks.kernels import mlx_launches as theirs
from benchmarks.kernels.pieces import Job, Piece, Sizes, affine, bank, random
from gptoss_mlx.backends.mlx.ops import decode_qkv, moe_down, moe_gate_up, quantized_matvec
from gptoss_mlx.backends.mlx.ops.matrix import Matrix, Norm
from gptoss_mlx.backends.mlx.ops.place import anywhere
from gptoss_mlx.backends.mlx.ops.routing import Routing

LIMIT = 7.0
PACKED = 1 / 2 + 1 / 32  # bytes of an MXFP4 weight with its scale


def jobs(s: Sizes, dtype: mx.Dtype) -> list[Job]:
    """Ours and MLX's of each kind."""
    return [*decode_moe(s, dtype), *prefill_moe(s, dtype), *lm_head(s, dtype), *qkv(s, dtype)]


def decode_moe(s: Sizes, dtype: mx.Dtype) -> list[Job]:
    """One token by its experts: both halves, biases, SwiGLU, routing weights, residual."""
    k, inner, active, size = s.hidden, s.inner, s.active, dtype.size
    ids = mx.arange(active, dtype=mx.uint32)[None]
    gate_up, down = bank(active, 2 * inner, k, dtype), bank(active, k, inner, dtype)
    routing = Routing(ids, ids, random((1, active), dtype))
    weights = 3 * active * inner * k
    vectors = k + 2 * active * inner + 2 * k  # x, the activations twice, residual and result
    floor = int(weights * PACKED) + size * (vectors + active * (2 * inner + k))
    ours = (
        Piece(
            lambda e: moe_gate_up.metal(e.metal_kernel)(
                random((1, k), dtype), gate_up, routing, LIMIT
            )
        ),
        Piece(
            lambda e: moe_down.metal(e.metal_kernel)(
                *(random((1, active, inner), dtype), down, routing),
                residual=random((1, k), dtype),
            )
        ),
    )
    # Of mlx-lm: three gathered biases, three sums, SwiGLU, routing weights, sum, residual.
    row = active * size
    elsewhere = row * (13 * inner + 8 * k) + size * 4 * k
    up = theirs.gather_qmv(active, False, inner, k, dtype)
    mlx = (up, up, theirs.gather_qmv(active, True, k, inner, dtype))
    name = "decode MoE"
    return [
        Job(name, "ours", dtype, ours, weights, floor),
        Job(name, "MLX", dtype, mlx, weights, floor, elsewhere, 10),
    ]


def prefill_moe(s: Sizes, dtype: mx.Dtype) -> list[Job]:
    """A prompt's tokens, sorted by expert, each expert with as many; not their gathering."""
    k, inner, size = s.hidden, s.inner, dtype.size
    rows, tokens = s.prompt * s.active, s.part_slots * s.visits
    weights = 3 * s.experts * inner * k
    vectors = rows * (k + 2 * inner + k) + s.experts * (2 * inner + k)
    floor = int(weights * PACKED) + size * vectors
    part = min(s.part_outputs, inner)
    slots = (mx.arange(tokens) // s.visits).astype(mx.uint32)[:, None]
    routing = Routing(slots, slots, random((tokens, 1), dtype), grouped=True)
    up, down = bank(s.part_slots, part, k, dtype), bank(s.part_slots, part, inner, dtype)
    share = s.experts / s.part_slots
    ours = (
        Piece(
            lambda e: moe_gate_up.metal(e.metal_kernel)(
                random((tokens, k), dtype), up, routing, LIMIT
            ),
            share * 2 * inner / part,
        ),
        Piece(
            lambda e: moe_down.metal(e.metal_kernel)(
                random((tokens, 1, inner), dtype), down, routing
            ),
            share * k / part,
        ),
    )
    mlx = (
        theirs.gather_qmm_rhs(s, 2 * inner, k, dtype),
        theirs.gather_qmm_rhs(s, k, inner, dtype),
    )
    elsewhere = rows * size * (13 * inner + 7 * k)
    name = "prefill MoE"
    return [
        Job(name, "ours", dtype, ours, weights, floor),
        Job(name, "MLX", dtype, mlx, weights, floor, elsewhere, 9),
    ]


def lm_head(s: Sizes, dtype: mx.Dtype) -> list[Job]:
    """The last norm and the logits of one token, in 8 bits and dense."""
    k, part, size = s.hidden, s.part_rows, dtype.size
    norm = Norm(random((k,), dtype), 1e-5)
    times, weights = s.vocabulary / part, s.vocabulary * k
    vectors = size * (2 * k + s.vocabulary)

    def ours(matrix: Matrix) -> Piece:
        return Piece(
            lambda e: quantized_matvec.metal(e.metal_kernel)(
                random((1, k), dtype), matrix, None, norm
            ),
            times,
        )

    found = []
    for name, matrix, mlx, floor in (
        (
            *("lm_head, 8 bits", affine(part, k, dtype), theirs.qmv(part, k, dtype, times)),
            weights + 2 * weights // 64 * size + vectors,
        ),
        (
            *("lm_head, dense", Matrix(random((part, k), dtype))),
            *(theirs.gemv(part, k, dtype, times), weights * size + vectors),
        ),
    ):
        found += [
            Job(name, "ours", dtype, (ours(matrix),), weights, floor),
            Job(name, "MLX", dtype, (mlx,), weights, floor, 3 * k * size, 1),
        ]
    return found


def qkv(s: Sizes, dtype: mx.Dtype) -> list[Job]:
    """Norm, queries, keys and values, biases and RoPE of one token, in 8 bits and dense."""
    k, size = s.hidden, dtype.size
    queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
    rows, weights = queries + 2 * keys, (queries + 2 * keys) * k
    norm, bias = Norm(random((k,), dtype), 1e-5), random((rows,), dtype)
    heads = decode_qkv.Heads(s.heads, s.kv_heads, s.head_dim)
    periods = mx.arange(1, s.head_dim // 2 + 1).astype(mx.float32)
    vectors = size * (2 * k + 2 * rows) + 4 * (s.head_dim // 2 + 1)

    def ours(matrix: Matrix) -> Piece:
        return Piece(
            lambda e: decode_qkv.metal(e.metal_kernel)(
                random((1, k), dtype), [(matrix, bias)], norm, heads, periods, anywhere(3)
            )
        )

    # Norm, RoPE of queries and keys, keys and values into the cache; in 8 bits also three biases.
    elsewhere = size * (3 * k + 2 * (queries + keys) + 4 * keys)
    quantized = [theirs.qmv(n, k, dtype) for n in (queries, keys, keys)]
    dense = [theirs.gemv(n, k, dtype, bias=True) for n in (queries, keys, keys)]
    floor = weights + 2 * weights // 64 * size + vectors
    return [
        Job("qkv, 8 bits", "ours", dtype, (ours(affine(rows, k, dtype)),), weights, floor),
        Job(
            *("qkv, 8 bits", "MLX", dtype, tuple(quantized), weights, floor),
            *(elsewhere + size * 3 * rows, 8),
        ),
        Job(
            *("qkv, dense", "ours", dtype, (ours(Matrix(random((rows, k), dtype))),), weights),
            weights * size + vectors,
        ),
        Job(
            *("qkv, dense", "MLX", dtype, tuple(dense), weights, weights * size + vectors),
            *(elsewhere, 5),
        ),
    ]
