"""Verifies a finished conversion against its source, by reading both again.

Every tensor's SHA-256 must be the manifest's. Experts of a source that orders them otherwise are
decoded to numbers on both sides, the source by a decoder of its own format; those it holds in the
released order are compared byte by byte, and everything else is made once more and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.errors import ConversionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.shard import Tensor, read_into
from gptoss_mlx.models.checkpoint import Progress

from . import rules
from .manifest import read_manifest
from .piece import Piece
from .plan import Output, Plan, Task
from .source import Source
from .state import state
from .weights import made

_WORKERS = 4
_SAMPLE_BYTES = 64 << 10
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_PAIRS = np.stack((np.tile(_E2M1, 16), np.repeat(_E2M1, 16)), axis=-1)
"""[256, 2]: the two values of a byte, low nibble first."""
_POWERS = np.ldexp(np.float32(1), np.arange(255) - 127).astype(np.float32)
"""The factor of every scale byte; its product with an E2M1 value is exact, or infinite."""


def verify(source: Source, plan: Plan, folder: Path, progress: Progress | None = None) -> int:
    """Compare every tensor; returns how many there are.

    Raises ConversionError for the first that differs, and for a folder that is not this
    conversion's or lacks something.
    """
    if state(source, plan, folder) != "complete":
        raise ConversionError(f"{folder}: holds no finished conversion")
    recorded: Mapping[str, str] | None = None
    if plan.target == "mlx":
        recorded = read_manifest(folder)["tensors"]
    total, done, lock = sum(task.nbytes for task in plan.tasks), 0, Lock()

    def check(task: Task) -> None:
        nonlocal done
        _check_hashes(task, folder, recorded)
        _check_values(source, plan, task, folder)
        with lock:
            done += task.nbytes
            if progress is not None:
                progress(done, total)

    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="verify")
    try:
        for _ in pool.map(check, plan.tasks):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return sum(len(task.outputs) for task in plan.tasks)


def compare_samples(source: Source, plan: Plan, folder: Path) -> None:
    """Compare the first rows of every tensor with the source's, 64 KiB or one row or expert.

    Raises ConversionError for a difference.
    """
    for task in plan.tasks:
        rows = task.piece.shape[0]
        stop = min(rows, max(1, _SAMPLE_BYTES * rows // task.piece.nbytes))
        for output, data in zip(task.outputs, made(task, 0, stop), strict=True):
            if _read(output, folder, 0, stop).tobytes() != data.tobytes():
                raise _difference(output, folder, f"rows 0 to {stop - 1}")


def mxfp4_values(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """blocks [..., B, 16] and scales [..., B] -> float32 [..., 32 B]."""
    values = _PAIRS[blocks].reshape(*blocks.shape[:-1], 32)
    with np.errstate(over="ignore"):  # a scale near the highest may give infinity
        values *= _POWERS[scales][..., None]
    return values.reshape(*blocks.shape[:-2], -1)


def _check_hashes(task: Task, folder: Path, recorded: Mapping[str, str] | None) -> None:
    for output in task.outputs:
        digest = sha256()
        for start, stop in task.spans():
            digest.update(_read(output, folder, start, stop).data)
        if recorded is not None and recorded.get(output.name) != digest.hexdigest():
            raise ConversionError(
                f"{folder / output.file}: tensor {output.name} has SHA-256 {digest.hexdigest()},"
                f" but the manifest records {shown(recorded.get(output.name))}"
            )


def _check_values(source: Source, plan: Plan, task: Task, folder: Path) -> None:
    name = task.outputs[0].name
    if name.endswith("_blocks"):
        # Their scales are also compared as bytes, as a task of their own: the scale of a block of
        # zeros changes no value.
        _check_experts(source, plan, task, folder)
        return
    for start, stop in task.spans():
        for output, data in zip(task.outputs, made(task, start, stop), strict=True):
            if _read(output, folder, start, stop).tobytes() != data.tobytes():
                raise _difference(output, folder, f"rows {start} to {stop - 1}")


def _check_experts(source: Source, plan: Plan, task: Task, folder: Path) -> None:
    output = task.outputs[0]
    scales_name = output.name.removesuffix("_blocks") + "_scales"
    scales = next(o for t in plan.tasks for o in t.outputs if o.name == scales_name)
    decode = _DECODERS.get(source.kind)
    for expert in range(output.shape[0]):
        written = [_read(tensor, folder, expert, expert + 1) for tensor in (output, scales)]
        pieces = task.piece, source.pieces[scales_name]
        if decode is None:  # the same bytes in the same order are the same values
            same = all(
                np.array_equal(data, _raw(piece.inputs[0], expert).reshape(-1))
                for data, piece in zip(written, pieces, strict=True)
            )
        else:
            blocks, exponents = written
            found = mxfp4_values(
                blocks.reshape(output.shape[1:]), exponents.reshape(scales.shape[1:])
            )
            same = np.array_equal(found.view(np.uint32), decode(*pieces, expert).view(np.uint32))
        if not same:
            raise _difference(output, folder, f"expert {expert} (it or its scales)")


def _mlx(blocks: Piece, scales: Piece, expert: int) -> NDArray[np.float32]:
    import mlx.core as mx

    halves = []
    for words, exponents in zip(blocks.inputs, scales.inputs, strict=True):
        weight = mx.array(_raw(words, expert).view("<u4"))
        scale = mx.array(_raw(exponents, expert))
        values = mx.dequantize(
            weight, scale, group_size=32, bits=4, mode="mxfp4", stream=mx.cpu, dtype=mx.float32
        )
        halves.append(np.array(values))
    return _together(halves)


def _ggml(blocks: Piece, scales: Piece, expert: int) -> NDArray[np.float32]:
    import gguf

    halves = []
    for half in blocks.inputs:
        raw = _raw(half, expert)
        with np.errstate(over="ignore"):
            values = gguf.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)
        codes = raw.reshape(raw.shape[0], -1, rules.GGML_BLOCK)[..., 1:]
        negative = np.concatenate((codes & 8, codes & 128), axis=-1).reshape(values.shape) != 0
        # gguf's table has no -0, which the released code 8 is.
        halves.append(np.where((values == 0) & negative, np.float32(-0.0), values))
    return _together(halves)


_DECODERS: Mapping[str, Callable[[Piece, Piece, int], NDArray[np.float32]]] = {
    "gguf": _ggml,
    "mlx-lm": _mlx,
}


def _together(halves: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Rows of gate and up interleaved; down is alone."""
    if len(halves) == 1:
        return halves[0]
    return np.stack(halves, axis=1).reshape(-1, halves[0].shape[-1])


def _raw(tensor: Tensor, expert: int) -> NDArray[Any]:
    """One expert's bytes in the shape of the file; words as bytes."""
    part = tensor[expert]
    data = np.empty(part.nbytes, np.uint8)
    read_into(part, data.data)
    return data.reshape(*part.shape[:-1], -1)


def _read(output: Output, folder: Path, start: int, stop: int) -> NDArray[np.uint8]:
    """Bytes of these rows as they are in the result."""
    where = folder / output.file
    tensor = Tensor(output.name, output.dtype, output.shape, where, output.offset, output.nbytes)
    data = np.empty(tensor.rows(start, stop).nbytes, np.uint8)
    read_into(tensor.rows(start, stop), data.data)
    return data


def _difference(output: Output, folder: Path, where: str) -> ConversionError:
    return ConversionError(
        f"{folder / output.file}: tensor {output.name} differs from its source in {where}"
    )
