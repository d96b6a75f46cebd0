"""The choice of an implementation for each operation: its Triton kernel or its reference.

On a card an operation uses its Triton kernel, once that has agreed with its reference on small
calls, on this card and in this dtype. For a kernel that does not compile or does not agree the
reference computes, and `Kernels.rejected` says why. Kernels of different modules are compiled in
parallel. On a CPU every operation uses its reference, unless Triton's interpreter is asked for.
Triton is imported only where its kernels are wanted.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from subprocess import CalledProcessError
from types import ModuleType
from typing import Any

import torch

from gptoss_mlx.backends.kernels import agreement, policy_of
from gptoss_mlx.backends.torch import reference
from gptoss_mlx.backends.torch.agreement import difference
from gptoss_mlx.backends.torch.current import launching_on
from gptoss_mlx.backends.torch.operands import Groups, Routed
from gptoss_mlx.errors import KernelError
from gptoss_mlx.files.pool import Pool

MODULES: Mapping[str, str] = {
    "linear": "linear",
    "add_norm": "add_norm",
    "rope_write": "rope_write",
    "decode_attention": "decode_attention",
    "prefill_attention": "prefill_attention",
    "router_topk": "router_topk",
    "group_pairs": "group_pairs",
    "route": "router_topk",
    "moe_gate_up": "moe",
    "moe_down": "moe",
}
"""The module under triton/ that has each operation's Triton kernel."""

WAITING = frozenset({"decode_attention", "moe_gate_up", "moe_down"})
"""Operations of a decoding step whose references wait for the device: no graph captures them."""

BUILDERS = 4  # threads that compile

Two = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Kernels:
    """One implementation of each operation, by default its reference in reference.py."""

    linear: Callable[..., torch.Tensor] = reference.linear
    add_norm: Callable[..., Two] = reference.add_norm
    rope_write: Callable[..., torch.Tensor] = reference.rope_write
    decode_attention: Callable[..., torch.Tensor] = reference.decode_attention
    prefill_attention: Callable[..., torch.Tensor] = reference.prefill_attention
    router_topk: Callable[..., Two] = reference.router_topk
    group_pairs: Callable[..., Groups] = reference.group_pairs
    route: Callable[..., Routed] = reference.route
    moe_gate_up: Callable[..., torch.Tensor] = reference.moe_gate_up
    moe_down: Callable[..., torch.Tensor] = reference.moe_down
    tile_for: Callable[[int, int], int] = reference.tile_for
    """(pairs, slots) -> pairs per tile of `group_pairs`."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Operations whose Triton kernel was wanted but cannot be used, and why."""

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold a step of decoding."""
        return not any(is_reference(self, name) for name in WAITING)


def choose_kernels(device: torch.device, dtype: torch.dtype, policy: str | None = None) -> Kernels:
    """The kernels for a device.

    policy: "triton" insists on every kernel, on a CPU in Triton's interpreter; "reference" uses
    none; "" uses the kernels that agree on a card, and none on a CPU. By default it is the
    environment variable GPTOSS_KERNELS.
    Raises KernelError if the policy is unknown or a kernel it insists on cannot be used.
    """
    where = f"the model computes on the {device.type.upper()} here"
    on_card = device.type == "cuda"
    policy = policy_of(policy, "triton", possible=lambda: on_card or _interpreted(), where=where)
    if policy == "reference" or (policy == "" and not on_card):
        return Kernels()
    tried = _tried(device, dtype)
    found = {name: kernel for name, kernel in tried.items() if not isinstance(kernel, str)}
    rejected = {name: why for name, why in tried.items() if isinstance(why, str)}
    if rejected and policy == "triton":
        name, why = next(iter(rejected.items()))
        raise KernelError(f"the Triton kernel {name} cannot be used: {why}")
    for name in WAITING & rejected.keys():
        rejected[name] += "; without it a decoding step is no CUDA graph, but launch after launch"
    return Kernels(**found, **tile_of(found, device), rejected=rejected)


def _tried(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[..., Any] | str]:
    """Of each operation its kernel, or the reason why that cannot be used."""
    tried: dict[str, Callable[..., Any] | str] = {}

    def build(names: list[str]) -> None:
        with launching_on(device):
            for name in names:
                tried[name] = _kernel_or_why(name, device, dtype)

    by_module = groupby(sorted(MODULES, key=lambda name: MODULES[name]), lambda n: MODULES[n])
    calls = [partial(build, list(names)) for _, names in by_module]
    if device.type == "cuda":
        pool = Pool(BUILDERS, "gptoss-build")
        try:
            pool.start(calls).wait()
        finally:
            pool.close()
    else:  # the interpreter supports one thread only
        for call in calls:
            call()
    return {name: tried[name] for name in MODULES}


def _kernel_or_why(name: str, device: torch.device, dtype: torch.dtype) -> Callable[..., Any] | str:
    try:
        return checked(name, device, dtype)
    except Exception as error:  # of many kinds, in Triton, torch and the driver
        if not _is_theirs(error):
            raise
        return " ".join(str(error).split()) or type(error).__name__


def _is_theirs(error: Exception) -> bool:
    """Whether an error is from a compiler, the driver or the agreement, not a bug of our own."""
    if isinstance(error, KernelError | CalledProcessError | torch.OutOfMemoryError):
        return True
    from triton.errors import TritonError

    if isinstance(error, TritonError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    inside = frame.f_globals.get("__name__", "").startswith("triton.")
    return inside or "CUDA" in str(error)


def checked(name: str, device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
    """An operation's Triton kernel. Raises KernelError if it does not agree with its reference."""
    kernel: Callable[..., Any] = getattr(module_of(name), name)
    calls = list(examples_of(name, dtype, device))
    if not calls:
        raise KernelError("it has no examples to agree on")
    for arguments in calls:
        off = difference(kernel, getattr(reference, name), arguments)
        if not off <= agreement(dtype):
            raise KernelError(f"it differs from its reference by {off:.1e}")
    return kernel


def examples_of(name: str, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """An operation's examples. A module of several operations yields (operation, arguments)."""
    several = list(MODULES.values()).count(MODULES[name]) > 1
    for example in module_of(name).examples(dtype, device):
        if not several:
            yield example
        elif example[0] == name:
            yield example[1]


def triton_kernels(device: torch.device) -> Kernels:
    """Every Triton kernel, unchecked."""
    found = {name: getattr(module_of(name), name) for name in MODULES}
    return Kernels(**found, **tile_of(found, device))


def tile_of(found: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """`Kernels.tile_for` for the experts' kernels, if any is found; references take any tile."""
    if not found.keys() & {"moe_gate_up", "moe_down"}:
        return {}
    from gptoss_mlx.backends.torch.triton.capability import capability_of

    tile_for = module_of("moe_down").tile_for
    return {"tile_for": partial(tile_for, capability=capability_of(device))}


def implementations(kernels: Kernels) -> dict[str, str]:
    """Of each operation "triton", "reference", or why its kernel was rejected."""
    return {
        name: kernels.rejected.get(name)
        or ("reference" if is_reference(kernels, name) else "triton")
        for name in MODULES
    }


def found_on(device: str) -> dict[str, str]:
    """The `implementations` of a device such as "cuda:0", in the dtype a model has there."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return implementations(choose_kernels(torch.device(device), dtype))


def is_reference(kernels: Kernels, name: str) -> bool:
    return getattr(kernels, name) is getattr(reference, name)


def module_of(name: str) -> ModuleType:
    """The module with an operation's Triton kernel. Raises KernelError without Triton."""
    try:
        return importlib.import_module(f"gptoss_mlx.backends.torch.triton.{MODULES[name]}")
    except ImportError as error:
        if (error.name or "").startswith("gptoss_mlx"):  # a mistake of our own
            raise
        raise KernelError(f"it cannot be imported: {error}") from error


def _interpreted() -> bool:
    """Whether Triton's kernels run on the CPU in this process."""
    try:
        from gptoss_mlx.backends.torch.triton.capability import INTERPRETED
    except ImportError:
        return False
    return bool(INTERPRETED.value)
