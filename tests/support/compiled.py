"""Ahead-of-time compilation of kernels for a card that need not be there."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton

from gptoss_mlx.backends.torch.triton.capability import INTERPRETED, nearest
from gptoss_mlx.errors import KernelError

CAPABILITIES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities, times ten, that every kernel is compiled for."""

KIB = 1024
SHARED = {80: 163 * KIB, 86: 99 * KIB, 90: 227 * KIB, 120: 99 * KIB}
"""Bytes of shared memory a block may have: CUDA C++ programming guide, table of technical
specifications by compute capability."""
REGISTERS = 65536  # of a multiprocessor, of which a block may have all
MOST_REGISTERS = 255  # of a thread


@dataclass(frozen=True)
class Build:
    """One kernel to compile.

    types: of every argument, as Triton writes them ("*bf16", "i32"); for constants "constexpr".
    aligned: arguments that are addresses or numbers divisible by 16.
    options: num_warps, num_stages.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    options: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel and what it takes of a card.

    registers: of a thread; shared: bytes of a block; spilled: bytes of a thread's stack, which is
    in global memory; seconds: to compile it.
    """

    name: str
    capability: int
    threads: int
    registers: int
    shared: int
    spilled: int
    cubin: bytes
    seconds: float

    def problems(self) -> Iterator[str]:
        """Why a card of this capability cannot run the kernel, or only slowly."""
        if self.spilled:
            yield f"spills {self.spilled} bytes a thread"
        if self.shared > nearest(SHARED, self.capability):
            most = nearest(SHARED, self.capability)
            yield f"needs {self.shared} bytes of shared memory; a block has {most}"
        most = min(REGISTERS // self.threads, MOST_REGISTERS)
        if self.registers > most:
            yield f"needs {self.registers} registers; a thread of {self.threads} has {most}"


def compile(build: Build, capability: int) -> Compiled:
    """Compile a kernel for a card that need not be there.

    Raises KernelError, in one line, if it does not compile, or where kernels are interpreted.
    """
    if INTERPRETED.value:
        raise KernelError("kernels cannot be compiled in a process with TRITON_INTERPRET")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(build.types)
    source = ASTSource(
        fn=build.kernel,
        signature=dict(build.types),
        constexprs=dict(build.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned},
    )
    options = {"enable_fp_fusion": True, **build.options}
    begin = time.perf_counter()
    try:
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except Exception as error:  # of many kinds: of the source, of a pass, of ptxas
        line = " ".join(str(error).split()) or type(error).__name__
        raise KernelError(f"does not compile: {line}") from error
    seconds = time.perf_counter() - begin
    cubin = kernel.asm["cubin"]
    used = resources(cubin)
    return Compiled(
        build.name,
        capability,
        threads=32 * int(kernel.metadata.num_warps),
        registers=used["REG"],
        shared=int(kernel.metadata.shared),
        spilled=used["STACK"] + used["LOCAL"],
        cubin=cubin,
        seconds=seconds,
    )


def resources(cubin: bytes) -> dict[str, int]:
    """What cuobjdump finds in the code of one kernel: REG, STACK, LOCAL and others."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}
