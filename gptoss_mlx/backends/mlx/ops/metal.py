"""The Metal kernels of `metal/`: their source, and how MLX is asked to run them.

A file of `metal/` is what `mx.fast.metal_kernel` wants, in two parts: functions, and after the line
`// kernel` the body of the kernel itself, in which inputs, outputs and template arguments go by
their names. `#include "other.metal"` takes another file's functions in, once.
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
"""The first whose text of these kernels can be had, and so has been compiled and run, without a
Mac; and that compiles kernels in the safe math mode, where exp(-inf) is 0. Attention with sinks and
MXFP4 are older."""

DECODED = 8
"""Tokens that the kernels for decoding serve at most."""

SIMDGROUP = 32
"""Threads that run together."""

CONSTANT = 8
"""Elements below which MLX hands an array over in Metal's constant address space."""

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
    """A setting of the model as a kernel takes it, made once and not for every token."""
    return mx.array(value)


def many_cores() -> bool:
    """Whether the GPU is a Max or an Ultra: 24 cores and more, by the last letter of its name."""
    if not mx.metal.is_available():
        return False
    return str(mx.device_info().get("architecture", ""))[-1:] in ("s", "c", "d")


@cache
def index(value: int) -> mx.array:
    """As `number`, int32."""
    return mx.array(value, mx.int32)


def padded(tokens: int) -> int:
    """For how many tokens a kernel is compiled that serves so few: 1, 2, 4 or 8.

    Of a pipeline for each number a person would wait for eight.
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
    """A kernel compiled for one set of template arguments, but for its threads."""

    kernel: str
    arguments: tuple[mx.Dtype | int | bool, ...]

    def __str__(self) -> str:
        return " ".join([self.kernel, *(str(a).removeprefix("mlx.core.") for a in self.arguments)])


Threads: TypeAlias = Callable[[Pipeline, Sequence[int]], int]
"""How many threads a threadgroup of a pipeline has, one of the numbers given, or 0: its reference
computes in its place. A GPU may refuse a pipeline's threadgroup, by what registers it takes."""


def largest(pipeline: Pipeline, sizes: Sequence[int]) -> int:
    """Of threads of a threadgroup: what a kernel is meant to have."""
    return sizes[0]


class MetalKernel:
    """One kernel; MLX compiles it when it first meets a set of template arguments.

    factory: `mx.fast.metal_kernel`, or what runs kernels in its place.
    threads: what chooses among `sizes`, threads that a threadgroup may have, the best first.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        factory: Factory | None,
        threads: Threads,
        sizes: Sequence[int],
    ) -> None:
        self.name, self.sizes, self._choose = name, sizes, threads
        text = source(name)
        build: Any = factory or mx.fast.metal_kernel
        self._run: Callable[..., list[mx.array]] = build(
            name=name,
            input_names=list(inputs),
            output_names=list(outputs),
            source=text.body,
            header=text.header,
        )

    def threads(self, template: Template) -> int:
        """Of a threadgroup; 0 where the reference is to compute."""
        return self._choose(Pipeline(self.name, tuple(template.values())), self.sizes)

    def __call__(
        self,
        *inputs: mx.array,
        template: Template,
        threadgroups: tuple[int, int, int],
        threads: int,
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    ) -> list[mx.array]:
        """outputs: shape and dtype of each; `threads` a threadgroup, along x: THREADS."""
        across, *others = threadgroups
        options: dict[str, Any] = {
            "template": [*template.items(), ("THREADS", threads)],
            "grid": (across * threads, *others),
            "threadgroup": (threads, 1, 1),
            "output_shapes": [tuple(shape) for shape, _ in outputs],
            "output_dtypes": [dtype for _, dtype in outputs],
        }
        return self._run(inputs=list(inputs), **options)
