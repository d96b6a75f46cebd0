"""Registers of the kernels by estimate: the method on kernels known by hand, and what ours take."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from benchmarks.kernels.registers import rows
from tests.support.metal_emulator import available
from tests.support.metal_emulator.registers import FILE, Counted, Registers

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")


def taken(body: str, threads: int = 64) -> Registers:
    counted = Counted()
    kernel: Any = counted.metal_kernel(
        "k",
        input_names=["x"],
        output_names=["y"],
        source=f"uint i = thread_index_in_threadgroup;\n{body}",
    )
    kernel(
        inputs=[mx.zeros((1 << 20,))],
        grid=(threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(1 << 20,)],
        output_dtypes=[mx.float32],
    )
    ((name, found),) = counted.found
    assert name == "k"
    return found


def accumulators(count: int) -> str:
    """A loop over x that needs so many sums at a time."""
    return f"""float sums[{count}] = {{}};
    for (int j = 0; j < 1000; j++) {{
      float v = x[j * 64 + i];
      #pragma unroll
      for (int a = 0; a < {count}; a++) {{ sums[a] = metal::fma(v, sums[a], float(a)); }}
    }}
    #pragma unroll
    for (int a = 0; a < {count}; a++) {{ y[a * 64 + i] = sums[a]; }}"""


@pytest.mark.parametrize("count", [8, 40, 100])
def test_as_many_sums_as_many_registers_and_a_few(count: int) -> None:
    found = taken(accumulators(count))
    assert count < found.used < count + 20
    assert found.spilled == 0


def test_what_does_not_fit_is_spilled() -> None:
    found = taken(accumulators(160))
    assert found.used > 160
    assert 160 - FILE <= found.spilled < 60


def test_what_all_threads_share_takes_none() -> None:
    assert taken("y[i] = x[threadgroup_position_in_grid.x];").used < 8


@pytest.mark.slow
def test_what_ours_take_for_a_token_and_for_a_prompt() -> None:
    found = [row for row in rows(mx.bfloat16) if "8 tokens" not in row.what]
    assert {row.kernel for row in found} >= {"decode_attention", "moe_decode_down"}
    assert [row for row in found if row.spilled] == []
    attention = [row.used for row in found if row.kernel == "decode_attention"]
    assert max(attention) <= 96
