"""What is compiled for a card, without one: a kernel, its arguments' types and its constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import triton
import triton.language as tl

CAPABILITIES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities, times ten, that every kernel is compiled for."""

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run in Triton's interpreter, in which products of bfloat16 must be widened."""

T = TypeVar("T")


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


def nearest(table: Mapping[int, T], capability: int) -> T:
    """A table's entry for a capability: that of the highest not above it, else the lowest."""
    return table[max((c for c in table if c <= capability), default=min(table))]
