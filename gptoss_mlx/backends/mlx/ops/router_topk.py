"""The router's choice: which experts a token visits, and how much each counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.metal import (
    SIMDGROUP,
    Factory,
    MetalKernel,
    Template,
    Threads,
    largest,
)

EXPERTS = 1024  # at most, so that a simdgroup holds a token's logits in registers
KERNELS = ("router_topk",)  # of metal/


RouterTopk: TypeAlias = Callable[[mx.array, int], tuple[mx.array, mx.array]]


def router_topk(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest router logits of each token, and the softmax over just those k.

    logits [tokens, experts] -> ids [tokens, k] uint32, weights [tokens, k] of the logits' dtype.
    The largest comes first, and of equal logits the lowest expert.
    """
    ids = mx.argsort(-logits, axis=-1)[:, :k]
    weights = mx.softmax(mx.take_along_axis(logits, ids, axis=-1), axis=-1, precise=True)
    return ids.astype(mx.uint32), weights


def metal(factory: Factory | None = None, threads: Threads = largest) -> RouterTopk:
    """As `router_topk`, with metal/router_topk.metal for up to EXPERTS experts."""
    kernel = MetalKernel(
        "router_topk", ["logits"], ["ids", "weights"], factory, threads, [SIMDGROUP]
    )

    def run(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
        tokens, experts = logits.shape
        template: Template = {"T": logits.dtype, "EXPERTS": experts, "ACTIVE": k}
        size = kernel.threads(template) if experts <= EXPERTS else 0
        if size == 0:
            return router_topk(logits, k)
        ids, weights = kernel(
            logits,
            template=template,
            threadgroups=(tokens, 1, 1),
            threads=size,
            outputs=[((tokens, k), mx.uint32), ((tokens, k), logits.dtype)],
        )
        return ids, weights

    return run


def examples(dtype: mx.Dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernel."""
    for experts, k in ((32, 4), (100, 5), (5, 1)):
        yield 3 * mx.random.normal((3, experts), key=mx.random.key(experts)).astype(dtype), k
    yield mx.zeros((2, 40), dtype), 3
