"""Initial weights: attention heads that look back, match and copy, so that training need not spend
hours on finding them.

Random weights lead to such heads too, but only after millions of tokens. These are initial values
only; every weight is trained afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convert.tiny.network import Network, Shape
from gptoss_mlx.harmony import Encoding

FAST_PAIRS = 8  # rotary pairs that turn fast enough to tell neighbours apart
SLOW_FROM = 12  # rotary pairs from here on hardly turn within a conversation
SHARPNESS = 4.0
MATCH = 1.3
COPY = 1.0
SINK = 2.0


def orthonormal(rows: int, columns: int) -> Tensor:
    q: Tensor = torch.linalg.qr(torch.randn(columns, rows))[0]
    return q.T


@torch.no_grad()
def begin(network: Network) -> None:
    """Set the first layer's heads to look one, two and three tokens back, the full layers' to copy.

    In a full layer the first group matches the current token with the token before each key, and
    copies the key's own token (what followed it). The second group matches the current token with
    the key's own token, and copies the token before the key (what led to it).
    """
    shape = network.shape
    size, heads = shape.head_dim, shape.num_attention_heads // shape.num_key_value_heads
    first = network.blocks[0]
    read, write = orthonormal(size, shape.hidden_size), orthonormal(size, shape.hidden_size).T
    first.v_weight[:size] = read
    first.o_weight[:, :size] = write
    for head, distance in enumerate((1, 2, 3)):
        first.q_bias[head * size : (head + 1) * size] = position(shape, distance)
    for group in range(shape.num_key_value_heads):
        first.k_bias[group * size : (group + 1) * size] = position(shape, 0)
    slow = torch.arange(size) % (size // 2) >= SLOW_FROM
    for number, layer in enumerate(network.blocks):
        if shape.is_sliding(number):
            continue
        copied, token = (orthonormal(size, shape.hidden_size) for _ in range(2))
        follow, lead = slice(0, size), slice(heads * size, (heads + 1) * size)
        second = slice(size, 2 * size)
        keep = MATCH * slow[:, None]
        layer.q_weight[follow], layer.k_weight[:size] = keep * read, keep * write.T
        layer.v_weight[:size], layer.o_weight[:, follow] = copied, COPY * copied.T
        layer.q_weight[lead], layer.k_weight[second] = keep * token, keep * token
        layer.v_weight[second], layer.o_weight[:, lead] = write.T, COPY * read.T
        layer.sinks[0] = layer.sinks[heads] = SINK


def position(shape: Shape, distance: int) -> Tensor:
    """[head_dim]: a query that, against the key at distance 0, peaks `distance` tokens back."""
    half = shape.head_dim // 2
    angle = distance * shape.rope_theta ** (-torch.arange(FAST_PAIRS) / half)
    out = torch.zeros(2 * half)
    out[:FAST_PAIRS] = SHARPNESS * angle.cos()
    out[half : half + FAST_PAIRS] = -SHARPNESS * angle.sin()
    return out


def spelled(encoding: Encoding, rows: list[int], width: int) -> Tensor:
    """Initial embeddings, [rows, width]: tokens that are spelled alike begin alike.

    A token's vector is the sum of one for itself, one for its word without spaces and case, and for
    a number one for each digit by its place.
    """
    features: dict[str, Tensor] = {}

    def feature(name: str) -> Tensor:
        return features.setdefault(name, torch.randn(width))

    vectors = []
    for row in rows:
        text = encoding.decode_bytes([row]).decode(errors="replace")
        word = text.strip().lower()
        parts = [feature(f"row {row}"), feature(f"word {word}")]
        if word.isascii() and word.isdigit():
            parts += [feature(f"digit {i} {c}") for i, c in enumerate(reversed(word.rjust(3, "0")))]
        vectors.append(torch.stack(parts).sum(0) / len(parts) ** 0.5)
    return torch.stack(vectors)
