"""x W^T + bias in Triton's interpreter, against float64; and what its tiles are chosen for."""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends.torch import reference
from gptoss_mlx.backends.torch.agreement import relative
from gptoss_mlx.backends.torch.operands import Matrix
from gptoss_mlx.backends.torch.triton import linear
from tests.support import triton_builds
from tests.support.compiled import CAPABILITIES

pytestmark = pytest.mark.torch

HALF, FULL = torch.bfloat16, torch.float32
HALF_UNIT = 2**-8  # of bfloat16's last bit


def normal(*shape: int, dtype: torch.dtype = FULL) -> torch.Tensor:
    """Random numbers among others that are not: whatever is read beside them shows."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    guarded = torch.full((values.numel() + 512,), torch.nan, dtype=dtype)
    inside = guarded[256:-256].view(shape)
    return inside.copy_(values)


def matrix_of_bytes(rows: int, inputs: int, group: int, dtype: torch.dtype = HALF) -> Matrix:
    random = torch.Generator().manual_seed(rows)
    codes = torch.randint(256, (rows, inputs), generator=random, dtype=torch.uint8)
    scales = normal(rows, inputs // group, dtype=dtype)
    return Matrix(codes, scales, -scales * 127 + normal(rows, inputs // group, dtype=dtype))


def oracle(x: torch.Tensor, matrix: Matrix, bias: torch.Tensor | None) -> torch.Tensor:
    """In float64."""
    weight = matrix.weight.double()
    if matrix.scales is not None and matrix.biases is not None:
        scales, biases = (
            one.double().repeat_interleave(matrix.group, dim=1)
            for one in (matrix.scales, matrix.biases)
        )
        weight = weight * scales + biases
    y = x.double() @ weight.T
    return y if bias is None else y + bias.double()


def size(x: torch.Tensor, matrix: Matrix, bias: torch.Tensor | None) -> float:
    """How large the sums would be if nothing in them cancelled: codes and biases of a matrix do."""
    absolute = Matrix(matrix.weight.abs())
    if matrix.scales is not None and matrix.biases is not None:
        absolute = Matrix(matrix.weight, matrix.scales.abs(), matrix.biases.abs())
    return float(oracle(x.abs(), absolute, None if bias is None else bias.abs()).norm())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 5) | st.sampled_from([8, 9, 32, 33, 41]),
    rows=st.integers(1, 40),
    inputs=st.sampled_from([32, 64, 96, 192, 320]),
    group=st.sampled_from([0, 32, 64]),
    dtype=st.sampled_from([HALF, FULL]),
    with_bias=st.booleans(),
)
def test_float32_is_exact_but_for_sums(
    tokens: int, rows: int, inputs: int, group: int, dtype: torch.dtype, with_bias: bool
) -> None:
    """Also of bfloat16 and of bytes, however many tokens there are."""
    group = group if inputs % max(group, 1) == 0 else 32
    x = normal(tokens, inputs, dtype=dtype)
    floats = Matrix(normal(rows, inputs, dtype=dtype))
    matrix = matrix_of_bytes(rows, inputs, group, dtype) if group else floats
    bias = normal(rows, dtype=dtype) if with_bias else None
    y = linear.linear(x, matrix, bias, FULL)
    assert y.dtype == FULL
    off = float((y.double() - oracle(x, matrix, bias)).norm())
    assert off < 3e-7 * size(x, matrix, bias)


@pytest.mark.parametrize("tokens", [1, 5, 17])
@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_bfloat16_is_rounded_once(tokens: int, group: int) -> None:
    x, bias = normal(tokens, 384, dtype=HALF), normal(33, dtype=HALF)
    floats = Matrix(normal(33, 384, dtype=HALF))
    matrix = matrix_of_bytes(33, 384, group) if group else floats
    y, exact = linear.linear(x, matrix, bias), oracle(x, matrix, bias)
    assert y.dtype == HALF
    assert ((y - exact).abs() <= HALF_UNIT * exact.abs() + 1e-5).all()


@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_of_many_tokens_the_matrix_is_rounded_too(group: int) -> None:
    x, bias = normal(40, 384, dtype=HALF), normal(33, dtype=HALF)
    floats = Matrix(normal(33, 384, dtype=HALF))
    matrix = matrix_of_bytes(33, 384, group) if group else floats
    assert relative(linear.linear(x, matrix, bias), oracle(x, matrix, bias)) < HALF_UNIT


@pytest.mark.parametrize("with_bias", [True, False])
def test_many_tokens_take_a_slice_of_rows_at_a_time(
    with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    widened: list[int] = []

    class Widen:
        def __getitem__(self, grid: tuple[int]) -> Any:
            def run(codes: torch.Tensor, *others: Any, **named: Any) -> None:
                widened.append(len(codes))
                widen[grid](codes, *others, **named)

            return run

    widen = linear._widen
    monkeypatch.setattr(linear, "_widen", Widen())
    monkeypatch.setattr(linear, "SCRATCH", 7 * 96 * 4)
    x, matrix = normal(35, 96), matrix_of_bytes(17, 96, 32, FULL)
    bias = normal(17) if with_bias else None
    assert relative(linear.linear(x, matrix, bias), oracle(x, matrix, bias)) < 2e-6
    assert widened == [7, 7, 3]


def test_x_may_be_strided() -> None:
    x, matrix = normal(4, 96, dtype=HALF)[::2, :64], Matrix(normal(5, 64, dtype=HALF))
    assert relative(linear.linear(x, matrix, None, FULL), oracle(x, matrix, None)) < 2e-6


def test_the_assembly_makes_of_each_byte_its_number() -> None:
    """Its ten instructions, done here as the PTX manual says, for all bytes in all places."""
    for byte in range(256):
        codes = bytes((byte, 255 - byte, byte ^ 0x55, (byte * 7) % 256))
        assert _four(linear.FOUR_BYTES.value, codes) == list(map(float, codes))


def _four(assembly: str, codes: bytes) -> list[float]:
    held = {"$2": codes}
    for line in assembly.splitlines()[2:-1]:
        name, *operands = re.findall(r"[$\w.]+", line)
        a, b, *rest = operands[1:]
        if name == "prmt.b32":
            both = held[a] + int(b, 16).to_bytes(4, "little")
            held[operands[0]] = bytes(both[int(digit, 16)] for digit in reversed(rest[0][2:]))
        elif name == "sub.f32":
            (x,) = struct.unpack("<f", held[a])
            (y,) = struct.unpack(">f", bytes.fromhex(b[2:]))
            held[operands[0]] = struct.pack("<f", x - y)
        else:
            assert name == "cvt.rn.bf16x2.f32"
            high, low = (torch.frombuffer(bytearray(held[one]), dtype=FULL) for one in (a, b))
            pair = torch.cat((low, high)).to(HALF)
            held[operands[0]] = pair.view(torch.uint8).numpy().tobytes()
    pairs = torch.frombuffer(bytearray(held["$0"] + held["$1"]), dtype=HALF)
    return pairs.tolist()


@pytest.mark.parametrize(("rows", "inputs"), [(5120, 2880), (2880, 4096), (201088, 2880)])
def test_enough_bytes_are_on_their_way(rows: int, inputs: int) -> None:
    """At least 32 KB on each of an H200's 132 multiprocessors, as far as memory there goes."""
    (one,) = (
        one
        for one in triton_builds.linear(90)
        if one.constants == linear._constants(linear.tile(90, 1, rows, 0, 2), 0, rows < 10**5)
    )
    shape = linear.tile(90, 1, rows, 0, 2)
    step = shape.slices * shape.width * 2
    x, w = step * shape.tokens, step * shape.rows
    resident = min(228 * 1024 // ((shape.stages - 1) * (x + w) + 1024), rows / shape.rows / 132)
    assert one.options == {"num_warps": shape.warps, "num_stages": shape.stages}
    assert resident * (shape.stages - 2) * w >= 32 * 1024


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tiles_cover_a_group_and_a_tensor_core(capability: int) -> None:
    for tokens in (1, 8, 9, 32):
        for rows in (32, 128, 2880, 5120, 201088):
            for group in (0, 32, 64, 128):
                shape = linear.tile(capability, tokens, rows, group, 2)
                assert shape.width == group or not group
                assert shape.rows % 16 == 0
                assert shape.tokens >= min(tokens, 32)
                assert shape.warps == shape.slices


@pytest.mark.parametrize("group", [0, 32])
def test_the_references_logits_are_not_rounded_to_bfloat16(
    group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "BLOCK", 10)
    matrix = matrix_of_bytes(37, 96, group) if group else Matrix(normal(37, 96, dtype=HALF))
    x, bias = normal(3, 96, dtype=HALF), normal(37, dtype=HALF)
    y = reference.linear(x, matrix, bias, FULL)
    assert y.dtype == FULL
    expected = oracle(x, matrix, bias)
    assert float((y - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
