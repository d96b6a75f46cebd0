"""Which implementation of each operation a model computes with.

On a GPU that is the Metal kernel if a trial on the device has accepted it (trial.py); if not, its
reference computes in its place, and `Kernels.rejected` says why. On a CPU it is the reference.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import mlx.core as mx

from gptoss_mlx.backends.kernels import policy_of
from gptoss_mlx.backends.mlx.ops import (
    decode_attention,
    decode_qkv,
    decode_router,
    moe_down,
    moe_gate_up,
    quantized_matvec,
    router_topk,
)
from gptoss_mlx.backends.mlx.ops.metal import Factory, Threads, largest
from gptoss_mlx.backends.mlx.ops.trial import Trials, Tried
from gptoss_mlx.backends.mlx.ops.verdicts import Verdicts, this_machine
from gptoss_mlx.files.paths import cache_folder


@dataclass(frozen=True)
class Kernels:
    """One implementation of each operation; by default the references.

    trials: what decides for the operations that are `Tried`, None if there are none. lazy: a call
    only queues what it computes; on a CPU some references compute at once.
    """

    quantized_matvec: quantized_matvec.QuantizedMatvec = quantized_matvec.quantized_matvec
    decode_qkv: decode_qkv.DecodeQkv = decode_qkv.decode_qkv
    decode_attention: decode_attention.DecodeAttention = decode_attention.decode_attention
    decode_router: decode_router.DecodeRouter = decode_router.decode_router
    router_topk: router_topk.RouterTopk = router_topk.router_topk
    moe_gate_up: moe_gate_up.MoeGateUp = moe_gate_up.moe_gate_up
    moe_down: moe_down.MoeDown = moe_down.moe_down
    trials: Trials | None = None
    lazy: bool = False

    @property
    def rejected(self) -> Mapping[str, str]:
        """Metal kernels of which some or all pipelines are not used, and why."""
        return {} if self.trials is None else self.trials.rejected

    @property
    def pages(self) -> bool:
        """Whether a token's keys and values are written into a page, as only the kernels need."""
        attention: Any = self.decode_attention
        if isinstance(attention, Tried):
            return not attention.rejected
        return attention is not decode_attention.decode_attention


MODULES: Mapping[str, ModuleType] = {
    "quantized_matvec": quantized_matvec,
    "decode_qkv": decode_qkv,
    "decode_attention": decode_attention,
    "decode_router": decode_router,
    "router_topk": router_topk,
    "moe_gate_up": moe_gate_up,
    "moe_down": moe_down,
}
"""The module of each operation: `metal(factory, threads)` builds its KERNELS, `examples(dtype)` are
small calls of them."""


def choose_kernels(
    *,
    policy: str | None = None,
    factory: Factory | None = None,
    verdicts: Verdicts | None = None,
    raced: bool | None = None,
) -> Kernels:
    """The kernels for MLX's default device.

    policy: "metal" insists on every kernel, "reference" uses none, "" uses those that the device
    allows; by default the value of the environment variable GPTOSS_KERNELS.
    factory: builds Metal kernels in place of `mx.fast.metal_kernel`, on any device.
    verdicts: by default those of the cache folder. raced: whether a kernel slower than its
    reference is left out; by default only without a factory and where none is insisted on.
    Raises KernelError; so does the first call of a kernel that is insisted on and cannot be used.
    """
    possible = factory is not None or mx.default_device() == mx.Device(mx.gpu)
    where = "MLX computes on the CPU here"
    policy = policy_of(policy, "metal", possible=lambda: possible, where=where)
    if policy == "reference" or not possible:
        return Kernels()
    # Kernels insisted on are not raced: their verdicts are not kept, or later starts would trust
    # them as raced.
    verdicts = verdicts or Verdicts(this_machine(), None if factory or policy else cache_folder())
    raced = (factory is None and not policy) if raced is None else raced
    trials = Trials(verdicts, time.perf_counter if raced else None, insist=policy == "metal")
    tried: dict[str, Any] = {
        name: Tried(module.KERNELS, module.metal(factory, trials), getattr(module, name), trials)
        for name, module in MODULES.items()
    }
    return Kernels(**tried, trials=trials, lazy=factory is None)


def metal_kernels(factory: Factory | None = None, threads: Threads = largest) -> Kernels:
    """Every Metal kernel, untried: to inspect it, or to run it on something other than a Mac."""
    built: dict[str, Any] = {
        name: module.metal(factory, threads) for name, module in MODULES.items()
    }
    return Kernels(**built, lazy=factory is None)


def implementations(kernels: Kernels) -> dict[str, str]:
    """By operation: "metal", "reference", or which of its kernels are not used, and why."""
    references = Kernels()
    found = {}
    for name in MODULES:
        implementation = getattr(kernels, name)
        rejected = implementation.rejected if isinstance(implementation, Tried) else ""
        plain = implementation is getattr(references, name)
        found[name] = rejected or ("reference" if plain else "metal")
    return found


def found_here() -> dict[str, str]:
    """The `implementations` of MLX's default device, as trials of small calls in bfloat16 find
    them, and as a model's own calls have found them before."""
    kernels = choose_kernels(verdicts=Verdicts({}, None), raced=False)
    if kernels.trials is None:
        return implementations(kernels)
    for name, module in MODULES.items():
        for arguments in module.examples(mx.bfloat16):
            getattr(kernels, name)(*arguments)
    kernels.trials.rejected.update(Verdicts(this_machine(), cache_folder()).rejected())
    return implementations(kernels)
