"""Faults put into the kernels, one at a time: each is reported or gives other numbers.

They are looked for on the examples that a Mac's first use compares a kernel with its reference on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest

from gptoss_mlx.backends.mlx.ops.choice import MODULES
from gptoss_mlx.backends.mlx.ops.metal import Factory
from gptoss_mlx.backends.mlx.ops.trial import disagreement
from tests.support.metal_emulator import Emulator, MetalError, available

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")

ORDERS = ["forward", "reverse", "random"]
EXACT = 3e-6  # relative L2 in float32
BODY = "// body\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@dataclass(frozen=True)
class Mutation:
    """The `which`-th occurrence of `old` replaced in the kernel's text."""

    kernel: str
    old: str
    new: str
    which: int = 0


GATE_UP, DOWN = "moe_decode_gate_up", "moe_decode_down"
EACH, SUM = "moe_decode_down_each", "moe_decode_down_sum"
PREFILL_GATE_UP, PREFILL_DOWN = "moe_prefill_gate_up", "moe_prefill_down"
MUTATIONS = {
    # The experts of a few tokens: rows.metal, mxfp4.metal, visitors.metal and their kernels.
    "no barrier before the tile is replaced": Mutation(DOWN, BARRIER, "", 0),
    "no barrier after the tile is loaded": Mutation(DOWN, BARRIER, "", 1),
    "no barrier before the sums are read": Mutation(DOWN, BARRIER, "", 2),
    "a barrier for device memory only": Mutation(
        DOWN, "mem_flags::mem_threadgroup", "mem_flags::mem_device", 1
    ),
    "a simdgroup's barrier only": Mutation(
        GATE_UP, "threadgroup_barrier(", "simdgroup_barrier(", 2
    ),
    "a barrier some threads miss": Mutation(GATE_UP, BARRIER, f"if (place.lane < 16) {BARRIER}", 2),
    "a group too many": Mutation(DOWN, "g < tile.groups;", "g <= tile.groups;"),
    "a group too few": Mutation(DOWN, "g < tile.groups;", "g < tile.groups - 1;"),
    "a row too many": Mutation(DOWN, "i < count;", "i <= count;", 1),
    "rows of the next threadgroup": Mutation(DOWN, "min(ROWS, N - row)", "ROWS"),
    "a tile cut short": Mutation(
        GATE_UP, "i < tile.groups * (GROUP / 4);", "i < tile.groups * (GROUP / 4) - 1;"
    ),
    "swapped nibbles": Mutation(DOWN, "(word << 1)", "(word >> 3)"),
    "two values in each other's place": Mutation(GATE_UP, "w.v15.x), low.y", "w.v15.x), low.z"),
    "a lost sign": Mutation(GATE_UP, "& 0x8E008E00u", "& 0x0E000E00u", 3),
    "the next group's scale": Mutation(DOWN, "scales[at]", "scales[at + 1]"),
    "the next row": Mutation(GATE_UP, "r * STEP * G", "r * (STEP + 1) * G"),
    "gate for up": Mutation(GATE_UP, "sums[2 * i + 1]", "sums[2 * i]"),
    "slot for expert": Mutation(GATE_UP, "int(experts[pair]) *", "int(slots[pair]) *"),
    "a slot's second visitor left out": Mutation(
        GATE_UP, "other < pairs) {", "other < pairs - 9) {"
    ),
    "a slot's second visitor for its first": Mutation(GATE_UP, "of[COUNT - 1] = x", "of[0] = x"),
    "a slot without its first visitor": Mutation(EACH, "0, pairs) < leader", "0, pairs) <= leader"),
    "a product in another's place": Mutation(EACH, "sums[ROWS + i]", "sums[i]"),
    "no barrier before the next visitors": Mutation(EACH, BARRIER, "", 3),
    "a sum without its residual": Mutation(SUM, "RESIDUAL ?", "!RESIDUAL ?"),
    "a sum by another weight": Mutation(SUM, "weights[pair]), products", "weights[0]), products"),
    "expert for slot": Mutation(DOWN, "int(slots[pair]) *", "int(experts[pair]) *"),
    "no limit below": Mutation(GATE_UP, "clamp(up, -limit, limit)", "min(up, limit)"),
    "no clearing": Mutation(GATE_UP, "sums[i] = 0.0f;", ""),
    "a residual left out": Mutation(DOWN, "RESIDUAL ?", "!RESIDUAL ?"),
    # Projections: matvec.metal, weights.metal, packed.metal.
    "matvec: no barrier before the vector": Mutation("quantized_matvec", BARRIER, "", 0),
    "matvec: no barrier after the vector": Mutation("quantized_matvec", BARRIER, "", 1),
    "matvec: no barrier before the sums": Mutation("quantized_matvec", BARRIER, "", 2),
    "matvec: a row too many": Mutation("quantized_matvec", "min(4, (count", "min(4, 1 + (count"),
    "matvec: rows too many": Mutation("quantized_matvec", "min(ROWS, N - row)", "ROWS"),
    "matvec: a unit too few": Mutation("quantized_matvec", "unit >= end", "unit >= end - 1"),
    "matvec: another lane's scales": Mutation(
        "quantized_matvec", "place.lane) / LANES", "place.lane) / LANES + 1"
    ),
    "matvec: the bias of a group for its scale": Mutation(
        "quantized_matvec",
        "fma(scale, product, fma(bias, sum, acc))",
        "fma(bias, product, fma(scale, sum, acc))",
    ),
    "matvec: the sum of another unit": Mutation(
        "quantized_matvec", "unit_sums[token * PART + at]", "unit_sums[token * PART]"
    ),
    "matvec: codes shifted": Mutation("quantized_matvec", "i * BITS / 16", "(i * BITS + 1) / 16"),
    "matvec: squares counted twice": Mutation("quantized_matvec", "count_squares && fresh", "true"),
    "matvec: no epsilon": Mutation("quantized_matvec", "total / K + eps", "total / K"),
    "matvec: another token's residual": Mutation(
        "quantized_matvec", "residual[token * N + n]", "residual[n]"
    ),
    "qkv: turned the other way": Mutation(
        "decode_qkv", "a * cosine - b * sine", "a * cosine + b * sine"
    ),
    "qkv: every token at the same position": Mutation(
        "decode_qkv", "+ token - sequence)", "- sequence)"
    ),
    "qkv: values turned": Mutation("decode_qkv", "head < HEADS + KV_HEADS", "true"),
    "qkv: no second part of 2 pi": Mutation("decode_qkv", "0.0019353072f", "0.0f"),
    "qkv: the page of another head": Mutation(
        "decode_qkv",
        "(max(row / HEAD_DIM, HEADS) - HEADS)",
        "(max(row / HEAD_DIM, HEADS) + 1 - HEADS)",
    ),
    "qkv: the page over the token": Mutation("decode_qkv", "!= slot)", ">= 0)"),
    "qkv: the page not copied behind the token": Mutation("decode_qkv", "!= slot)", "< slot)"),
    "qkv: every token into the first one's slot": Mutation(
        "decode_qkv", "? token : 0;", "? 0 : 0;"
    ),
    "attention: the first sequence for all": Mutation(
        "decode_attention", "sequence = threadgroup_position_in_grid.z", "sequence = 0"
    ),
    "attention: as long as the first sequence": Mutation(
        "decode_attention", "(sequence * places_shape[1] + layer)", "layer"
    ),
    "attention: the page of the first sequence": Mutation(
        "decode_attention", "size_t(sequence) * (2", "0 * (2"
    ),
    "attention: no barrier before the sum": Mutation("decode_attention", BARRIER, ""),
    "attention: a token too many": Mutation(
        "decode_attention", "block * BLOCK + s < total ?", "block * BLOCK + s <= total ?"
    ),
    "attention: the page one token late": Mutation(
        "decode_attention", "token < in_arena;", "token <= in_arena;"
    ),
    "attention: values of the page by the arena's room": Mutation(
        "decode_attention", "size_t(KV_HEADS + head) * room", "size_t(KV_HEADS + head) * arena_room"
    ),
    "attention: the weight of another head": Mutation(
        "decode_attention",
        "simd_shuffle(scores[s], ushort(owners + h))",
        "simd_shuffle(scores[s], ushort(owners + (h + 1) % OWNERS))",
    ),
    "attention: no new scale for a new maximum": Mutation(
        "decode_attention", "weight *= factor;", ""
    ),
    "attention: no sink": Mutation("decode_attention", "sum + precise::exp(sink - most)", "sum"),
    "attention: a simdgroup's part left out": Mutation(
        "decode_attention",
        "s < SIMDS; s++) {\nconst",
        "s < SIMDS - 1; s++) {\nconst",
    ),
    "attention: a range of blocks too few": Mutation(
        "decode_attention", "(range + 1) * share)", "(range + 1) * share - 1)"
    ),
    "attention: a range left out": Mutation(
        "decode_attention_merge", "int range = 0", "int range = 1", 1
    ),
    "attention: ranges without a common maximum": Mutation(
        "decode_attention_merge", "precise::exp(from[HEAD_DIM] - most)", "1.0f"
    ),
    "router: the vector left as it came": Mutation("decode_router", "* norm * float(gain[i])", ""),
    "router: written by every threadgroup": Mutation("decode_router", "if (row == 0)", "if (true)"),
    "top-k: the last of equals": Mutation(
        "router_topk", "simd_min(expert)", "simd_max(expert % EXPERTS)"
    ),
    "top-k: chosen twice": Mutation("router_topk", "== expert ? 0 :", "== expert + 1 ? 0 :"),
    "top-k: an expert left out": Mutation(
        "router_topk", "expert < EXPERTS ?", "expert < EXPERTS - 1 ?"
    ),
    "top-k: divergent": Mutation(
        "router_topk", "best = simd_max(best);", "if (lane < 8) best = simd_max(best);"
    ),
    # The experts of many tokens: moe_prefill.metal and its two kernels.
    "prefill: no barrier before x is replaced": Mutation(PREFILL_DOWN, BARRIER, "", 0),
    "prefill: no barrier after x is loaded": Mutation(PREFILL_DOWN, BARRIER, "", 1),
    "prefill: the tile's tokens from another place": Mutation(
        PREFILL_DOWN, "* TILE_ROWS;\nreturn Tile", "* TILE_ROWS + 1;\nreturn Tile"
    ),
    "prefill: a token too many": Mutation(
        PREFILL_DOWN, "token < tile.count", "token <= tile.count"
    ),
    "prefill: the scale of another group": Mutation(
        PREFILL_GATE_UP, "exponents[group + pair]", "exponents[group]"
    ),
    "prefill: rows in each other's place": Mutation(
        PREFILL_GATE_UP, "(lane / 4 & 4)", "(lane / 8 & 4)"
    ),
    "prefill: expert for slot": Mutation(
        PREFILL_DOWN, "const int slot = slots[past - 1];", "const int slot = slots[past - 1] ^ 1;"
    ),
}
MODULE_OF = {
    GATE_UP: "moe_gate_up",
    PREFILL_GATE_UP: "moe_gate_up",
    DOWN: "moe_down",
    EACH: "moe_down",
    SUM: "moe_down",
    PREFILL_DOWN: "moe_down",
    "decode_attention_merge": "decode_attention",
}


def error(name: str, factory: Factory) -> float:
    """The largest disagreement with the reference on any of the examples."""
    module = MODULES[name]
    kernel, reference = module.metal(factory), getattr(module, name)
    return max(
        disagreement(_flat(kernel(*arguments)), _flat(reference(*arguments)))
        for arguments in module.examples(mx.float32)
    )


def mutated(emulator: Emulator, mutation: Mutation) -> Factory:
    """The emulator's factory, which makes the fault in the text it is given."""

    def factory(*, name: str, source: str, header: str, **names: Any) -> Any:
        if name != mutation.kernel:
            return emulator.metal_kernel(name=name, header=header, source=source, **names)
        parts = f"{header}{BODY}{source}".split(mutation.old)
        assert len(parts) > mutation.which + 1, "the kernel has no such place"
        at = mutation.which + 1
        text = mutation.old.join(parts[:at]) + mutation.new + mutation.old.join(parts[at:])
        header, source = text.split(BODY)
        return emulator.metal_kernel(name=name, header=header, source=source, **names)

    return factory


@pytest.mark.parametrize("name", MODULES)
def test_without_a_fault_the_examples_agree(name: str) -> None:
    assert error(name, Emulator().metal_kernel) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_every_fault_is_caught(name: str) -> None:
    mutation = MUTATIONS[name]
    module = MODULE_OF.get(mutation.kernel, mutation.kernel)
    try:
        worst = max(error(module, mutated(Emulator(order=order), mutation)) for order in ORDERS)
    except MetalError:
        return  # reported
    assert not worst <= EXACT


def _flat(outputs: Any) -> Sequence[mx.array]:
    return [outputs] if isinstance(outputs, mx.array) else list(outputs)
