"""Faults at run time: each kind is reported, at the line that commits it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from . import Emulator, MetalError
from .harness import FIRST_LINE, ORDERS, fault, needs_clang, run, values

pytestmark = needs_clang

EXCHANGE = """threadgroup float b[64];
b[t] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
out[i] = b[t ^ 1] + b[(t + 33) % 64];"""
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
THROUGH_DEVICE = """out[i] = x[i];
threadgroup_barrier(mem_flags::mem_device);
float other = out[i ^ 33];
threadgroup_barrier(mem_flags::mem_none);
out[i] = other;"""
IN_SIMDGROUP = """threadgroup float b[64];
b[t] = x[i];
simdgroup_barrier(mem_flags::mem_threadgroup);
out[i] = b[t ^ 1];"""


@pytest.mark.parametrize("order", ORDERS)
def test_a_correct_exchange_passes_in_every_order(order: str) -> None:
    x = np.arange(64, dtype=np.float32)
    t = np.arange(64)
    for seed in range(3):
        out = values(run(EXCHANGE, emulator=Emulator(order=order, seed=seed)))
        np.testing.assert_array_equal(out, x[t ^ 1] + x[(t + 33) % 64])
        out = values(run(IN_SIMDGROUP, emulator=Emulator(order=order, seed=seed)))
        np.testing.assert_array_equal(out, x[t ^ 1])


# What the source does; the fault's words; its line counted from the source's first.
RUN_TIME_FAULTS = {
    "missing barrier": (EXCHANGE.replace(BARRIER, ""), "race: ", 3),
    "barrier of the other memory": (
        EXCHANGE.replace("mem_threadgroup)", "mem_device)"),
        "lacks the flag of this memory",
        3,
    ),
    "barrier without a flag": (
        EXCHANGE.replace("mem_threadgroup)", "mem_none)"),
        "lacks the flag of this memory",
        3,
    ),
    "simdgroup's barrier for the threadgroup": (
        EXCHANGE.replace("threadgroup_barrier", "simdgroup_barrier"),
        "race: ",
        3,
    ),
    "no barrier within a simdgroup": (
        IN_SIMDGROUP.replace("simdgroup_barrier(mem_flags::mem_threadgroup);", ""),
        "race: ",
        3,
    ),
    "device memory without order": (THROUGH_DEVICE, "conflicts with the read by thread", 4),
    "one place, two writers": ("out[i / 2] = x[i];", "conflicts with the write by thread", 0),
    "read behind a buffer": ("\nout[i] = x[i + 1];", "read of 4 bytes at x+256 by thread 63", 1),
    "read before a buffer": ("out[i] = x[int(i) - 1];", "read of 4 bytes at x-4 by thread 0", 0),
    "write behind a buffer": ("out[i + 1] = x[i];", "write of 4 bytes at out+256", 0),
    "behind threadgroup memory": (
        "threadgroup float b[64];\nthreadgroup float* p = b;\np[t + 1] = x[i];\nout[i] = x[i];",
        "out of bounds: write of 4 bytes at b+256",
        2,
    ),
    "behind an array of the thread": (
        "float b[4] = {};\nb[uint(x[i]) % 8] = 1;\nout[i] = b[t % 4];",
        "index 4 of an array",
        1,
    ),
    "misaligned vector": (
        "out[i] = ((const device float4*)(x + i % 4))->x;",
        "misaligned: read of 16 bytes at x+4",
        0,
    ),
    "unwritten threadgroup memory": (
        f"threadgroup float b[64];\nif (t < 32) b[t] = x[i];\n{BARRIER}\nout[i] = b[t];",
        "uninitialised: read of 4 bytes at b+128 by thread 32",
        3,
    ),
    "unwritten output": ("\n\nout[i] += x[i];", "uninitialised: read of 4 bytes at out+0", 2),
    "barrier for some": (
        f"if (t < 40)\n{BARRIER}\nout[i] = x[i];",
        "only 40 threads of threadgroup 0 reach it",
        1,
    ),
    "barrier after an early return": (
        f"if (t >= 40) return;\n{BARRIER}\nout[i] = x[i];",
        "only 40 threads of threadgroup 0 reach it",
        1,
    ),
    "two barriers at once": (
        f"if (t < 32) {BARRIER}\nelse {BARRIER}\nout[i] = x[i];",
        "divergent barrier: thread 0 of threadgroup 0 waits here, thread 32",
        0,
    ),
    "barrier within a simdgroup's branch": (
        f"if (t % 32 < 8) {BARRIER}\nelse {BARRIER}\nout[i] = x[i];",
        "divergent barrier: thread 0",
        0,
    ),
    "two simdgroup operations at once": (
        "float s;\nif (t & 1) s = simd_sum(x[i]);\nelse s = simd_sum(x[i] + 1);\nout[i] = s;",
        "divergent simdgroup operation",
        2,
    ),
    "simdgroup operation beside a barrier": (
        f"if (t & 1)\nout[i] = simd_sum(x[i]);\n{BARRIER}",
        "divergent simdgroup operation",
        2,
    ),
    "shuffle from a lane that is gone": (
        "if (t % 32 >= 16) return;\nout[i] = simd_shuffle(x[i], 20);",
        "reads lane 20, which is inactive",
        1,
    ),
    "too much threadgroup memory": (
        "threadgroup float a[8000];\nthreadgroup float b[200];\na[t] = x[i]; b[t] = x[i];"
        "out[i] = a[t] + b[t];",
        "32800 bytes of threadgroup memory with b, the limit is 32768",
        1,
    ),
}


@pytest.mark.parametrize("name", RUN_TIME_FAULTS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_planted_fault_is_reported_with_its_line(name: str, order: str) -> None:
    source, words, line = RUN_TIME_FAULTS[name]
    said = fault(source, emulator=Emulator(order=order, seed=1))
    if order == "forward":
        assert words in said
        assert f"small.metal:{FIRST_LINE + line}: " in said
        row = source.split("\n")[line].strip()
        assert f"| {row}" in said


def test_threadgroups_conflict_whatever_lies_between() -> None:
    source = f"{BARRIER}\nout[t] = x[i];"
    said = fault(source, threads=64, threadgroup=32)
    assert f"small.metal:{FIRST_LINE + 1}: race across threadgroups: write of 4 bytes" in said
    read = "out[i] = x[i];\nif (i == 40) out[40] += out[0];"
    said = fault(read, threads=64, threadgroup=32)
    assert "read of 4 bytes at out+0 by thread 8 of threadgroup 1" in said


def test_a_write_after_reads_of_several_threadgroups_conflicts() -> None:
    source = (
        "out[i] = out[96] + x[i];\n"
        "threadgroup_barrier(mem_flags::mem_device);\n"
        "if (i == 95) out[96] = 1;"
    )
    said = fault(source, threads=96, threadgroup=32, shape=(97,), init_value=0)
    assert "conflicts with the read by several threadgroups" in said


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "source",
    [
        "atomic_fetch_add_explicit(&out[0], x[i], memory_order_relaxed);\n"
        "if (t == 63) ((device float*)out)[0] = 1;",
        "if (t == 63) ((device float*)out)[0] = 1;\n"
        "atomic_fetch_add_explicit(&out[0], x[i], memory_order_relaxed);",
        "atomic_store_explicit(&out[t], 1.0f, memory_order_relaxed);\n"
        "float s = ((device float*)out)[t ^ 1];\n"
        "atomic_store_explicit(&out[t], s, memory_order_relaxed);",
    ],
)
def test_atomics_conflict_with_plain_accesses(source: str, order: str) -> None:
    emulator = Emulator(order=order)
    said = fault(source, atomic_outputs=True, init_value=0, emulator=emulator)
    assert "race: " in said
    assert "atomic operation" in said


READ_BY_MANY = """threadgroup float b[1];
if (t == 0) b[0] = 1;
threadgroup_barrier(mem_flags::mem_threadgroup);
if (READS) out[i] = b[0];
if (t == LAST) b[0] = 2;"""


@pytest.mark.parametrize(("reads", "last"), [("t < 32", "31"), ("t % 32 == 31", "63")])
def test_who_reads_last_may_not_write_what_others_read(reads: str, last: str) -> None:
    said = fault(READ_BY_MANY.replace("READS", reads).replace("LAST", last))
    assert f"small.metal:{FIRST_LINE + 4}: race: write of 4 bytes at b+0" in said
    assert "conflicts with the read by several threads" in said


def test_a_vector_across_the_end_is_out_of_bounds() -> None:
    source = "float2 v = ((const device float2*)x)[t / 2]; out[i] = v.x + v.y;"
    assert "read of 8 bytes at x+248 by thread 62" in fault(source, mx.zeros((63,)))


def test_lines_are_those_of_the_file_that_markers_name() -> None:
    header = (
        '#line 40 "first.metal"\n'
        "inline float first(const device float* p, uint i) {\n  return p[i + 1];\n}\n"
    )
    said = fault("out[i] = first(x, i);", header=header)
    assert "first.metal:41: out of bounds: read" in said
    assert "| return p[i + 1];" in said
    said = fault("out[i] = x[i + 1];", header=header)
    assert "small.metal:11: out of bounds: read" in said


def test_an_endless_kernel_ends() -> None:
    emulator = Emulator(access_limit=10_000)
    source = "device volatile float* p = out;\nwhile (true) p[i] = x[i];"
    assert "endless: more than 10000 accesses" in fault(source, emulator=emulator)


def test_unwritten_outputs_are_not_numbers_and_are_counted() -> None:
    emulator = Emulator()
    out = values(run("if (t % 2) out[i] = x[i];", emulator=emulator))
    assert np.isnan(out[::2]).all()
    assert emulator.launches[0].unwritten == {"out": 32 * 4}


@pytest.mark.parametrize(
    ("threads", "threadgroup", "words"),
    [
        (2048, 1025, "1025 threads in a threadgroup, the limit is 1024"),
        (64, 0, "threadgroup (0, 1, 1) is not three counts"),
        (0, 32, "grid (0, 1, 1) is not three counts"),
    ],
)
def test_sizes_that_metal_refuses(threads: int, threadgroup: int, words: str) -> None:
    x = mx.zeros((64,))
    assert words in fault("out[i] = x[0];", x, threads=threads, threadgroup=threadgroup)


def test_an_unchecked_run_gives_the_same_numbers() -> None:
    checked, plain = run(EXCHANGE), run(EXCHANGE, emulator=Emulator(check=False))
    np.testing.assert_array_equal(values(checked), values(plain))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="backward"):
        Emulator(order="backward")
    with pytest.raises(ValueError, match="trace needs check"):
        Emulator(check=False, trace=True)
    with pytest.raises(MetalError, match="no such kernel"):
        Emulator().launch("kernel void a() {}", "b", {}, (1, 1, 1), (1, 1, 1))
