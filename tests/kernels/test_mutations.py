"""Faults put into the kernels, one at a time: each is reported or gives other numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest

from gptoss_mlx.kernels.metal import Factory
from tests.kernels.test_moe_decode import EXACT, case, down_error, gate_up_error
from tests.metal_emulator import Emulator, MetalError, available

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")

ORDERS = ["forward", "reverse", "random"]
BODY = "// body\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@dataclass(frozen=True)
class Mutation:
    """The `which`-th occurrence of `old` replaced in the kernel's text."""

    kernel: str
    old: str
    new: str
    which: int = 0


MUTATIONS = {
    "no barrier before the tile is replaced": Mutation("moe_decode_down", BARRIER, "", 0),
    "no barrier after the tile is loaded": Mutation("moe_decode_down", BARRIER, "", 1),
    "no barrier before the sums are read": Mutation("moe_decode_down", BARRIER, "", 2),
    "a barrier for device memory only": Mutation(
        "moe_decode_down", "mem_flags::mem_threadgroup", "mem_flags::mem_device", 1
    ),
    "a simdgroup's barrier only": Mutation(
        "moe_decode_gate_up", "threadgroup_barrier(", "simdgroup_barrier(", 2
    ),
    "a barrier some threads miss": Mutation(
        "moe_decode_gate_up", BARRIER, f"if (place.lane < 16) {BARRIER}", 2
    ),
    "a group too many": Mutation("moe_decode_down", "g < tile.groups;", "g <= tile.groups;"),
    "a group too few": Mutation("moe_decode_down", "g < tile.groups;", "g < tile.groups - 1;"),
    "a row too many": Mutation("moe_decode_down", "i < count;", "i <= count;", 1),
    "rows of the next threadgroup": Mutation("moe_decode_down", "min(ROWS, N - row)", "ROWS"),
    "a tile cut short": Mutation(
        "moe_decode_gate_up", "i < tile.groups * (GROUP / 4);", "i < tile.groups * (GROUP / 4) - 1;"
    ),
    "swapped nibbles": Mutation("moe_decode_down", "(word << 1)", "(word >> 3)"),
    "two values in each other's place": Mutation(
        "moe_decode_gate_up", "w.v15.x), low.y", "w.v15.x), low.z"
    ),
    "a lost sign": Mutation("moe_decode_gate_up", "& 0x8E008E00u", "& 0x0E000E00u", 3),
    "the next group's scale": Mutation("moe_decode_down", "scales[at]", "scales[at + 1]"),
    "the next row": Mutation("moe_decode_gate_up", "r * STEP * G", "r * (STEP + 1) * G"),
    "gate for up": Mutation("moe_decode_gate_up", "sums[2 * i + 1]", "sums[2 * i]"),
    "slot for expert": Mutation("moe_decode_gate_up", "int(experts[pair]) *", "int(slots[pair]) *"),
    "expert for slot": Mutation("moe_decode_down", "int(slots[pair]) *", "int(experts[pair]) *"),
    "no limit below": Mutation("moe_decode_gate_up", "clamp(up, -limit, limit)", "min(up, limit)"),
    "no clearing": Mutation("moe_decode_gate_up", "sums[i] = 0.0f;", ""),
}


def mutated(emulator: Emulator, mutation: Mutation) -> Factory:
    """The emulator's factory, which makes the fault in the text it is given."""

    def factory(*, source: str, header: str, **names: Any) -> Any:
        parts = f"{header}{BODY}{source}".split(mutation.old)
        assert len(parts) > mutation.which + 1, "the kernel has no such place"
        at = mutation.which + 1
        text = mutation.old.join(parts[:at]) + mutation.new + mutation.old.join(parts[at:])
        header, source = text.split(BODY)
        return emulator.metal_kernel(header=header, source=source, **names)

    return factory


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_fault_is_caught(name: str) -> None:
    mutation = MUTATIONS[name]
    down = mutation.kernel == "moe_decode_down"
    error = down_error if down else gate_up_error
    c = case(135 if down else 230, 160, 2, 2, mx.float32, down=down)
    assert error(c, Emulator().metal_kernel) <= EXACT[mx.float32]
    try:
        errors = [error(c, mutated(Emulator(order=order), mutation)) for order in ORDERS]
    except MetalError:
        return  # reported
    assert any(not e <= EXACT[mx.float32] for e in errors)
