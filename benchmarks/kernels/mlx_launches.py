"""MLX's own kernels for the products of gpt-oss, from the headers in its wheel, in the emulator.

Which of them MLX chooses, and how it divides the work, is as in its
mlx/backend/metal/quantized.cpp (gather_qmv, qmv, gather_qmm_rhs) and matmul.cpp (gemv_axbpy).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from benchmarks.kernels.pieces import Piece, Sizes, affine, bank, random
from tests.support.metal_emulator import Emulator
from tests.support.metal_emulator.arrays import contiguous
from tests.support.metal_emulator.toolchain import mlx_include

KERNELS = Path("mlx/backend/metal/kernels")
TYPES = {mx.bfloat16: "bfloat16_t", mx.float32: "float"}
Three = tuple[int, int, int]


def ints(*numbers: int) -> npt.NDArray[Any]:
    """An int32 argument."""
    return np.array(numbers, np.int32)


def longs(*numbers: int) -> npt.NDArray[Any]:
    """An int64 argument."""
    return np.array(numbers, np.int64)


def mlx_launch(
    emulator: Emulator,
    files: tuple[str, ...],
    kernel: str,
    buffers: Mapping[str, mx.array | npt.NDArray[Any] | None],
    threadgroups: Three,
    threadgroup: Three,
    constants: Mapping[int, int] | None = None,
) -> None:
    """Launches a kernel of MLX's headers."""
    body = "\n".join(f'#include "{KERNELS}/{name}"' for name in ("utils.h", *files))
    arrays = {n: contiguous(a) if isinstance(a, mx.array) else a for n, a in buffers.items()}
    across, down, deep = (g * t for g, t in zip(threadgroups, threadgroup, strict=True))
    emulator.launch(
        body,
        kernel,
        arrays,
        (across, down, deep),
        threadgroup,
        include=[mlx_include()],
        function_constants=constants,
        initialised=False,
    )


FP = ("steel/gemm/gemm.h", "quantized_utils.h", "fp_quantized.h")
AFFINE = ("steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")
NO_BATCH = {
    name: array
    for kind in ("x", "w")
    for name, array in (
        (f"{kind}_batch_ndims", ints(0)),
        (f"{kind}_shape", ints(0)),
        (f"{kind}_strides", longs(0)),
    )
} | {"s_strides": longs(0), "b_strides": longs(0)}


def gather_qmv(active: int, each: bool, rows: int, k: int, dtype: mx.Dtype) -> Piece:
    """One token by `active` experts; `each` with a vector of its own."""
    blocks, scales, _ = bank(active, rows, k, dtype)
    vectors = active if each else 1
    buffers = {
        **{"w": blocks, "scales": scales, "global_scale": None},
        **{"x": random((vectors, k), dtype), "y": mx.zeros((active, rows), dtype)},
        "lhs_indices": np.arange(active, dtype=np.uint32) * each,
        "rhs_indices": np.arange(active, dtype=np.uint32),
        **{"in_vec_size": ints(k), "out_vec_size": ints(rows)},
        "x_batch_ndims": ints(1),
        **{"x_shape": ints(vectors, 1, k), "x_strides": longs(k, k, 1)},
        **{"w_batch_ndims": ints(1), "w_shape": ints(active, rows, k // 8)},
        "w_strides": longs(rows * k // 8, k // 8, 1),
        "s_strides": longs(rows * k // 32, k // 32, 1),
        **{"batch_ndims": ints(1), "batch_shape": ints(active)},
        **{"lhs_strides": longs(1), "rhs_strides": longs(1)},
    }
    name = f"fp_gather_qmv<{TYPES[dtype]}, 32, 4>"
    grid = (1, -(-rows // 8), active)
    return Piece(lambda e: mlx_launch(e, FP, name, buffers, grid, (32, 2, 1)))


def gather_qmm_rhs(s: Sizes, rows: int, k: int, dtype: mx.Dtype) -> Piece:
    """Tokens sorted by expert: `part_slots` of them, `part_outputs` of each."""
    tokens, outputs = s.part_slots * s.visits, min(s.part_outputs, rows)
    blocks, scales, _ = bank(s.part_slots, outputs, k, dtype)
    buffers = {
        **{"w": blocks, "scales": scales, "global_scale": None},
        **{"x": random((tokens, k), dtype), "y": mx.zeros((tokens, outputs), dtype)},
        "offsets": np.arange(s.part_slots, dtype=np.int32) * s.visits,
        **{"M": ints(tokens), "N": ints(outputs), "K": ints(k), "num_groups": ints(s.part_slots)},
    }
    name = f"fp_gather_qmm_rhs<{TYPES[dtype]}, 32, 4, 16, 32, 32, 1, 2, true>"
    grid = (-(-outputs // 32), -(-tokens // 16), 1)
    constants = {200: int(tokens % 16 == 0), 201: int(outputs % 32 == 0), 202: int(k % 32 == 0)}
    return Piece(
        lambda e: mlx_launch(e, FP, name, buffers, grid, (32, 2, 1), constants),
        s.experts / s.part_slots * rows / outputs,
    )


def qmv(rows: int, k: int, dtype: mx.Dtype, times: float = 1.0) -> Piece:
    """One token by an affine matrix of 8 bits."""
    matrix = affine(rows, k, dtype)
    buffers = {
        **{"w": matrix.weight, "scales": matrix.scales, "biases": matrix.biases},
        **{"x": random((1, k), dtype), "y": mx.zeros((1, rows), dtype)},
        **{"in_vec_size": ints(k), "out_vec_size": ints(rows), **NO_BATCH},
    }
    fast = "_fast" if rows % 8 == 0 and k % 128 == 0 else ""
    name = f"affine_qmv{fast}<{TYPES[dtype]}, 64, 8, false>"
    grid = (1, -(-rows // 8), 1)
    return Piece(lambda e: mlx_launch(e, AFFINE, name, buffers, grid, (32, 2, 1)), times)


def gemv(rows: int, k: int, dtype: mx.Dtype, times: float = 1.0, *, bias: bool = False) -> Piece:
    """One token by a dense matrix, and bias."""
    bm = 8 if rows >= 4096 else 4
    buffers = {
        **{"mat": random((rows, k), dtype), "in_vec": random((1, k), dtype)},
        **{"bias": random((rows,), dtype), "out_vec": mx.zeros((1, rows), dtype)},
        **{"in_vec_size": ints(k), "out_vec_size": ints(rows), "marix_ld": ints(k)},
        **{"alpha": np.ones(1, np.float32), "beta": np.ones(1, np.float32)},
        **{"batch_ndim": ints(1), "batch_shape": ints(1), "bias_stride": ints(1)},
        **{f"{kind}_batch_stride": longs(0) for kind in ("vector", "matrix", "bias")},
    }
    name = f"gemv<{TYPES[dtype]}, {bm}, 1, 1, 32, 4, 4, false, {str(bias).lower()}>"
    grid = (-(-rows // (4 * bm)), 1, 1)
    return Piece(lambda e: mlx_launch(e, ("gemv.h",), name, buffers, grid, (32, 1, bm)), times)
