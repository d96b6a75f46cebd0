"""Attention over paged keys and values of any sequences, against float64."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.cache import EVERYTHING, Pages, addresses
from tests.support.native import EXACT, device_of, relative, variants

pytestmark = pytest.mark.parametrize("variant", variants())

Array: TypeAlias = NDArray[Any]


@dataclass
class Sequence:
    """Tokens that are appended after `seen` others. start: of the visible places, which a ring has
    shifted."""

    seen: int
    tokens: int
    window: int = EVERYTHING
    pages: list[Array] = field(default_factory=list)
    keys: Array = field(default_factory=lambda: np.zeros(0))
    values: Array = field(default_factory=lambda: np.zeros(0))


class Attending:
    """Sequences, their pages filled by the kernel that stores tokens, in two calls."""

    def __init__(
        self, variant: str, pages: Pages, heads: int, sequences: list[Sequence], seed: int = 0
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.device, self.pages, self.heads = device_of(variant, 3), pages, heads
        self.sequences = sequences
        self.dim, self.kv = pages.head_dim, pages.kv_heads
        self.sinks = self.rng.standard_normal(heads).astype(np.float32)
        self.scale = self.dim**-0.5
        for one in sequences:
            count = -(-(one.seen + one.tokens) // pages.places)
            one.pages = [np.zeros((1, pages.nbytes), np.uint8) for _ in range(count)]
            one.keys = one.values = np.zeros((0, self.kv, self.dim))
        before = [
            Sequence(0, one.seen, one.window, one.pages, one.keys, one.values) for one in sequences
        ]
        self.append([one for one in before if one.tokens])
        for one, earlier in zip(sequences, before, strict=True):
            one.keys, one.values = earlier.keys, earlier.values
        self.queries = self.append(sequences)

    def append(self, sequences: list[Sequence]) -> Array:
        """Store random tokens; returns qkv with the rotated queries."""
        if not sequences:
            return np.zeros(0)
        tokens = sum(one.tokens for one in sequences)
        row = (self.heads + 2 * self.kv) * self.dim
        qkv = self.rng.standard_normal((tokens, row)).astype(np.float32)
        angles = self.rng.uniform(0, 6, (tokens, self.dim // 2))
        cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        exact = qkv.astype(np.float64).reshape(tokens, -1, self.dim)
        turned = rotated(exact[:, : self.heads + self.kv], cosines, sines)
        spans, tables = self.spans(sequences)
        writes = np.array([one.seen for one in sequences], np.int64)
        address = library.address
        call = library.StoreCall(
            self.pages.shape(self.heads),
            len(sequences),
            address(spans),
            address(writes),
            *map(address, (qkv, cosines, sines)),
        )
        self.device.store(self.device.handle, ctypes.byref(call))
        del tables
        at = 0
        for one in sequences:
            part = slice(at, at + one.tokens)
            one.keys = np.concatenate([one.keys, self.held(turned[part, self.heads :])])
            one.values = np.concatenate(
                [one.values, self.held(exact[part, self.heads + self.kv :])]
            )
            at += one.tokens
        self.turned = turned[:, : self.heads]
        return qkv

    def held(self, x: Array) -> Array:
        """Values as a page of this type holds them."""
        if self.pages.type == "bfloat16":
            bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
            rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & ~np.uint64(0xFFFF)
            return rounded.astype(np.uint32).view(np.float32).astype(np.float64)
        if self.pages.type == "uint8":
            least, most = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
            step = (most - least) / 255
            return np.rint((x - least) / step) * step + least
        return x

    def spans(self, sequences: list[Sequence]) -> tuple[Array, list[Array]]:
        tables = [
            np.array([addresses(page)[0] for page in one.pages], np.int64) for one in sequences
        ]
        each = [
            (one.tokens, one.seen, one.window, library.address(table))
            for one, table in zip(sequences, tables, strict=True)
        ]
        return np.array(each, np.int64), tables

    def run(self) -> Array:
        tokens = sum(one.tokens for one in self.sequences)
        y = np.full((tokens, self.heads * self.dim), np.nan, np.float32)
        most = max(one.seen + one.tokens for one in self.sequences)
        parts = len(self.sequences) * (most // 1024 + 2) * self.heads * (self.dim + 2)
        partials = np.full(parts, np.nan, np.float32)
        spans, tables = self.spans(self.sequences)
        address = library.address
        call = library.AttentionCall(
            self.pages.shape(self.heads),
            len(self.sequences),
            address(spans),
            *map(address, (self.queries, self.sinks)),
            self.scale,
            *map(address, (partials, y)),
        )
        self.device.attention(self.device.handle, ctypes.byref(call))
        del tables
        return y

    def exact(self) -> Array:
        out, at, group = [], 0, self.heads // self.kv
        for one in self.sequences:
            for i in range(one.tokens):
                end = one.seen + i + 1
                begin = max(0, end - one.window)
                for head in range(self.heads):
                    keys = one.keys[begin:end, head // group]
                    scores = keys @ self.turned[at + i, head] * self.scale
                    most = max(scores.max(), self.sinks[head])
                    shares = np.exp(scores - most)
                    total = shares.sum() + np.exp(self.sinks[head] - most)
                    out.append(shares @ one.values[begin:end, head // group] / total)
            at += one.tokens
        return np.array(out).reshape(at, -1)


def rotated(x: Array, cosines: Array, sines: Array) -> Array:
    half = x.shape[-1] // 2
    a, b, cos, sin = x[..., :half], x[..., half:], cosines[:, None], sines[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


LIMITS = {"float32": EXACT, "bfloat16": 1e-3, "uint8": 1e-3}
"""Rounded to fewer bits, a rotated key may fall to the other side of a half."""


@given(st.data())
@settings(max_examples=40)
def test_any_sequences_attend_exactly(variant: str, data: st.DataObject) -> None:
    draw = data.draw
    kv, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 8]))
    dim, type = draw(st.sampled_from([8, 16, 24, 64])), draw(st.sampled_from([*LIMITS]))
    pages = Pages(kv, dim, type, draw(st.sampled_from([16, 48, 64, 256])))
    sequences = [
        Sequence(
            draw(st.integers(0, 300)),
            draw(st.sampled_from([1, 1, 2, 9, 70])),
            draw(st.sampled_from([EVERYTHING, 5, 128])),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    ours = Attending(variant, pages, kv * group, sequences, draw(st.integers(0, 2**32 - 1)))
    assert relative(ours.run(), ours.exact()) < LIMITS[type]


@pytest.mark.parametrize("type", [*LIMITS])
def test_long_sequences_in_parts_and_short_ones_beside_them(variant: str, type: str) -> None:
    sequences = [Sequence(3000, 1), Sequence(10, 1), Sequence(2047, 1), Sequence(2500, 3)]
    ours = Attending(variant, Pages(2, 16, type, 256), 4, sequences)
    assert relative(ours.run(), ours.exact()) < LIMITS[type]


def test_a_window_that_begins_anywhere_and_is_split(variant: str) -> None:
    sequences = [Sequence(3000 + i, 1, 2500 + 3 * i) for i in range(3)]
    ours = Attending(variant, Pages(2, 16, "float32", 256), 4, sequences)
    assert relative(ours.run(), ours.exact()) < EXACT


def test_a_sequence_does_not_depend_on_the_others(variant: str) -> None:
    sequences = [Sequence(1500, 1), Sequence(40, 1), Sequence(7, 5)]
    both = Attending(variant, Pages(2, 32, "float32", 256), 8, sequences)
    together, at = both.run(), 0
    queries = both.queries
    for one in sequences:
        both.sequences, both.queries = [one], np.ascontiguousarray(queries[at : at + one.tokens])
        np.testing.assert_array_equal(both.run(), together[at : at + one.tokens])
        at += one.tokens


def test_scores_far_apart_and_sinks_far_above(variant: str) -> None:
    ours = Attending(variant, Pages(1, 16, "float32", 64), 2, [Sequence(200, 1), Sequence(0, 130)])
    ours.scale = 50.0
    ours.sinks[:] = [-1e4, 300.0]
    assert relative(ours.run(), ours.exact()) < 1e-5  # a score of 1000 is rounded by 6e-5


def test_bfloat16_is_the_nearest_and_of_two_the_even_one(variant: str) -> None:
    pages = Pages(1, 16, "bfloat16", 64)
    page = np.zeros((1, pages.nbytes), np.uint8)
    values = np.zeros(16, np.float32)
    values[:8] = [
        1,
        1 + 2**-8,
        1 + 3 * 2**-8,
        1 + 2**-8 + 2**-20,
        -1 - 2**-8,
        2**127,
        np.inf,
        np.nan,
    ]
    rounded = [1, 1, 1 + 2**-6, 1 + 2**-7, -1, 2**127, np.inf, np.nan]
    qkv = np.concatenate([np.zeros(32, np.float32), values])
    one, nothing = np.ones(8, np.float32), np.zeros(8, np.float32)
    table = np.array([library.address(page)], np.int64)
    spans, writes = np.array([1, 5, EVERYTHING, table.ctypes.data], np.int64), np.array([5])
    device, arrays = device_of(variant), (spans, writes, qkv, one, nothing)
    call = library.StoreCall(pages.shape(1), 1, *map(library.address, arrays))
    device.store(device.handle, ctypes.byref(call))
    bits = pages.parts(page)[1][0, 0, 5].astype(np.uint32) << 16
    np.testing.assert_array_equal(bits.view(np.float32)[:8], np.float32(rounded))
