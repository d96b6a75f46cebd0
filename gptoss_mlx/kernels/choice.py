"""Which implementation of each operation a model computes with.

On a GPU that is the Metal kernel, once it has agreed with its reference on a small input, on this
device and in this dtype. One that does not compile or does not agree is left out: its reference
computes in its place, and `Kernels.left_out` says why. Elsewhere it is the reference.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np

from gptoss_mlx.errors import KernelError
from gptoss_mlx.kernels import (
    decode_attention,
    decode_qkv,
    decode_router,
    moe_down,
    moe_gate_up,
    quantized_matvec,
    router_topk,
)
from gptoss_mlx.kernels.matrix import Matrix, Norm
from gptoss_mlx.kernels.metal import Factory

VARIABLE = "GPTOSS_KERNELS"
AGREEMENT = {mx.float32: 1e-3, mx.bfloat16: 1e-2}
"""Relative L2 between a kernel and its reference, which computes in float32 from the same values;
MLX may multiply float32 in fewer bits on a GPU."""


@dataclass(frozen=True)
class Kernels:
    """One implementation of each operation; by default the references."""

    quantized_matvec: quantized_matvec.QuantizedMatvec = quantized_matvec.quantized_matvec
    decode_qkv: decode_qkv.DecodeQkv = decode_qkv.decode_qkv
    decode_attention: decode_attention.DecodeAttention = decode_attention.decode_attention
    decode_router: decode_router.DecodeRouter = decode_router.decode_router
    router_topk: router_topk.RouterTopk = router_topk.router_topk
    moe_gate_up: moe_gate_up.MoeGateUp = moe_gate_up.moe_gate_up
    moe_down: moe_down.MoeDown = moe_down.moe_down
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Operations whose Metal kernel was wanted but cannot be used, and why."""

    @property
    def pages(self) -> bool:
        """Whether a token's keys and values go to a page: the references have no use for one."""
        return self.decode_attention is not decode_attention.decode_attention


MODULES: Mapping[str, ModuleType] = {
    "quantized_matvec": quantized_matvec,
    "decode_qkv": decode_qkv,
    "decode_attention": decode_attention,
    "decode_router": decode_router,
    "router_topk": router_topk,
    "moe_gate_up": moe_gate_up,
    "moe_down": moe_down,
}
"""Where each operation is: `metal(factory)` builds its kernel, `examples(dtype)` its test."""


def choose_kernels(
    dtype: mx.Dtype, *, wish: str | None = None, factory: Factory | None = None
) -> Kernels:
    """The kernels for MLX's default device.

    wish: "metal", which fails rather than leave a kernel out, "reference", or "" for either as the
    device allows; by default what the environment's GPTOSS_KERNELS says.
    factory: what builds Metal kernels in place of MLX's, wherever it may run them.
    Raises KernelError.
    """
    wish = os.environ.get(VARIABLE, "") if wish is None else wish
    if wish not in ("", "metal", "reference"):
        raise KernelError(f'{VARIABLE} is "{wish}"; it may be "metal" or "reference"')
    possible = factory is not None or mx.default_device() == mx.Device(mx.gpu)
    if wish == "metal" and not possible:
        raise KernelError(f'{VARIABLE} is "metal", but MLX computes on the CPU here')
    if wish == "reference" or not possible:
        return Kernels()
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, module in MODULES.items():
        try:
            found[name] = checked(module, name, dtype, factory)
        except Exception as error:  # whatever it is, the model can be computed without
            left_out[name] = " ".join(str(error).split()) or type(error).__name__
    if left_out and wish == "metal":
        name, why = next(iter(left_out.items()))
        raise KernelError(f"the Metal kernel {name} cannot be used: {why}")
    return Kernels(**found, left_out=left_out)


def checked(
    module: ModuleType, name: str, dtype: mx.Dtype, factory: Factory | None = None
) -> Callable[..., Any]:
    """The module's Metal kernel. Raises KernelError if it does not agree with its reference."""
    kernel: Callable[..., Any] = module.metal(factory)
    for arguments in module.examples(dtype):
        found = _flat(kernel(*arguments))
        expected = _flat(getattr(module, name)(*map(_widened, arguments)))
        difference = disagreement(found, expected)
        if not difference <= AGREEMENT[dtype]:
            raise KernelError(f"it differs from its reference by {difference:.1e}")
    return kernel


def disagreement(found: Sequence[mx.array], expected: Sequence[mx.array]) -> float:
    """The largest relative L2 of the outputs; infinite where whole numbers or shapes differ."""
    return max(map(_disagreement, found, expected), default=0.0)


def _disagreement(found: mx.array, expected: mx.array) -> float:
    floating = mx.issubdtype(expected.dtype, mx.floating)
    if found.shape != expected.shape or mx.issubdtype(found.dtype, mx.floating) != floating:
        return math.inf
    if not floating:
        return 0.0 if bool(mx.array_equal(found, expected)) else math.inf
    a, b = (np.asarray(x.astype(mx.float32)).astype(np.float64) for x in (found, expected))
    off = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
    return off if math.isfinite(off) else math.inf


def metal_kernels(factory: Factory | None = None) -> Kernels:
    """Every Metal kernel, unchecked; to be looked at, or run by something other than a Mac."""
    built: dict[str, Any] = {name: module.metal(factory) for name, module in MODULES.items()}
    return Kernels(**built)


def implementations(kernels: Kernels) -> dict[str, str]:
    """Of each operation "metal", "reference", or why it is the reference."""
    references = Kernels()
    return {
        name: kernels.left_out.get(name)
        or ("reference" if getattr(kernels, name) is getattr(references, name) else "metal")
        for name in MODULES
    }


def found_here() -> dict[str, str]:
    """The `implementations` of MLX's default device, in the dtype a model has there."""
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    return implementations(choose_kernels(mx.bfloat16 if on_gpu else mx.float32))


def _widened(argument: Any) -> Any:
    """The argument with its bfloat16 arrays, also those inside, in float32."""
    if isinstance(argument, mx.array):
        return argument.astype(mx.float32) if argument.dtype == mx.bfloat16 else argument
    if isinstance(argument, Matrix):
        weight, scales, biases = map(_widened, (argument.weight, argument.scales, argument.biases))
        return Matrix(weight, scales, biases, argument.spec)
    if isinstance(argument, Norm):
        return Norm(_widened(argument.weight), argument.eps)
    if isinstance(argument, list):
        return [tuple(map(_widened, pair)) for pair in argument]
    return argument


def _flat(outputs: Any) -> Sequence[mx.array]:
    return [outputs] if isinstance(outputs, mx.array) else list(outputs)
