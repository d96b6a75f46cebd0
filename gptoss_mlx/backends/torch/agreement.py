"""The error of a kernel against its reference on the arguments of one call.

Outputs are compared, and also what a call writes into its arguments; each side gets its own copy.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from gptoss_mlx.backends.torch.operands import Groups

FLOAT32 = frozenset({"logits", "periods", "weights"})
"""Parameters of references that are float32 in every model, whatever its own dtype."""


def difference(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: Sequence[Any],
    wide: torch.dtype = torch.float32,
) -> float:
    """The largest relative L2 error of an output, with the reference computing in `wide`.

    Infinite if integers or shapes differ, or a compared value is not finite.
    """
    names = list(inspect.signature(reference).parameters)
    before, given, widened = (
        [copied(argument, None) for argument in arguments],
        [copied(argument, None) for argument in arguments],
        [
            copied(argument, None if name in FLOAT32 else wide)
            for name, argument in zip(names, arguments, strict=False)
        ],
    )
    found, expected = list(tensors(kernel(*given))), list(tensors(reference(*widened)))
    if len(found) != len(expected):
        return math.inf
    pairs = list(zip(found, expected, strict=True))
    arrays = zip(*map(_held, (before, given, widened)), strict=True)
    pairs += [written(*three) for three in arrays]
    return max(relative(a, b) for a, b in pairs)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 error |found - expected| / |expected|; of integers 0 if equal, else infinite."""
    if found.shape != expected.shape or found.is_floating_point() != expected.is_floating_point():
        return math.inf
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found.long(), expected.long()) else math.inf
    a, b = found.double(), expected.double()
    off = float((a - b).norm() / b.norm().clamp(min=1e-30))
    return off if math.isfinite(off) else math.inf


def written(
    before: torch.Tensor, found: torch.Tensor, expected: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The elements of an argument that either call has changed, as each call left them."""
    changed = ~(_same(found, before) & _same(expected, before))
    return found[changed], expected[changed]


def copied(argument: Any, wide: torch.dtype | None) -> Any:
    """A copy of an argument: tensors keep their strides, floats become `wide` if it is given."""
    if isinstance(argument, torch.Tensor):
        twin = torch.empty_strided(
            argument.shape, argument.stride(), dtype=argument.dtype, device=argument.device
        ).copy_(argument)
        return twin.to(wide) if wide is not None and twin.is_floating_point() else twin
    if dataclasses.is_dataclass(argument) and not isinstance(argument, type):
        names = [field.name for field in dataclasses.fields(argument)]
        return dataclasses.replace(
            argument, **{name: copied(getattr(argument, name), wide) for name in names}
        )
    return argument


def tensors(outputs: Any) -> Iterator[torch.Tensor]:
    """The output tensors of a call, in order; of unused tiles only whether they are empty."""
    if isinstance(outputs, Groups):
        used = outputs.slot >= 0
        begin = torch.where(used, outputs.begin, outputs.begin - outputs.end)
        yield from (outputs.order, outputs.slot, begin, outputs.end * used)
    elif isinstance(outputs, torch.Tensor):
        yield outputs
    else:
        for output in outputs:
            yield from tensors(output)


def _held(arguments: Sequence[Any]) -> list[torch.Tensor]:
    """Arguments that are tensors: only those can be written to."""
    return [argument for argument in arguments if isinstance(argument, torch.Tensor)]


def _same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a == b) | (a.isnan() & b.isnan())
