"""`mx.fast.metal_kernel` without Metal: the same signature, run on the CPU and checked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy.typing as npt

from . import runtime, toolchain
from .compiler import Compiled, compile_kernel
from .errors import MetalError
from .kernel import MetalKernel, Names, Three, fitted
from .launches import Array, Launch, Traffic
from .operations import Operations
from .reports import describe
from .runtime import Argument, Outcome, Settings
from .source import Generated
from .text import Text, flatten

MLX_METAL_KERNEL = mx.fast.metal_kernel
"""Kept from before a test puts the emulator in its place."""
THREADGROUP_LIMIT = 32 << 10


class Emulator:
    """Compiles and runs Metal kernels on the CPU.

    check: find races, accesses out of bounds, uninitialised reads and more; else only run.
    order: of threads and threadgroups: "forward", "reverse" or "random" (by `seed`).
    trace: count the traffic of each launch (needs `check`).
    count: count the operations of each launch (only without `check`).
    threadgroup_limit: bytes of threadgroup memory.
    access_limit: loads and stores a checked launch may make before it counts as endless.
    Raises MetalError for what Metal rejects and for every fault found, with lines.
    """

    def __init__(
        self,
        *,
        check: bool = True,
        order: str = "forward",
        seed: int = 0,
        trace: bool = False,
        count: bool = False,
        threadgroup_limit: int = THREADGROUP_LIMIT,
        access_limit: int = 1 << 32,
    ) -> None:
        if order not in runtime.ORDERS:
            raise ValueError(f"order {order!r} is none of {', '.join(runtime.ORDERS)}")
        if trace and not check:
            raise ValueError("trace needs check")
        if count and check:
            raise ValueError("checks change what is counted: count needs check=False")
        self._settings = Settings(check, order, seed, trace, threadgroup_limit, access_limit)
        self._count = count
        self._compiled: dict[object, Compiled] = {}
        self.launches: list[Launch] = []

    def metal_kernel(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
        ensure_row_contiguous: bool = True,
        atomic_outputs: bool = False,
        compile_options: object | None = None,
    ) -> MetalKernel:
        """As mx.fast.metal_kernel; calls return the outputs, computed at once."""
        options: dict[str, Any] = {}
        if compile_options is not None:
            options["compile_options"] = compile_options
        kernel: Any = MLX_METAL_KERNEL(
            name=name,
            input_names=list(input_names),
            output_names=list(output_names),
            source=source,
            header=header,
            ensure_row_contiguous=ensure_row_contiguous,
            atomic_outputs=atomic_outputs,
            **options,
        )
        names = Names(name, tuple(input_names), tuple(output_names))
        return MetalKernel(names, kernel, ensure_row_contiguous, self._run_generated)

    def launch(
        self,
        body: str,
        kernel: str,
        buffers: Mapping[str, npt.NDArray[Any] | None],
        grid: Three,
        threadgroup: Three,
        *,
        include: Sequence[Path] = (),
        threadgroup_bytes: Mapping[int, int] | None = None,
        function_constants: Mapping[int, int] | None = None,
        initialised: bool = True,
        file: str = "kernel.metal",
    ) -> Launch:
        """Runs `kernel` (`name` or `name<arguments>`) of any Metal text on numpy arrays in place.

        `buffers` by parameter name, C-contiguous, None for a null pointer; `grid` counts threads;
        `include` are folders of `#include "..."`; `threadgroup_bytes` by index of
        [[threadgroup(i)]]; with `initialised` False, what the kernel may write counts as never
        written. The text may use what MLX's utils.h defines.
        """
        folders = (toolchain.HERE / "include", *include)
        text = flatten(body, file, folders, set(toolchain.prelude().files))
        compiled = self._compile(text, kernel, threadgroup_bytes or {}, function_constants or {})
        writable = {b.name for b in compiled.signature.buffers if b.writable}
        arguments = {
            name: Argument(name, data, name in writable, initialised or name not in writable)
            for name, data in buffers.items()
            if data is not None
        }
        shapes = [
            Array(n, a.data.shape, str(a.data.dtype), a.data.nbytes) for n, a in arguments.items()
        ]
        size = fitted(kernel, grid, threadgroup)
        read = [a for a in shapes if a.name not in writable]
        written = [a for a in shapes if a.name in writable]
        if missing := [b.name for b in compiled.signature.buffers if b.name not in buffers]:
            raise MetalError(f"{kernel}: no buffer for {', '.join(missing)}")
        self._run(kernel, compiled, arguments, grid, size, read, written)
        return self.launches[-1]

    def _compile(
        self,
        text: Text,
        call: str,
        shared: Mapping[int, int],
        constants: Mapping[int, int],
    ) -> Compiled:
        key = (text.body, call, tuple(shared.items()), tuple(constants.items()))
        if key not in self._compiled:
            self._compiled[key] = compile_kernel(
                text,
                call,
                check=self._settings.check,
                trace=self._settings.trace,
                count=self._count,
                shared=shared,
                constants=constants,
            )
        return self._compiled[key]

    def _run_generated(
        self,
        name: str,
        generated: Generated,
        arguments: dict[str, Argument],
        grid: Three,
        threadgroup: Three,
        inputs: list[Array],
        outputs: list[Array],
    ) -> None:
        compiled = self._compile(generated.text, generated.call, {}, {})
        self._run(name, compiled, arguments, grid, threadgroup, inputs, outputs)

    def _run(
        self,
        name: str,
        compiled: Compiled,
        arguments: Mapping[str, Argument],
        grid: Three,
        threadgroup: Three,
        inputs: list[Array],
        outputs: list[Array],
    ) -> None:
        """Launches and records. Raises MetalError with the runtime's reports."""
        slots = slots_of(name, compiled, arguments)
        library = toolchain.built() / "runtime.so"
        start = time.perf_counter()
        outcome = runtime.launch(compiled.object, library, slots, grid, threadgroup, self._settings)
        seconds = time.perf_counter() - start
        if outcome.reports:
            raise MetalError(describe(outcome, compiled))
        totals = outcome.totals
        self.launches.append(
            Launch(
                name=name,
                text=compiled.text.body,
                grid=grid,
                threadgroup=threadgroup,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                threadgroups=totals.threadgroups,
                barriers=totals.barriers,
                simd_operations=totals.simd_operations,
                multiplications=totals.multiplications,
                threadgroup_bytes=totals.threadgroup_bytes,
                threadgroup_read=totals.threadgroup_read,
                threadgroup_written=totals.threadgroup_written,
                threadgroup_accesses=totals.threadgroup_accesses,
                seconds=seconds,
                unwritten=unwritten(outcome, slots) if self._settings.check else {},
                traffic=traffic(outcome, slots) if self._settings.trace else {},
                operations=operations(totals) if self._count else None,
            )
        )


def slots_of(
    name: str, compiled: Compiled, arguments: Mapping[str, Argument]
) -> list[Argument | None]:
    """The arguments by buffer index."""
    parameters = compiled.signature.buffers
    slots: list[Argument | None] = [None] * (1 + max((p.index for p in parameters), default=-1))
    for parameter in parameters:
        one = arguments.get(parameter.name)
        if one is None:
            continue
        if not one.data.flags.c_contiguous or (parameter.writable and not one.data.flags.writeable):
            raise MetalError(f"{name}: {parameter.name} is not contiguous or not writable")
        slots[parameter.index] = Argument(one.name, one.data, parameter.writable, one.initialised)
    return slots


def operations(totals: runtime.Totals) -> Operations:
    """What the threads computed."""
    return Operations(totals.floating, totals.integer, totals.conversions)


def unwritten(outcome: Outcome, slots: Sequence[Argument | None]) -> dict[str, int]:
    """Bytes of each output that nobody wrote."""
    pairs = zip(outcome.traffic, slots, strict=True)
    return {one.name: count.unwritten for count, one in pairs if one and one.writable}


def traffic(outcome: Outcome, slots: Sequence[Argument | None]) -> dict[str, Traffic]:
    """The counts of each buffer, by its name."""
    fields = Traffic.__dataclass_fields__
    return {
        one.name: Traffic(**{field: getattr(count, field) for field in fields})
        for count, one in zip(outcome.traffic, slots, strict=True)
        if one
    }
