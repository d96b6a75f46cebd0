"""The Metal kernels of `metal/`: their source, and how MLX is asked to run them.

A file of `metal/` is what `mx.fast.metal_kernel` wants, in two parts: functions, and after the line
`// kernel` the body of the kernel itself, in which inputs, outputs and template arguments go by
their names. `#include "other.metal"` takes another file's functions in, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

import mlx.core as mx

Factory: TypeAlias = Callable[..., Callable[..., list[mx.array]]]
"""`mx.fast.metal_kernel`, or what stands in for it."""

DECODED = 8
"""Tokens that the kernels for decoding serve at most."""

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


def _text(name: str) -> str:
    return files("gptoss_mlx").joinpath("metal", f"{name}.metal").read_text("utf-8")


@cache
def number(value: float) -> mx.array:
    """A setting of the model as a kernel takes it, made once and not for every token."""
    return mx.array(value)


def many_cores() -> bool:
    """Whether the GPU is a Max or an Ultra: 24 cores and more, by the last letter of its name."""
    if not mx.metal.is_available():
        return False
    return str(mx.device_info().get("architecture", ""))[-1:] in ("s", "c", "d")


class MetalKernel:
    """One kernel; MLX compiles it when it first meets a set of template arguments.

    factory: `mx.fast.metal_kernel`, or what runs kernels in its place.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        factory: Factory | None = None,
    ) -> None:
        text = source(name)
        build: Any = factory or mx.fast.metal_kernel
        self._run: Callable[..., list[mx.array]] = build(
            name=name,
            input_names=list(inputs),
            output_names=list(outputs),
            source=text.body,
            header=text.header,
        )

    def __call__(
        self,
        *inputs: mx.array,
        template: Mapping[str, mx.Dtype | int | bool],
        threadgroups: tuple[int, int, int],
        threads: int,
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    ) -> list[mx.array]:
        """outputs: shape and dtype of each; `threads` a threadgroup, along x."""
        across, *others = threadgroups
        options: dict[str, Any] = {
            "template": list(template.items()),
            "grid": (across * threads, *others),
            "threadgroup": (threads, 1, 1),
            "output_shapes": [tuple(shape) for shape, _ in outputs],
            "output_dtypes": [dtype for _, dtype in outputs],
        }
        return self._run(inputs=list(inputs), **options)
