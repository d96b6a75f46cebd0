"""Routing: which experts compute for each token."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Routing(NamedTuple):
    """The experts chosen for each token, where their matrices lie, and their weights.

    slots    [tokens, k] uint32: the slot of the bank that holds each chosen expert
    experts  [tokens, k] uint32: its id, by which biases are indexed
    weights  [tokens, k]: its share of the sum over a token's experts
    grouped  whether slots ascend, so that an expert's tokens are next to each other
    """

    slots: mx.array
    experts: mx.array
    weights: mx.array
    grouped: bool = False
