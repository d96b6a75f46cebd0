"""Counts of traffic against counts by hand."""

from __future__ import annotations

import mlx.core as mx
import pytest

from . import Emulator, Traffic
from .harness import needs_clang, run, traced

pytestmark = needs_clang


def read_of(source: str, threads: int = 64, elements: int = 64) -> Traffic:
    """The traffic of the input of `elements` floats."""
    x = mx.zeros((elements,))
    return traced(source, x, threads=threads).traffic["x"]


# Source; requested bytes, accesses, lines, fewest lines, touched bytes; of two simdgroups.
PATTERNS = {
    "neighbours": ("out[i] = x[i];", (256, 2, 2, 2, 256)),
    "one for all": ("out[i] = x[0];", (256, 2, 2, 2, 4)),
    "shifted by half a line": ("out[i] = x[i + 16];", (256, 2, 4, 2, 256)),
    "every 32nd": ("out[i] = x[t % 32 * 32];", (256, 2, 64, 2, 128)),
    "vectors": (
        "float4 v = ((const device float4*)x)[i]; out[i] = v.x + v.y + v.z + v.w;",
        (1024, 2, 8, 8, 1024),
    ),
    "some lanes": ("out[i] = 0;\nif (t % 32 < 8) out[i] = x[t % 32];", (64, 2, 2, 2, 32)),
    "a loop": (
        "float s = 0;\n#pragma clang loop unroll(disable)\n"
        "for (uint k = t; k < 256; k += 64) s += x[k];\nout[i] = s;",
        (1024, 8, 8, 8, 1024),
    ),
    "a turn that some lanes skip": (
        "float s = 0;\n#pragma clang loop unroll(disable)\n"
        "for (int k = 0; k < 4; k++) { if (k == 0 && t % 32 < 8) continue;"
        " s += x[t % 32 + 32 * k]; }\nout[i] = s;",
        (960, 8, 8, 8, 480),
    ),
    "a loop that some lanes skip": (
        "float s = 0;\n#pragma clang loop unroll(disable)\n"
        "for (int k = 0; k < 4; k++) { if (k != int(t % 32)) {\n"
        "#pragma clang loop unroll(disable)\n"
        "for (int j = 0; j < 2; j++) s += x[t % 32 + 32 * (k + 2 * j)]; }\n"
        "s += x[t % 32 + 32 * (8 + k)]; }\nout[i] = s;",
        (3008, 24, 24, 24, 1264),
    ),
    "between two meetings": (
        "float s = 0;\n#pragma clang loop unroll(disable)\n"
        "for (uint k = t; k < 256; k += 64) s += simd_sum(x[k]);\nout[i] = s;",
        (1024, 8, 8, 8, 1024),
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_reads_are_counted(name: str) -> None:
    source, expected = PATTERNS[name]
    got = read_of(source, elements=1024)
    counted = (got.read_bytes, got.accesses, got.lines, got.fewest_lines, got.touched_read)
    assert counted == expected
    assert got.written_bytes == got.touched_written == 0


def test_writes_and_threadgroup_memory_are_counted() -> None:
    source = """threadgroup float b[64];
    b[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    out[i] = b[t ^ 33];"""
    launch = traced(source, threads=256)
    out = launch.traffic["out"]
    assert (out.written_bytes, out.accesses, out.lines, out.read_bytes) == (1024, 8, 8, 0)
    assert (launch.threadgroup_read, launch.threadgroup_written) == (1024, 1024)
    assert (launch.threadgroup_bytes, launch.barriers, launch.threadgroups) == (256, 4, 4)


def test_an_untraced_launch_has_no_traffic() -> None:
    emulator = Emulator()
    run("out[i] = x[i];", emulator=emulator)
    assert emulator.launches[0].traffic == {}
