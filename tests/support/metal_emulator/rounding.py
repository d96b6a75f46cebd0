"""half and bfloat arithmetic by hand: every operation in float64, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]


def to_bfloat(x: Floats) -> Floats:
    """The nearest bfloat16, ties to even, as float64; not for subnormal numbers or overflow."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def to_half(x: Floats) -> Floats:
    """The nearest float16 as float64."""
    return np.asarray(x, np.float64).astype(np.float16).astype(np.float64)


def to_float(x: Floats) -> Floats:
    """The nearest float32 as float64."""
    return np.asarray(x, np.float64).astype(np.float32).astype(np.float64)
