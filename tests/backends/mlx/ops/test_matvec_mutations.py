"""Faults put into the dense decode kernels, one at a time: reported, or giving other numbers."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops import router_topk
from gptoss_mlx.backends.mlx.ops.decode_qkv import Heads
from gptoss_mlx.backends.mlx.ops.metal import Factory
from tests.backends.mlx.ops import test_decode_qkv as qkv
from tests.backends.mlx.ops import test_decode_router as router
from tests.backends.mlx.ops import test_quantized_matvec as matvec
from tests.backends.mlx.ops.matrices import affine
from tests.backends.mlx.ops.test_mutations import Mutation, mutated
from tests.support.metal_emulator import Emulator, MetalError, available

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def matvec_error(factory: Factory) -> float:
    """Of several threadgroups, the last not full, and of vectors held in parts."""
    whole = matvec.error(factory, 69, 1056, 2, affine(8, 32), mx.float32)
    return max(whole, matvec.error(factory, 37, 1056, 8, affine(4, 32), mx.float32))


def packed_error(factory: Factory) -> float:
    """Of codes that lie across words."""
    return matvec.error(factory, 37, 64, 1, affine(6, 32), mx.float32)


def qkv_error(factory: Factory) -> float:
    return max(qkv.errors(factory, Heads(4, 2, 64), 64, 3, None, mx.float32, 131_000))


def router_error(factory: Factory) -> float:
    return max(router.errors(factory, 9, 64, 2, None, mx.float32))


def topk_error(factory: Factory) -> float:
    """1 where another expert is chosen than first in a stable order, else the weights' error."""
    logits = np.round(np.random.default_rng(0).standard_normal((3, 70)), 1).astype(np.float32)
    logits[1, 3], logits[2], logits[2, ::2] = np.nan, 0.0, -0.0
    ids, weights = router_topk.metal(factory)(mx.array(logits), 4)
    expected = np.argsort(-logits, axis=-1, kind="stable")[:, :4]
    if not np.array_equal(np.array(ids), expected):
        return 1.0
    shares = np.exp(np.take_along_axis(logits, expected, axis=-1).astype(np.float64))
    return float(np.abs(np.array(weights) - shares / shares.sum(-1, keepdims=True)).max())


ERRORS = {
    "quantized_matvec": matvec_error,
    "decode_qkv": qkv_error,
    "decode_router": router_error,
    "router_topk": topk_error,
}
MUTATIONS = {
    "no barrier before a part is replaced": Mutation("quantized_matvec", BARRIER, "", 0),
    "no barrier after a part is loaded": Mutation("quantized_matvec", BARRIER, "", 1),
    "no barrier before the sums are read": Mutation("quantized_matvec", BARRIER, "", 2),
    "a barrier for device memory only": Mutation(
        "quantized_matvec", "mem_flags::mem_threadgroup", "mem_flags::mem_device", 1
    ),
    "a simdgroup's barrier only": Mutation(
        "quantized_matvec", "threadgroup_barrier(", "simdgroup_barrier(", 2
    ),
    "a unit too many": Mutation("quantized_matvec", "unit >= end", "unit > end"),
    "a unit before the row": Mutation("quantized_matvec", "unit < 0 ||", "unit < -1 ||"),
    "units of two lines before": Mutation("quantized_matvec", "- row * UNITS % LINE", "- LINE"),
    "a part begun too late": Mutation("quantized_matvec", "part * WINDOW - LAST", "part * WINDOW"),
    "squares counted twice": Mutation("quantized_matvec", "count_squares && fresh", "true"),
    "a group too late": Mutation(
        "quantized_matvec",
        "(K / GROUP) + uint(unit) / LANES",
        "(K / GROUP) + uint(unit) / LANES + 1",
    ),
    "another lane's scales": Mutation(
        "quantized_matvec", "(32 * round + place.lane) / LANES", "place.lane / LANES"
    ),
    "a bias for each unit's neighbour": Mutation("quantized_matvec", "token * PART + at]", "at]"),
    "the first row for a missing one": Mutation("quantized_matvec", "r < present ?", "true ?"),
    "the next row": Mutation("quantized_matvec", "r * STEP : 0", "r * (STEP + 1) : 0"),
    "rows of the next threadgroup": Mutation("quantized_matvec", "min(ROWS, N - row)", "ROWS"),
    "an unweighted norm": Mutation("quantized_matvec", "v *= float4(weights[i]);", ""),
    "sums of one lane": Mutation("quantized_matvec", "other < QUADS;", "other < QUADS / 2;"),
    "a pair turned backwards": Mutation("decode_qkv", "a * sine +", "-a * sine +"),
    "turned values": Mutation("decode_qkv", "head < HEADS + KV_HEADS", "head < N / HEAD_DIM"),
    "one position for all": Mutation("decode_qkv", "+ token - sequence)", "- sequence)"),
    "an angle of one rounding": Mutation("decode_qkv", "left) + rest", "left)"),
    "a shorter 2 pi": Mutation("decode_qkv", "fma(-turns, 0.0019353072f, left)", "left"),
    "keys among queries": Mutation("decode_qkv", "kv_head = head - HEADS;", "kv_head = head;"),
    "a vector without its norm": Mutation("decode_router", "* norm * float", "* float"),
    "every threadgroup's vector": Mutation("decode_router", "if (row == 0)", ""),
    "a logit too few": Mutation("decode_router", "tokens * count;", "tokens * count - 1;"),
    "the last of equals": Mutation(
        "router_topk", "int i = HELD - 1; i >= 0; i--", "int i = 0; i < HELD; i++"
    ),
    "an expert chosen twice": Mutation("router_topk", "== expert ? 0 :", "== expert + 1 ? 0 :"),
    "a lane's choice": Mutation("router_topk", "best = simd_max(best);", ""),
    "NaN above all": Mutation("router_topk", "return 1;", "return 0xFFFFFFFFu;"),
    "-0 below 0": Mutation(
        "router_topk", "magnitude == bits || magnitude == 0", "magnitude == bits"
    ),
    "negatives upside down": Mutation("router_topk", ": ~bits", ": bits"),
    "beyond the experts": Mutation("router_topk", "expert < EXPERTS ?", "true ?"),
}

UNPACKING = {
    "swapped runs": Mutation(
        "quantized_matvec", "float(codes.x), x[first", "float(codes.y), x[first"
    ),
    "a code's high bits in place of its low ones": Mutation(
        "quantized_matvec", "<< low) & both", "& both"
    ),
    "a scale for the wrong code": Mutation(
        "quantized_matvec", "place_in_unit + j", "place_in_unit"
    ),
    "too short a mask": Mutation(
        "quantized_matvec", "place + bits <= 11 ?", "place + bits <= 16 ?"
    ),
}


@pytest.mark.parametrize("kernel", ERRORS)
def test_without_a_fault_nothing_is_wrong(kernel: str) -> None:
    assert ERRORS[kernel](Emulator(order="random").metal_kernel) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MUTATIONS, *UNPACKING])
def test_every_fault_is_caught(name: str) -> None:
    mutation = {**MUTATIONS, **UNPACKING}[name]
    error = packed_error if name in UNPACKING else ERRORS[mutation.kernel]
    try:
        errors = [
            error(mutated(Emulator(order=order), mutation))
            for order in ("forward", "reverse", "random")
        ]
    except MetalError:
        return  # reported
    assert any(not e <= 1e-6 for e in errors)
