"""Rules that turn bytes of other layouts into the released ones. Arrays hold whole rows; bfloat16
is uint16.

GGML keeps a block of 32 MXFP4 values as 17 bytes: the scale, then 16 bytes whose low nibbles are
values 0..15 and whose high nibbles are values 16..31 (ggml-quants.c, block_mxfp4). The release has
value 2i in the low and 2i+1 in the high nibble of byte i, scales apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.spec.config import QuantizationSpec

if TYPE_CHECKING:
    import mlx.core as mx

GGML_BLOCK = 17
"""Bytes of one MXFP4 block: a scale and 16 bytes of values."""

Array = NDArray[Any]


def same(x: Array) -> Array:
    return x


def interleaved(gate: Array, up: Array) -> Array:
    """[E, I, ...] twice -> [E, 2I, ...] with gate in the even rows."""
    return np.stack((gate, up), axis=2).reshape(gate.shape[0], -1, *gate.shape[2:])


def ggml_blocks(raw: Array) -> Array:
    """uint8 [E, rows, 17 B] -> blocks uint8 [E, rows, B, 16]."""
    packed = raw.reshape(*raw.shape[:2], -1, GGML_BLOCK)[..., 1:]
    codes: NDArray[np.uint8] = np.concatenate((packed & 15, packed >> 4), axis=-1)
    low, high = codes[..., 0::2], codes[..., 1::2]
    return low | high << np.uint8(4)


def ggml_scales(raw: Array) -> Array:
    """uint8 [E, rows, 17 B] -> scales uint8 [E, rows, B]."""
    return raw.reshape(*raw.shape[:2], -1, GGML_BLOCK)[..., 0]


def rounded(x: Array) -> Array:
    """Floating point to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = x.astype(np.float32).view(np.uint32)
    nearest = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, nearest).astype(np.uint16)


def narrowed(where: str) -> Callable[[Array], Array]:
    """A rule from float32 to bfloat16 where that loses nothing, else CheckpointError.

    where: opens the error's message.
    """

    def rule(x: Array) -> Array:
        bits = x.view(np.uint32)
        if (bits & 0xFFFF).any():
            raise CheckpointError(
                f"{where} holds float32 values that bfloat16 cannot hold,"
                " so the released layout cannot be written from it"
            )
        return (bits >> 16).astype(np.uint16)

    return rule


def dequantized(spec: QuantizationSpec) -> Callable[..., Array]:
    """MLX's packed weight, scales and biases -> bfloat16 rows."""

    def rule(weight: Array, scales: Array, biases: Array | None = None) -> Array:
        mx = _mlx()

        def numbers(x: Array) -> Any:
            is_float = spec.mode == "affine"
            return mx.array(x).view(mx.bfloat16, stream=mx.cpu) if is_float else mx.array(x)

        values = mx.dequantize(
            mx.array(weight),
            scales=numbers(scales),
            biases=None if biases is None else numbers(biases),
            group_size=spec.group_size,
            bits=spec.bits,
            mode=spec.mode,
            stream=mx.cpu,
        )
        return _bits(values.astype(mx.bfloat16, stream=mx.cpu))

    return rule


def quantized(spec: QuantizationSpec, rows: Array, width: int) -> tuple[Array, ...]:
    """bfloat16 rows of `width` values -> MLX's packed weight, scales and, if affine, biases.

    Always on the CPU, so that the same weights give the same bytes on every machine.
    """
    mx = _mlx()
    bits = mx.array(rows.view(np.uint16).reshape(-1, width))
    values = bits.view(mx.bfloat16, stream=mx.cpu)
    arrays = mx.quantize(
        values, group_size=spec.group_size, bits=spec.bits, mode=spec.mode, stream=mx.cpu
    )
    return tuple(_bits(array) for array in arrays)


def _mlx() -> Any:
    """MLX, set to keep no freed memory: every span would leave some."""
    import mlx.core as mx

    mx.set_cache_limit(0)
    return mx


def _bits(values: mx.array) -> Array:
    """An array of MLX as one of numpy: bfloat16 as its bits, uint16."""
    import mlx.core as mx

    if values.dtype == mx.bfloat16:
        values = values.view(mx.uint16, stream=mx.cpu)
    return np.array(values)
