"""The Metal kernels of `metal/`: their source, and how MLX is asked to run them.

A file of `metal/` has the two texts that `mx.fast.metal_kernel` takes: a header of functions and,
after the line `// kernel`, the kernel's body, in which inputs, outputs and template arguments have
their names. `#include "other.metal"` inserts another file's functions, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx

from gptoss_mlx.errors import KernelError

Factory: TypeAlias = Callable[..., Callable[..., list[mx.array]]]
"""`mx.fast.metal_kernel`, or what stands in for it."""

Template: TypeAlias = dict[str, mx.Dtype | int | bool]
"""A kernel's template arguments."""

OLDEST_MLX = (0, 32)
"""The oldest MLX that is supported, (major, minor). It is the first that gives a kernel's full text
without a Mac, so that the kernels have been compiled and run there, and the first that compiles
kernels in the safe math mode, where exp(-inf) is 0. Attention with sinks and MXFP4 are older."""

DECODED = 8
"""The most tokens that a decode kernel serves in one call."""

SIMDGROUP = 32
"""Threads of a simdgroup, which run together."""

CONSTANT = 8
"""Elements below which MLX passes an array in Metal's constant address space, not in device. The
kernel's text then differs, and MLX compiles a kernel anew whenever its text has changed. So arrays
that may have fewer or more must be told apart by a template argument."""

_BODY = re.compile(r"^// kernel$", re.MULTILINE)
_UNREAD = re.compile(r"[ \t]*//[^\n]*|^[ \t]+", re.MULTILINE)
_INCLUDE = re.compile(r'^#include "(\w+)\.metal"\n', re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """Metal text, with `#line` where a file's text begins."""

    header: str
    body: str


@cache
def source(name: str) -> Source:
    """metal/<name>.metal without comments: MLX copies and hashes the text at every call."""
    header, body = _BODY.split(_text(name))
    line = header.count("\n") + 1
    return Source(
        _UNREAD.sub("", _with_includes(name, header, set())),
        _UNREAD.sub("", f'#line {line} "{name}.metal"\n{body}'),
    )


def _with_includes(name: str, text: str, seen: set[str]) -> str:
    out, start = [], 0
    for include in _INCLUDE.finditer(text):
        out += [_marked(name, text, start, include.start())]
        if include[1] not in seen:
            seen.add(include[1])
            out += [_with_includes(include[1], _text(include[1]), seen)]
        start = include.end()
    return "".join([*out, _marked(name, text, start, len(text))])


def _marked(name: str, text: str, start: int, end: int) -> str:
    return f'#line {text.count(chr(10), 0, start) + 1} "{name}.metal"\n{text[start:end]}'


def source_folder() -> Traversable:
    """Where the .metal files are: inside an installed package, beside it in a checkout."""
    package = files("gptoss_mlx")
    installed = package.joinpath("_metal")
    return installed if installed.is_dir() else Path(str(package)).parent / "metal"


def _text(name: str) -> str:
    return source_folder().joinpath(f"{name}.metal").read_text("utf-8")


@cache
def number(value: float) -> mx.array:
    """A scalar input of a kernel, made once and not for every token."""
    return mx.array(value)


def many_cores() -> bool:
    """Whether the GPU is a Max or an Ultra: 24 cores or more, by the last letter of its name."""
    if not mx.metal.is_available():
        return False
    return str(mx.device_info().get("architecture", ""))[-1:] in ("s", "c", "d")


@cache
def index(value: int) -> mx.array:
    """As `number`, int32."""
    return mx.array(value, mx.int32)


def padded(tokens: int) -> int:
    """Tokens rounded up to 1, 2, 4 or 8, the numbers that decode kernels are compiled for.

    With a pipeline for each number, a user would wait for eight to compile.
    """
    return 1 << (tokens - 1).bit_length()


def mlx_version() -> str:
    return str(mx.__version__)  # type: ignore[attr-defined]


def require_mlx(version: str) -> None:
    """Raises KernelError if an MLX is older than the one whose behaviour is relied on."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_MLX:
        oldest = ".".join(map(str, OLDEST_MLX))
        raise KernelError(
            f"MLX {version} is installed, and {oldest} or newer is needed: pip install -U mlx"
        )


class Pipeline(NamedTuple):
    """A kernel and one set of template arguments, without the threads of its threadgroup."""

    kernel: str
    arguments: tuple[mx.Dtype | int | bool, ...]

    def __str__(self) -> str:
        return " ".join([self.kernel, *(str(a).removeprefix("mlx.core.") for a in self.arguments)])


Threads: TypeAlias = Callable[[Pipeline, Sequence[int]], int]
"""Chooses the threads of a pipeline's threadgroup among the numbers given, or 0: the reference
computes in its place. A GPU may refuse a threadgroup, depending on the registers it takes."""


def largest(pipeline: Pipeline, sizes: Sequence[int]) -> int:
    """`Threads` that always chooses the first number, which the kernel is designed for."""
    return sizes[0]


class MetalKernel:
    """One kernel; MLX compiles it when it first meets a set of template arguments.

    factory: `mx.fast.metal_kernel`, or what runs kernels in its place. prologue: the first lines of
    the body, where they depend on the number of inputs.
    threads: chooses among `sizes`, the numbers of threads a threadgroup may have, the best first.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        factory: Factory | None,
        threads: Threads,
        sizes: Sequence[int],
        prologue: str = "",
    ) -> None:
        self.name, self.sizes, self._choose = name, sizes, threads
        text = source(name)
        build: Any = factory or mx.fast.metal_kernel
        self._run: Callable[..., list[mx.array]] = build(
            name=name,
            input_names=list(inputs),
            output_names=list(outputs),
            source=prologue + text.body,
            header=text.header,
        )

    def threads(self, template: Template) -> int:
        """The threads of a threadgroup; 0 if the reference is to compute."""
        return self._choose(Pipeline(self.name, tuple(template.values())), self.sizes)

    def __call__(
        self,
        *inputs: mx.array,
        template: Template,
        threadgroups: tuple[int, int, int],
        threads: int,
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    ) -> list[mx.array]:
        """Run the kernel. outputs: shape and dtype of each. threads: of a threadgroup, all along x;
        the kernel's THREADS."""
        across, *others = threadgroups
        options: dict[str, Any] = {
            "template": [*template.items(), ("THREADS", threads)],
            "grid": (across * threads, *others),
            "threadgroup": (threads, 1, 1),
            "output_shapes": [tuple(shape) for shape, _ in outputs],
            "output_dtypes": [dtype for _, dtype in outputs],
        }
        return self._run(inputs=list(inputs), **options)
