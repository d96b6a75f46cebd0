"""The router's choice: which experts a token visits, and how much each counts."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx

from gptoss_mlx.kernels.metal import Factory, MetalKernel

EXPERTS = 1024  # up to which a simdgroup holds a token's logits in registers
SIMDGROUP = 32


class RouterTopk(Protocol):
    """`router_topk`, or what computes the same."""

    def __call__(self, logits: mx.array, k: int) -> tuple[mx.array, mx.array]: ...


def router_topk(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest router logits of each token, and the softmax over just those k.

    logits [tokens, experts] -> ids [tokens, k] uint32, weights [tokens, k] of the logits' dtype.
    The order of the k is not defined; the sum over experts does not depend on it.
    """
    experts = logits.shape[-1]
    ids = mx.argpartition(logits, kth=experts - k, axis=-1)[:, experts - k :]
    weights = mx.softmax(mx.take_along_axis(logits, ids, axis=-1), axis=-1, precise=True)
    return ids.astype(mx.uint32), weights


def metal(factory: Factory | None = None) -> RouterTopk:
    """As `router_topk`, with metal/router_topk.metal; the largest logit's expert comes first.

    Of equal logits the lowest expert is chosen; NaN is chosen last.
    """
    kernel = MetalKernel("router_topk", ["logits"], ["ids", "weights"], factory)

    def run(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
        tokens, experts = logits.shape
        if not experts <= EXPERTS:
            return router_topk(logits, k)
        ids, weights = kernel(
            logits,
            template={"T": logits.dtype, "EXPERTS": experts, "ACTIVE": k},
            threadgroups=(tokens, 1, 1),
            threads=SIMDGROUP,
            outputs=[((tokens, k), mx.uint32), ((tokens, k), logits.dtype)],
        )
        return ids, weights

    return run
