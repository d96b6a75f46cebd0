"""MLX's own kernels, from the headers in its wheel, run in the emulator and equal float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from . import Emulator
from .harness import needs_clang, values
from .toolchain import mlx_include

KERNELS = Path("mlx/backend/metal/kernels")
pytestmark = [
    needs_clang,
    pytest.mark.skipif(
        not (mlx_include() / KERNELS / "fp_quantized.h").is_file(),
        reason="this MLX comes without its Metal headers",
    ),
]
BODY = "\n".join(
    f'#include "{KERNELS}/{name}"'
    for name in ("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "fp_quantized.h")
)
AFFINE = BODY.replace("fp_quantized.h", "quantized.h")
K = 2880


def ints(*numbers: int) -> npt.NDArray[Any]:
    """An int32 argument."""
    return np.array(numbers, np.int32)


def longs(*numbers: int) -> npt.NDArray[Any]:
    """An int64 argument."""
    return np.array(numbers, np.int64)


def weights(*shape: int) -> mx.array:
    """Random weights of about a checkpoint's size."""
    rng = np.random.default_rng(7)
    return mx.array((rng.standard_normal(shape) * 0.02).astype(np.float32))


NO_BATCH = {
    name: array
    for kind in ("x", "w")
    for name, array in (
        (f"{kind}_batch_ndims", ints(0)),
        (f"{kind}_shape", ints(0)),
        (f"{kind}_strides", longs(0)),
    )
} | {"s_strides": longs(0), "b_strides": longs(0)}


@pytest.mark.parametrize("order", ["forward", "random"])
def test_gathered_mxfp4_matvec(order: str) -> None:
    experts, rows, words = 4, 40, K // 8
    packed, scales = mx.quantize(weights(experts, rows, K), group_size=32, bits=4, mode="mxfp4")[:2]
    x = np.random.default_rng(8).standard_normal((1, K)).astype(np.float32)
    chosen = np.array([2, 0, 3, 1], np.uint32)
    y = np.zeros((4, rows), np.float32)
    buffers = {
        **{"w": np.array(packed), "scales": np.array(scales), "global_scale": None},
        **{"x": x, "y": y, "lhs_indices": np.zeros(4, np.uint32), "rhs_indices": chosen},
        **{"in_vec_size": ints(K), "out_vec_size": ints(rows)},
        **{"x_batch_ndims": ints(1), "x_shape": ints(1, 1, K), "x_strides": longs(K, K, 1)},
        **{"w_batch_ndims": ints(1), "w_shape": ints(experts, rows, words)},
        **{"w_strides": longs(rows * words, words, 1), "s_strides": longs(rows * K // 32, 1, 1)},
        **{"batch_ndims": ints(1), "batch_shape": ints(4)},
        **{"lhs_strides": longs(1), "rhs_strides": longs(1)},
    }
    launch = Emulator(order=order).launch(
        BODY,
        "fp_gather_qmv<float, 32, 4>",
        buffers,
        (32, 2 * (rows // 8), 4),
        (32, 2, 1),
        include=[mlx_include()],
        initialised=False,
    )
    exact = mx.dequantize(packed, scales, group_size=32, bits=4, mode="mxfp4")
    expected = np.einsum("k,enk->en", x[0].astype(np.float64), values(exact)[chosen])
    np.testing.assert_allclose(y, expected, atol=1e-6 * np.abs(expected).max())
    assert launch.unwritten == {"y": 0}


def test_affine_matvec() -> None:
    rows = 72
    packed, scales, biases = mx.quantize(weights(rows, K), group_size=64, bits=8)
    x = np.random.default_rng(8).standard_normal((1, K)).astype(np.float32)
    y = np.zeros((1, rows), np.float32)
    buffers = {
        **{"w": np.array(packed), "scales": np.array(scales), "biases": np.array(biases)},
        **{"x": x, "y": y, "in_vec_size": ints(K), "out_vec_size": ints(rows)},
        **NO_BATCH,
    }
    grid = (32, 2 * (rows // 8), 1)
    name = "affine_qmv<float, 64, 8, false>"
    Emulator().launch(AFFINE, name, buffers, grid, (32, 2, 1), include=[mlx_include()])
    exact = values(mx.dequantize(packed, scales, biases, group_size=64, bits=8))
    expected = x.astype(np.float64) @ exact.T.astype(np.float64)
    np.testing.assert_allclose(y, expected, atol=1e-6 * np.abs(expected).max())


def test_affine_matmul_on_simdgroup_matrices() -> None:
    rows, tokens, k = 72, 40, 320
    packed, scales, biases = mx.quantize(weights(rows, k), group_size=64, bits=4)
    x = np.random.default_rng(8).standard_normal((tokens, k)).astype(np.float32)
    y = np.zeros((tokens, rows), np.float32)
    buffers = {
        **{"w": np.array(packed), "scales": np.array(scales), "biases": np.array(biases)},
        **{"x": x, "y": y, "K": ints(k), "N": ints(rows), "M": ints(tokens)},
        **NO_BATCH,
    }
    grid = (32 * 3, 2 * 2, 2)
    name = "affine_qmm_t<float, 64, 4, false, false>"
    launch = Emulator(order="random").launch(
        AFFINE, name, buffers, grid, (32, 2, 2), include=[mlx_include()]
    )
    exact = values(mx.dequantize(packed, scales, biases, group_size=64, bits=4))
    expected = x.astype(np.float64) @ exact.T.astype(np.float64)
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.abs(expected).max())
    assert launch.threadgroup_bytes == 2 * 32 * (32 + 4) * 4
    assert launch.multiplications > 0
