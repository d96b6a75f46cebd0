"""The router's choice: which experts a token visits, and how much each counts."""

from collections.abc import Callable
from typing import TypeAlias

import mlx.core as mx

RouterTopk: TypeAlias = Callable[[mx.array, int], tuple[mx.array, mx.array]]


def router_topk(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest router logits of each token, and the softmax over just those k.

    logits [tokens, experts] -> ids [tokens, k] uint32, weights [tokens, k] of the logits' dtype.
    The order of the k is not defined; the sum over experts does not depend on it.
    """
    experts = logits.shape[-1]
    ids = mx.argpartition(logits, kth=experts - k, axis=-1)[:, experts - k :]
    weights = mx.softmax(mx.take_along_axis(logits, ids, axis=-1), axis=-1, precise=True)
    return ids.astype(mx.uint32), weights
