"""Small random models that between them reach every part of the forward pass, and their prompts.

The same case gives the same checkpoint and the same tokens everywhere: golden logits rest on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.support.checkpoints import Shape


@dataclass(frozen=True)
class Case:
    """A shape, the seed of its weights, and how many tokens it is tried with."""

    shape: Shape
    seed: int
    length: int

    def ids(self) -> list[int]:
        """`length` random tokens of the vocabulary."""
        return tokens(self.shape.vocab, self.length, self.seed)


def tokens(vocab: int, length: int, seed: int = 0) -> list[int]:
    """`length` random tokens below `vocab`."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return [int(token) for token in rng.integers(0, vocab, length)]


def _case(seed: int, length: int, sizes: tuple[int, ...], window: int = 128) -> Case:
    layers, hidden, intermediate, experts, active, heads, kv_heads, head_dim, vocab = sizes
    return Case(
        Shape(
            layers=layers,
            hidden=hidden,
            intermediate=intermediate,
            experts=experts,
            active=active,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=vocab,
            window=window,
        ),
        seed,
        length,
    )


CASES = {
    # layers, hidden, intermediate, experts, active, heads, kv heads, head_dim, vocabulary
    "one_token": _case(1, 1, (2, 320, 160, 5, 1, 5, 1, 64, 256)),
    "below_the_window": _case(2, 127, (3, 192, 288, 12, 3, 6, 3, 48, 640)),
    "exactly_the_window": _case(3, 128, (2, 64, 32, 4, 4, 2, 1, 32, 256)),
    "one_past_the_window": _case(4, 129, (2, 160, 96, 32, 4, 10, 5, 32, 384)),
    "eight_kv_heads": _case(5, 257, (2, 128, 160, 8, 4, 8, 8, 16, 256)),
    "small": _case(6, 300, (2, 64, 96, 4, 2, 4, 2, 16, 512)),
    "wide": _case(7, 384, (2, 512, 480, 8, 4, 8, 2, 64, 768)),
    "one_kv_head": _case(8, 513, (3, 96, 64, 8, 4, 6, 1, 32, 320)),
    "six_layers": _case(9, 640, (6, 128, 64, 16, 4, 8, 4, 16, 512)),
    "long": _case(10, 700, (4, 256, 256, 8, 4, 4, 2, 64, 1024)),
    "narrow_window": _case(11, 200, (4, 96, 128, 6, 2, 3, 3, 32, 300), window=24),
    "odd_window": _case(12, 90, (2, 64, 64, 7, 3, 4, 4, 18, 257), window=7),
}

GOLDEN = ("eight_kv_heads", "one_kv_head", "long", "narrow_window")
"""The cases whose logits are recorded."""
