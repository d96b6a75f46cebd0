"""The experts' kernels, in the interpreter, against float64 from the file's bytes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from gptoss_mlx.backends.torch import mxfp4
from gptoss_mlx.backends.torch.operands import Bank
from gptoss_mlx.backends.torch.reference import group_pairs
from gptoss_mlx.backends.torch.triton import moe
from gptoss_mlx.backends.torch.triton.capability import nearest
from tests.backends.torch.test_mxfp4 import numbers
from tests.support import triton_builds
from tests.support.compiled import CAPABILITIES

pytestmark = pytest.mark.torch

CLOSE = {torch.float32: 1e-6, torch.bfloat16: 5e-3}
"""Relative L2; the interpreter cuts bfloat16 off where a card rounds."""
LIMIT = 7.0


@dataclass(frozen=True)
class Case:
    """`ids` [tokens, k] are in `visits`' slots; weights and biases float64, by slot and expert."""

    bank: Bank
    ids: torch.Tensor
    visits: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def case(
    hidden: int, width: int, visits: list[list[int]], dtype: torch.dtype, slots: int = 3
) -> Case:
    """Five experts, of which some lie in slots, in another order."""
    make = torch.Generator().manual_seed(hidden + width)
    arrays, weights = [], []
    for outputs, inputs in ((2 * width, hidden), (hidden, width)):
        blocks = torch.randint(256, (slots, outputs, inputs // 2), generator=make).byte()
        scales = torch.randint(116, 124, (slots, outputs, inputs // 32), generator=make).byte()
        arrays += mxfp4.pack(blocks, scales)
        weights.append(numbers(blocks, scales))
    biases = [torch.randn(5, n, generator=make).to(dtype) for n in (2 * width, hidden)]
    slot_of = torch.tensor(visits, dtype=torch.int32)
    held = torch.tensor([4, 0, 3, 1, 2], dtype=torch.int32)
    return Case(Bank(*arrays, *biases), held[slot_of.long()], slot_of, *weights)


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def gate_up(case: Case, x: torch.Tensor) -> torch.Tensor:
    rows = []
    for token, ids, slots in zip(x.double(), case.ids, case.visits, strict=True):
        for expert, slot in zip(ids.tolist(), slots.tolist(), strict=True):
            y = case.gate_up[slot] @ token + case.bank.gate_up_bias[expert].double()
            gate, up = y[0::2].clamp(max=LIMIT), y[1::2].clamp(-LIMIT, LIMIT)
            rows.append(gate / (1 + torch.exp(-1.702 * gate)) * (up + 1))
    return torch.stack(rows)


def down(case: Case, h: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    rows = []
    for pair, (expert, slot) in enumerate(
        zip(case.ids.flatten().tolist(), case.visits.flatten().tolist(), strict=True)
    ):
        y = case.down[slot] @ h[pair].double() + case.bank.down_bias[expert].double()
        rows.append(y * weights.flatten()[pair].double())
    return torch.stack(rows).reshape(*case.ids.shape, -1)


SPREAD = [[0, 2], [2, 1], [1, 2], [2, 0], [0, 2]]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    ("hidden", "width", "tokens", "tile"),
    [
        (64, 96, 1, 8),
        (96, 64, 2, 16),
        (192, 32, 3, 32),
        (352, 32, 2, 8),
        (160, 32, 5, 64),
    ],
)
def test_they_are_the_files_weights_times_the_inputs(
    hidden: int, width: int, tokens: int, tile: int, dtype: torch.dtype
) -> None:
    """Inputs that are none, some and all of what a program takes at a time, and a rest."""
    made = case(hidden, width, SPREAD[:tokens], dtype)
    make = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, hidden, generator=make).to(dtype)
    groups = group_pairs(made.visits, 3, tile)
    got = moe.moe_gate_up(x, made.bank, groups, made.ids, LIMIT)
    assert got.dtype == dtype
    assert off(got, gate_up(made, x)) < CLOSE[dtype]

    h = torch.randn(tokens * 2, width, generator=make).to(dtype)
    weights = torch.rand(tokens, 2, generator=make)
    summands = moe.moe_down(h, made.bank, groups, made.ids, weights)
    assert summands.dtype == torch.float32
    assert off(summands, down(made, h, weights)) < 1e-6


def test_the_models_own_inputs() -> None:
    """2880 of them, in bfloat16, are eleven times 256 and a rest."""
    made = case(2880, 32, [[1]], torch.bfloat16)
    x = torch.randn(1, 2880, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = moe.moe_gate_up(x, made.bank, group_pairs(made.visits, 3, 8), made.ids, LIMIT)
    assert off(got, gate_up(made, x)) < CLOSE[torch.bfloat16]


def test_a_slot_with_more_pairs_than_a_tile_and_one_with_none() -> None:
    visits = [[2, 0]] * 11
    made = case(64, 32, visits, torch.float32)
    x = torch.randn(11, 64, generator=torch.Generator().manual_seed(0))
    groups = group_pairs(made.visits, 3, 8)
    assert groups.slot.tolist() == [0, 0, 2, 2, -1]
    assert off(moe.moe_gate_up(x, made.bank, groups, made.ids, LIMIT), gate_up(made, x)) < 1e-6


def test_tiles_not_in_use_change_nothing() -> None:
    """All pairs visit one slot, so that tiles are left; their range of pairs is empty."""
    made = case(64, 32, [[1], [1], [1]], torch.float32)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    groups = group_pairs(made.visits, 3, 8)
    assert groups.slot.tolist() == [1, -1, -1]
    assert off(moe.moe_gate_up(x, made.bank, groups, made.ids, LIMIT), gate_up(made, x)) < 1e-6


@pytest.mark.parametrize("scale", [0, 1, 54, 55, 127, 188, 189, 254])
def test_scales_are_powers_of_two_to_the_last(scale: int) -> None:
    """Numbers up to 1.5, so that 2^127 of them are still float32."""
    make = torch.Generator().manual_seed(scale)
    codes = torch.randint(4, (2, 32, 16), generator=make) * 17
    scales = torch.full((1, 32, 1), scale, dtype=torch.uint8)
    blocks = codes[:1].byte()
    other = mxfp4.pack(torch.zeros(1, 64, 16).byte(), torch.zeros(1, 64, 1).byte())
    bank = Bank(*other, *mxfp4.pack(blocks, scales), torch.zeros(1, 64), torch.zeros(1, 32))
    h = 2.0 ** (120 - scale) * torch.rand(1, 32, generator=make).bfloat16().float()
    if scale > 240:
        h = h.clamp(min=2.0**-126)
    ids = torch.zeros(1, 1, dtype=torch.int32)
    got = moe.moe_down(h, bank, group_pairs(ids, 1, 8), ids, torch.ones(1, 1))
    assert off(got[0, 0], numbers(blocks, scales)[0] @ h[0].double()) < 1e-6


def test_a_gate_that_is_not_a_number_stays_none() -> None:
    made = case(64, 32, [[0]], torch.float32)
    x = torch.full((1, 64), torch.nan)
    got = moe.moe_gate_up(x, made.bank, group_pairs(made.visits, 3, 8), made.ids, LIMIT)
    assert got.isnan().all()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_tile_holds_what_visits_a_slot_on_average(capability: int) -> None:
    tiles = sorted(nearest(moe.TABLE, capability))
    assert tiles == [8, 16, 32, 64]
    for pairs, slots, tile in ((4, 128, 8), (128, 32, 8), (300, 32, 16), (8192, 128, 64)):
        assert moe.tile_for(pairs, slots, capability) == tile
    assert moe.tile_for(8192, 32, capability) == 64


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_shape_launched_is_built(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe, "capability_of", lambda device: capability)
    built = [
        (build.kernel, dict(build.constants), dict(build.options), build.types["x"])
        for build in triton_builds.moe(capability)
    ]
    for dtype, name in ((torch.bfloat16, "*bf16"), (torch.float32, "*fp32")):
        for tile in nearest(moe.TABLE, capability):
            for tiles in (1, 4, 128):
                shape = moe._shape(torch.empty(1, dtype=dtype), tile, tiles, 2880)
                constants = moe._constants(2880, 2880, tile, shape)
                options = {"num_warps": constants.pop("num_warps")}
                assert (moe.down_kernel, constants, options, name) in built
