"""The mixture of experts, of any pairs of tokens and experts, against float64."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_mlx.backends.cpu import library
from tests.support.native import EXACT, device_of, mxfp4_values, relative, variants

pytestmark = pytest.mark.parametrize("variant", variants())

Array: TypeAlias = NDArray[Any]

EPS, LIMIT = 1e-5, 2.0


@dataclass
class Layer:
    """A layer's experts. blocks and scales of gate_up, then of down."""

    experts: int
    hidden: int
    intermediate: int
    seed: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        e, h, i = self.experts, self.hidden, self.intermediate
        self.arrays = [
            array
            for outputs, inputs in ((2 * i, h), (h, i))
            for array in (
                rng.integers(0, 256, (e, outputs, inputs // 2), np.uint8),
                rng.integers(120, 125, (e, outputs, inputs // 32), np.uint8),
            )
        ]
        self.gate_up_bias = rng.standard_normal((e, 2 * i), np.float32)
        self.down_bias = rng.standard_normal((e, h), np.float32)
        self.norm = rng.random(h, np.float32) + 0.5
        address = library.address
        gate_up, gate_up_scales, down, down_scales = map(address, self.arrays)
        form = library.FORMATS["mxfp4"]
        self.bank = library.Bank(
            library.Matrix(form, 4, 32, 0, 2 * i, h, gate_up, gate_up_scales, None),
            library.Matrix(form, 4, 32, 0, h, i, down, down_scales, None),
            address(self.gate_up_bias),
            address(self.down_bias),
            address(self.norm),
            EPS,
            LIMIT,
        )

    def exact(self, x: Array, row: Array, slot: Array, expert: Array, weight: Array) -> Array:
        """[pairs, hidden] float64"""
        wide = x.astype(np.float64)
        h = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * self.norm
        gate_up, down = (mxfp4_values(*self.arrays[at : at + 2]) for at in (0, 2))
        out = []
        for r, s, e, w in zip(row, slot, expert, weight, strict=True):
            both = gate_up[s] @ h[r] + self.gate_up_bias[e]
            gate, up = np.minimum(both[0::2], LIMIT), np.clip(both[1::2], -LIMIT, LIMIT)
            with np.errstate(over="ignore"):  # 1 / (1 + infinity) is 0, as it should be
                activation = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
            out.append((down[s] @ activation + self.down_bias[e]) * float(w))
        return np.array(out)


def visit(
    variant: str, layer: Layer, x: Array, visits: dict[str, Array], threads: int = 2
) -> Array:
    device, pairs = device_of(variant, threads), len(visits["row"])
    h = np.zeros((pairs, -(-layer.intermediate // 512) * 512), np.float32)
    out = np.full((pairs, layer.hidden), np.nan, np.float32)
    address = library.address
    names = ("row", "slot", "expert", "place", "weight")
    call = library.VisitsCall(
        ctypes.pointer(layer.bank),
        len(x),
        pairs,
        layer.experts,
        *(address(visits[name]) for name in names),
        *map(address, (x, h, out)),
    )
    device.moe_gate_up(device.handle, ctypes.byref(call))
    device.moe_down(device.handle, ctypes.byref(call))
    return out


def random_visits(
    rng: np.random.Generator, rows: int, pairs: int, experts: int
) -> dict[str, Array]:
    def numbers(below: int) -> Array:
        return rng.integers(0, below, pairs, np.int32)

    return {
        "row": numbers(rows),
        "slot": numbers(experts),
        "expert": numbers(experts),
        "place": rng.permutation(pairs).astype(np.int32),
        "weight": rng.random(pairs, np.float32),
    }


@given(st.data())
@settings(max_examples=40)
def test_any_visits_are_exact(variant: str, data: st.DataObject) -> None:
    """Some experts are visited by no pair, some by many, which are multiplied in another way."""
    draw = data.draw
    layer = Layer(
        draw(st.integers(1, 6)),
        32 * draw(st.integers(1, 5)),
        32 * draw(st.integers(1, 5)),
        draw(st.integers(0, 2**32 - 1)),
    )
    rng = np.random.default_rng(layer.seed)
    rows, pairs = draw(st.integers(1, 32)), draw(st.integers(1, 60))
    x = rng.standard_normal((rows, layer.hidden), np.float32)
    visits = random_visits(rng, rows, pairs, layer.experts)
    out = visit(variant, layer, x, visits, draw(st.sampled_from([1, 2, 5])))
    exact = layer.exact(x, *(visits[name] for name in ("row", "slot", "expert", "weight")))
    assert relative(out[visits["place"]], exact) < EXACT


def test_visits_of_a_prompt_are_exact(variant: str) -> None:
    """More pairs of one expert than are packed at a time, one pair of another, none of a third."""
    layer, rng = Layer(4, 160, 96, 2), np.random.default_rng(8)
    x = rng.standard_normal((200, 160), np.float32)
    visits = random_visits(rng, 200, 330, 4)
    visits["slot"][:] = rng.permutation(np.repeat([0, 1, 3], [300, 29, 1]).astype(np.int32))
    out = visit(variant, layer, x, visits)
    exact = layer.exact(x, *(visits[name] for name in ("row", "slot", "expert", "weight")))
    assert relative(out[visits["place"]], exact) < EXACT


def test_a_pair_does_not_depend_on_the_others(variant: str) -> None:
    layer, rng = Layer(3, 160, 96, 0), np.random.default_rng(5)
    x = rng.standard_normal((20, 160), np.float32)
    visits = random_visits(rng, 20, 40, 3)
    together = visit(variant, layer, x, visits)
    for pair in range(40):
        one = {name: array[pair : pair + 1].copy() for name, array in visits.items()}
        one["place"][:] = 0
        alone = visit(variant, layer, x, one)
        np.testing.assert_array_equal(alone[0], together[visits["place"][pair]])


def test_large_gates_and_ups_are_clamped(variant: str) -> None:
    layer, rng = Layer(2, 64, 64, 1), np.random.default_rng(6)
    layer.gate_up_bias[:] = rng.choice([-1e4, 0, 1e4], layer.gate_up_bias.shape)
    x = rng.standard_normal((4, 64), np.float32)
    visits = random_visits(rng, 4, 8, 2)
    out = visit(variant, layer, x, visits)
    exact = layer.exact(x, *(visits[name] for name in ("row", "slot", "expert", "weight")))
    assert relative(out[visits["place"]], exact) < EXACT


def test_pairs_are_added_in_order_with_the_residual(variant: str) -> None:
    rng = np.random.default_rng(7)
    x, residual = (rng.standard_normal(shape, np.float32) for shape in ((5, 4, 37), (5, 37)))
    y = residual.copy()
    address = library.address
    call = library.SumCall(5, 4, 37, address(x), address(y), address(y))
    device = device_of(variant, 5)
    device.sum(device.handle, ctypes.byref(call))
    ordered = ((x[:, 0] + x[:, 1]) + x[:, 2]) + x[:, 3]
    np.testing.assert_array_equal(y, residual + ordered)
