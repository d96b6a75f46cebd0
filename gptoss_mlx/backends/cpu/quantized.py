"""Dequantization of matrices in the formats that the kernels lack.

Codes of `bits` bits are stored consecutively, the lowest bits first. mxfp8: e4m3 codes times a
scale that is a power of two (e8m0); nvfp4: e2m1 codes times an e4m3 scale.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.spec.config import QuantizationSpec

Array: TypeAlias = NDArray[Any]

_BIAS = 127  # of an e8m0 exponent
_MAGNITUDES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def dequantize(codes: Array, scales: Array, spec: QuantizationSpec) -> Array:
    """A matrix in float32, [outputs, inputs].

    codes [outputs, inputs * bits / 8] and scales [outputs, inputs / group_size], both uint8
    """
    if spec.bits == 4:
        pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
        values = _E2M1[pairs]
    else:
        values = _E4M3[codes]
    wide = (
        _E4M3[scales]
        if spec.mode == "nvfp4"
        else np.ldexp(np.float32(1), scales.astype(np.int32) - _BIAS)
    )
    matrix: Array = values * np.repeat(wide, spec.group_size, axis=1)
    return matrix


def _e4m3() -> Array:
    """The value of every e4m3 code: sign, four bits of exponent, three of mantissa; no infinity."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[code & 127 == 127] = np.nan
    return np.where(code < 128, values, -values).astype(np.float32)


_E4M3 = _e4m3()
_E2M1 = np.array([*_MAGNITUDES, *(-value for value in _MAGNITUDES)], np.float32)
