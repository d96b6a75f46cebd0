"""Each rule against hand-written bytes, the formats' own libraries and float64."""

from __future__ import annotations

from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from convert import rules
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.spec.config import QuantizationSpec
from tests.support.released_tensors import _dequantized as dequantized_in_float64
from tests.support.released_tensors import mxfp4, widened

Array = NDArray[Any]

RECIPES = [QuantizationSpec(bits, 64, "affine") for bits in (4, 5, 6, 8)]
OTHERS = [
    QuantizationSpec(2, 32, "affine"),
    QuantizationSpec(3, 128, "affine"),
    QuantizationSpec(4, 32, "mxfp4"),
    QuantizationSpec(8, 32, "mxfp8"),
    QuantizationSpec(4, 16, "nvfp4"),
]


def _rows(rows: int, width: int, seed: int) -> Array:
    """Random bfloat16 as uint16, of magnitudes from 2^-6 to 2^3."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, width)) * 2.0 ** rng.integers(-6, 3, (rows, 1))
    return np.array(mx.array(values.astype(np.float32)).astype(mx.bfloat16).view(mx.uint16))


def test_same_is_the_bytes_themselves() -> None:
    x = _rows(3, 4, 0)
    assert rules.same(x) is x


def test_interleaved_has_gate_in_even_and_up_in_odd_rows() -> None:
    gate, up = np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]])
    assert rules.interleaved(gate, up).tolist() == [[1, 5, 2, 6], [3, 7, 4, 8]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (3, 4, 2, 16)])
def test_interleaved_of_any_rank_is_the_loop_over_rows(shape: tuple[int, ...]) -> None:
    gate = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    up = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    both = rules.interleaved(gate, up)
    assert (both.dtype, both.shape) == (np.uint8, (shape[0], 2 * shape[1], *shape[2:]))
    for expert in range(shape[0]):
        for row in range(shape[1]):
            np.testing.assert_array_equal(both[expert, 2 * row], gate[expert, row])
            np.testing.assert_array_equal(both[expert, 2 * row + 1], up[expert, row])


def test_a_ggml_block_by_hand() -> None:
    """Values 0 to 15 are codes 0 to 15, values 16 to 31 the same backwards; scale 120."""
    raw = np.array([120, *[(15 - i) << 4 | i for i in range(16)]], np.uint8).reshape(1, 1, 17)
    blocks = rules.ggml_blocks(raw)
    first = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert blocks.tolist() == [[[[*first, 0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x01]]]]
    assert blocks.dtype == np.uint8
    assert rules.ggml_scales(raw).tolist() == [[[120]]]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    experts=st.integers(1, 3),
    rows=st.integers(1, 4),
    count=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_ggml_blocks_are_the_numbers_that_gguf_reads(
    experts: int, rows: int, count: int, seed: int
) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, (experts, rows, 17 * count), np.uint8)
    raw[..., ::17] %= 252  # beyond, float32 overflows
    blocks, scales = rules.ggml_blocks(raw), rules.ggml_scales(raw)
    assert blocks.shape == (experts, rows, count, 16)
    ours = mxfp4(blocks.reshape(experts, rows, -1), scales)
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(ours, theirs.astype(np.float64))


def _nearest(bits: NDArray[np.uint32]) -> Array:
    """float32 bits -> bfloat16 bits, by the distances to both neighbours in float64."""
    lower = bits >> 16
    sign, magnitude = lower & 0x8000, lower & 0x7FFF
    value = np.abs(bits.view(np.float32).astype(np.float64))

    def number(code: Array) -> Array:
        """Beyond the largest number comes 2^128, as if there were another exponent."""
        finite = np.minimum(code, 0x7F7F).astype(np.uint32) << 16
        return np.where(code == 0x7F80, 2.0**128, finite.view(np.float32).astype(np.float64))

    below, above = value - number(magnitude), number(magnitude + 1) - value
    up = (above < below) | ((above == below) & (magnitude % 2 == 1))
    return np.asarray(sign | np.where(up, magnitude + 1, magnitude)).astype(np.uint16)


def test_rounded_at_below_and_above_every_halfway_case() -> None:
    upper = np.arange(1 << 16, dtype=np.uint32)
    upper = upper[(upper & 0x7F80) != 0x7F80]
    for lower in (0, 1, 0x4000, 0x7FFF, 0x8000, 0x8001, 0xC000, 0xFFFF):
        bits = upper << 16 | lower
        found = rules.rounded(bits.view(np.float32))
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, _nearest(bits))


def test_rounded_keeps_infinity_and_nan() -> None:
    infinities = np.array([np.inf, -np.inf], np.float32)
    assert rules.rounded(infinities).tolist() == [0x7F80, 0xFF80]
    for bits in (0x7F800001, 0x7F80FFFF, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF):
        (found,) = rules.rounded(np.array([bits], np.uint32).view(np.float32))
        assert found & 0x7F80 == 0x7F80, "no NaN"
        assert found & 0x7F != 0, "infinity"
        assert found >> 15 == bits >> 31


def test_rounded_takes_every_float16() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    wide = halves.astype(np.float32)
    np.testing.assert_array_equal(rules.rounded(halves), _nearest(wide.view(np.uint32)))


def test_narrowed_takes_every_bfloat16_back() -> None:
    codes = np.arange(1 << 16, dtype=np.uint32)
    wide = (codes << 16).view(np.float32)
    np.testing.assert_array_equal(rules.narrowed("x")(wide), codes.astype(np.uint16))


@pytest.mark.parametrize("bit", range(16))
def test_narrowed_refuses_a_bit_that_would_be_lost(bit: int) -> None:
    x = np.ones((2, 3), np.float32)
    x.view(np.uint32)[1, 2] |= 1 << bit
    with pytest.raises(CheckpointError, match=r"^m\.gguf: tensor the\.name holds float32 values"):
        rules.narrowed("m.gguf: tensor the.name")(x)


def _parts(spec: QuantizationSpec, rows: Array) -> dict[str, tuple[str, Array]]:
    names = {"weight": "U32", "scales": "BF16" if spec.mode == "affine" else "U8", "biases": "BF16"}
    parts = rules.quantized(spec, rows, rows.shape[1])
    return {name: (names[name], part) for name, part in zip(names, parts, strict=False)}


def _numbers(spec: QuantizationSpec, parts: dict[str, tuple[str, Array]]) -> NDArray[np.float64]:
    entry = {"bits": spec.bits, "group_size": spec.group_size, "mode": spec.mode}
    return dequantized_in_float64(parts["weight"][1], parts["scales"], parts.get("biases"), entry)


@pytest.mark.parametrize("spec", RECIPES, ids=lambda spec: f"{spec.bits} bits")
def test_quantized_is_within_a_step_of_every_number(spec: QuantizationSpec) -> None:
    rows = _rows(24, 192, spec.bits)
    parts = _parts(spec, rows)
    assert [(part.dtype, part.shape) for _, part in parts.values()] == [
        (np.uint32, (24, 192 * spec.bits // 32)),
        (np.uint16, (24, 3)),
        (np.uint16, (24, 3)),
    ]
    exact = widened(rows)
    step = np.repeat(np.abs(widened(parts["scales"][1])), 64, axis=-1)
    error = np.abs(_numbers(spec, parts) - exact) / step
    # MLX puts zero on a step, which moves the other ends by up to one; scales are bfloat16.
    assert error.max() < 1 + 2**-8 * 2**spec.bits
    assert 0.25 < np.sqrt((error**2).mean()) < 0.4


@pytest.mark.parametrize("spec", RECIPES, ids=lambda spec: f"{spec.bits} bits")
def test_quantized_rows_do_not_depend_on_those_beside_them(spec: QuantizationSpec) -> None:
    rows = _rows(7, 64, 5)
    whole = rules.quantized(spec, rows, 64)
    for cut in (1, 3, 6):
        first, second = (rules.quantized(spec, part, 64) for part in (rows[:cut], rows[cut:]))
        for a, b, c in zip(first, second, whole, strict=True):
            np.testing.assert_array_equal(np.concatenate((a, b)), c)


def test_quantized_takes_the_bytes_of_rows_as_they_are_read() -> None:
    rows = _rows(4, 128, 3)
    spec = QuantizationSpec(8, 64, "affine")
    raw = rows.reshape(-1).view(np.uint8)
    for a, b in zip(rules.quantized(spec, raw, 128), rules.quantized(spec, rows, 128), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("spec", [*RECIPES, *OTHERS], ids=lambda s: f"{s.mode} {s.bits}")
def test_dequantized_is_float64_rounded(spec: QuantizationSpec) -> None:
    rows = _rows(9, 256, 11)
    parts = _parts(spec, rows)
    found = rules.dequantized(spec)(*(part for _, part in parts.values()))
    assert (found.dtype, found.shape) == (np.uint16, (9, 256))
    exact = _numbers(spec, parts)
    # MLX multiplies and adds in bfloat16: one rounding each.
    largest = np.abs(exact).max(axis=-1, keepdims=True)
    assert (np.abs(widened(found) - exact) <= 2**-7 * largest).all()
