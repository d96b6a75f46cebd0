"""The kernels' library: where it is, which variant is used, and its functions' arguments.

The structures are those of native/gptoss.h, field by field. An argument that is an array's address
does not keep the array alive: whoever fills in a structure does.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gptoss_mlx.errors import KernelError

VARIABLE = "GPTOSS_CPU"
"""Environment variable: the variant to use; by default the best that this processor has."""

FORMATS = {"F32": 0, "BF16": 1, "mxfp4": 2, "affine": 3}
KEY_TYPES = {"float32": 0, "bfloat16": 1, "uint8": 2}
ALIGNED = 16  # a key head's values are padded to a multiple of this many, see attention.h

Array: TypeAlias = NDArray[Any]


class Matrix(Structure):
    _fields_ = (
        ("format", c_int32),
        ("bits", c_int32),
        ("group", c_int32),
        ("wide", c_int32),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("biases", c_void_p),
    )


class LinearPart(Structure):
    _fields_ = (("matrix", Matrix), ("bias", c_void_p))


class Linear(Structure):
    _fields_ = (
        ("parts", POINTER(LinearPart)),
        ("count", c_int64),
        ("norm", c_void_p),
        ("eps", c_float),
    )


class LinearCall(Structure):
    _fields_ = (
        ("linear", POINTER(Linear)),
        ("rows", c_int64),
        ("x", c_void_p),
        ("residual", c_void_p),
        ("y", c_void_p),
    )


class RowsCall(Structure):
    _fields_ = (("matrix", Matrix), ("rows", c_int64), ("ids", c_void_p), ("out", c_void_p))


class Shape(Structure):
    _fields_ = (
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("type", c_int32),
        ("places", c_int64),
    )


class Span(Structure):
    _fields_ = (("tokens", c_int64), ("seen", c_int64), ("window", c_int64), ("pages", c_void_p))


class StoreCall(Structure):
    _fields_ = (
        ("shape", Shape),
        ("spans", c_int64),
        ("span", c_void_p),
        ("writes", c_void_p),
        ("qkv", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
    )


class AttentionCall(Structure):
    _fields_ = (
        ("shape", Shape),
        ("spans", c_int64),
        ("span", c_void_p),
        ("qkv", c_void_p),
        ("sinks", c_void_p),
        ("scale", c_float),
        ("partials", c_void_p),
        ("y", c_void_p),
    )


class RouterCall(Structure):
    _fields_ = (
        ("rows", c_int64),
        ("experts", c_int64),
        ("k", c_int64),
        ("logits", c_void_p),
        ("ids", c_void_p),
        ("weights", c_void_p),
    )


class Bank(Structure):
    _fields_ = (
        ("gate_up", Matrix),
        ("down", Matrix),
        ("gate_up_bias", c_void_p),
        ("down_bias", c_void_p),
        ("norm", c_void_p),
        ("eps", c_float),
        ("limit", c_float),
    )


class VisitsCall(Structure):
    _fields_ = (
        ("bank", POINTER(Bank)),
        ("rows", c_int64),
        ("pairs", c_int64),
        ("slots", c_int64),
        ("row", c_void_p),
        ("slot", c_void_p),
        ("expert", c_void_p),
        ("place", c_void_p),
        ("weight", c_void_p),
        ("x", c_void_p),
        ("h", c_void_p),
        ("out", c_void_p),
    )


class SumCall(Structure):
    _fields_ = (
        ("rows", c_int64),
        ("k", c_int64),
        ("width", c_int64),
        ("x", c_void_p),
        ("residual", c_void_p),
        ("y", c_void_p),
    )


OPERATIONS = (
    "rows",
    "linear",
    "store",
    "attention",
    "router_topk",
    "moe_gate_up",
    "moe_down",
    "sum",
)


class Device:
    """Threads that run the kernels, one operation at a time; each operation is a method that takes
    its structure by reference (`ctypes.byref`), and returns when it is done.

    own, shared: bytes of the threads' workspaces, of each and of all.
    Raises MemoryError if there is no memory, or no thread to be had.
    """

    def __init__(self, variant: str, threads: int, own: int, shared: int) -> None:
        library = load_library()
        self.variant, self.threads = variant, threads
        self._close = library.gptoss_close
        self.handle = c_void_p(library.gptoss_open(variants().index(variant), threads, own, shared))
        if not self.handle:
            raise MemoryError(f"no memory or no threads for {threads} threads of kernels")
        self._read = library.gptoss_read
        self.rows = library.gptoss_rows
        self.linear = library.gptoss_linear
        self.store = library.gptoss_store
        self.attention = library.gptoss_attention
        self.router_topk = library.gptoss_router_topk
        self.moe_gate_up = library.gptoss_moe_gate_up
        self.moe_down = library.gptoss_moe_down
        self.sum = library.gptoss_sum

    def read(self, memory: Array) -> None:
        """Read memory once, on all threads: what a step's speed is measured against."""
        self._read(self.handle, address(memory), memory.nbytes)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._close(self.handle)
            self.handle = c_void_p()


def address(array: Array | None) -> int | None:
    """Where a contiguous array lies; None is a null pointer."""
    if array is None:
        return None
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


@cache
def load_library() -> ctypes.CDLL:
    """The library, with its functions' types. Raises KernelError where there is none."""
    path = library_path()
    if path is None:
        raise KernelError(_why_not_built(Path(__file__).parents[3]))
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path}: {error}") from error
    library.gptoss_variant.restype = ctypes.c_char_p
    library.gptoss_supported.restype = ctypes.c_bool
    library.gptoss_open.restype = c_void_p
    library.gptoss_open.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t)
    library.gptoss_close.restype = None
    library.gptoss_close.argtypes = (c_void_p,)
    library.gptoss_read.restype = ctypes.c_uint64
    library.gptoss_read.argtypes = (c_void_p, c_void_p, c_int64)
    for operation in OPERATIONS:
        function = getattr(library, f"gptoss_{operation}")
        function.restype, function.argtypes = None, (c_void_p, c_void_p)
    return library


def library_path() -> Path | None:
    """The library's file, built by setup.py; None where it was not."""
    found = find_spec("gptoss_mlx._native")
    return None if found is None or found.origin is None else Path(found.origin)


def _why_not_built(folder: Path) -> str:
    """folder: where the package lies, which Python prefers to an installed one if it runs there."""
    if (folder / "setup.py").is_file():
        return (
            f"the kernels for CPUs were not built in {folder}, from where this runs; with a C++"
            " compiler, `pip install -e .` there builds them"
        )
    return (
        "the kernels for CPUs were not built when this package was installed, for want of a C++"
        " compiler; with one, install it again"
    )


@cache
def variants() -> Sequence[str]:
    """The variants that the library has for this kind of processor, the preferred first."""
    library, names = load_library(), list[str]()
    while (name := library.gptoss_variant(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def supported() -> Sequence[str]:
    """The variants that this processor can run."""
    library = load_library()
    return [name for i, name in enumerate(variants()) if library.gptoss_supported(i)]


def choose_variant(asked: str | None = None) -> str:
    """The variant to use. asked: by default GPTOSS_CPU, and else the best.

    Raises KernelError if it does not exist, or if this processor cannot run it.
    """
    asked = asked or os.environ.get(VARIABLE) or supported()[0]
    if asked not in variants():
        raise KernelError(f"{VARIABLE} is {asked[:80]!r}, but must be {' or '.join(variants())}")
    if asked not in supported():
        raise KernelError(f"{VARIABLE} is {asked}, which this processor does not have")
    return asked


def why_missing() -> str | None:
    """Why there are no kernels here, in one line; None where there are."""
    try:
        load_library()
    except KernelError as error:
        return str(error)
    return None
