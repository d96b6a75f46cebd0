"""Registers that a kernel takes of a lane, estimated: what clang needs of another GPU's.

The text is compiled for an AMD GPU of 32 lanes (gfx1030), whose vector registers, like Apple's, are
a lane's own 32 bits each, and whose scalar ones, like Apple's uniform ones, hold what all lanes
share. Simdgroup functions become instructions of which nothing is known but their operands. It is
not Apple's compiler: of halves two share a register there and not here, and what is kept and what
computed again is each compiler's choice. Kernels are compared by it; a few registers say nothing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import toolchain
from .emulator import MLX_METAL_KERNEL
from .rewrite import rewrite
from .signature import Signature, read_signature
from .source import generate
from .text import Text

FILE = 128
"""Registers of a lane that a GPU of Apple's has at most; what takes more is kept in memory."""

FLAGS = (
    *("--target=amdgcn-amd-amdhsa", "-mcpu=gfx1030", "-nogpulib", "-O2", "-S", "-w"),
    *("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant"),
    *("-mllvm", "-amdgpu-function-calls=false", "-ffp-contract=off"),
    *("-Xclang", "-cl-ext=+__opencl_c_generic_address_space"),
    *("-Xclang", "-cl-ext=+__opencl_c_program_scope_global_variables"),
)
USED = re.compile(r"; NumVgprs: (\d+)[\s\S]*?; ScratchSize: (\d+)")
ENTRY = "metal_registers"
WITHIN = "__attribute__((amdgpu_waves_per_eu(8)))"
"""At most FILE registers: eight simdgroups share the 1024 of a lane there."""

RUNTIME = """
#include <metal_stdlib>
typedef bfloat bfloat16_t;
METAL_FUNC uint mtl_other(uint word, uint how) {
  uint found;
  asm("; %0 %1 %2" : "=v"(found) : "v"(word), "iv"(how));
  return found;
}
METAL_FUNC ulong mtl_other(ulong words, uint how) {
  return mtl_other((uint)words, how) | (ulong)mtl_other((uint)(words >> 32), how) << 32;
}
#define METAL_RUNTIME extern "C" __attribute__((always_inline))
METAL_RUNTIME void mtl_threadgroup_barrier(uint) { __builtin_amdgcn_s_barrier(); }
METAL_RUNTIME void mtl_simdgroup_barrier(uint) { __builtin_amdgcn_wave_barrier(); }
METAL_RUNTIME mtl_bits mtl_simd_reduce(uint what, mtl_bits value) {
  return {mtl_other(value.lo, what), mtl_other(value.hi, what)};
}
METAL_RUNTIME mtl_bits mtl_simd_scan(uint what, mtl_bits value) {
  return mtl_simd_reduce(what, value);
}
METAL_RUNTIME mtl_bits mtl_simd_move(uint how, int lane, mtl_bits value, mtl_bits) {
  return mtl_simd_reduce(how + lane, value);
}
METAL_RUNTIME mtl_bits mtl_simd_multiply(uint, ulong a, ulong b, ulong c) {
  ulong found;
  asm("; %0 %1 %2" : "=v"(found) : "v"(a), "v"(b), "0"(c));
  return {found, 0};
}
METAL_RUNTIME void* mtl_threadgroup_memory(const __constant char*, uint id, ulong, ulong) {
  return (void*)(threadgroup char*)(id * 8192u);
}
"""


@dataclass(frozen=True)
class Registers:
    """Of a lane. used: where there are enough; spilled: kept in memory where there are FILE."""

    used: int
    spilled: int


def registers(text: Text, call: str, threads: int) -> Registers:
    """What the kernel that `call` names takes, in threadgroups of so many threads.

    Raises MetalError where clang does not compile it.
    """
    body = rewrite(text, {})
    signature = read_signature(body.body, call, {})
    texts = (f"{RUNTIME}\n{body.body}\n{_entry(signature, threads, w)}" for w in ("", WITHIN))
    free, limited = map(_compiled, texts)
    return Registers(sum(free), limited[1])


def _compiled(unit: str) -> tuple[int, int]:
    """Registers, and words in memory."""
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "kernel.cl"
        source.write_text(unit)
        include = f"-I{toolchain.built() / 'include'}"
        made = toolchain.run([toolchain.CLANG, *FLAGS, include, str(source), "-o", "-"])
    used = USED.search(made.partition(f"{ENTRY}:")[2])
    assert used is not None
    return int(used[1]), int(used[2]) // 4


class Counted:
    """`metal_kernel` as mx.fast has it, of kernels that are counted and not run.

    found: by kernel, in the order of the calls; outputs are zeros.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, Registers]] = []

    def metal_kernel(self, name: str, **named: Any) -> Callable[..., list[mx.array]]:
        kernel: Any = MLX_METAL_KERNEL(name=name, **named)

        def run(inputs: list[mx.array], **call: Any) -> list[mx.array]:
            made = generate(name, kernel, inputs, **call)
            self.found.append((name, registers(made.text, made.call, call["threadgroup"][0])))
            outputs = zip(call["output_shapes"], call["output_dtypes"], strict=True)
            return [mx.zeros(shape, dtype) for shape, dtype in outputs]

        return run


def _entry(signature: Signature, threads: int, limit: str) -> str:
    """A kernel of AMD's that runs the launcher with its own position."""
    count = 1 + max(buffer.index for buffer in signature.buffers)
    launcher = signature.launcher.replace(
        'extern "C" __attribute__((no_sanitize("thread")))', "static METAL_FUNC"
    )
    return f"""{launcher}
__kernel __attribute__((amdgpu_flat_work_group_size({threads}, {threads}))) {limit}
void {ENTRY}(const device ulong* addresses, const device uint* sizes) {{
  ulong b[{count}];
  for (int i = 0; i < {count}; i++) b[i] = addresses[i];
  mtl_position p;
  for (int i = 0; i < 3; i++) {{
    p.grid_size[i] = sizes[i], p.threadgroups[i] = sizes[3 + i], p.size[i] = sizes[6 + i];
    p.dispatched_size[i] = sizes[9 + i];
  }}
  p.index = __builtin_amdgcn_workitem_id_x();
  p.lane = p.index % 32, p.simdgroup = __builtin_amdgcn_readfirstlane(p.index / 32);
  p.simdgroups = p.dispatched_simdgroups = {threads} / 32;
  p.threadgroup_at[0] = __builtin_amdgcn_workgroup_id_x();
  p.threadgroup_at[1] = __builtin_amdgcn_workgroup_id_y();
  p.threadgroup_at[2] = __builtin_amdgcn_workgroup_id_z();
  p.in_threadgroup[0] = p.index, p.in_threadgroup[1] = p.in_threadgroup[2] = 0;
  p.in_grid[0] = p.threadgroup_at[0] * {threads} + p.index;
  p.in_grid[1] = p.threadgroup_at[1], p.in_grid[2] = p.threadgroup_at[2];
  metal_entry(b, &p);
}}
"""
