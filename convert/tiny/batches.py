"""Conversations as tensors: the vocabulary that is kept, and batches of similar length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from convert.tiny import words
from convert.tiny.conversations import encode, make
from gptoss_mlx.harmony import Encoding

LENGTHS = (96, 128, 160, 208, 288, 400, 512, 640, 800, 960)
IGNORE = -100


@dataclass(frozen=True)
class Vocabulary:
    """The rows that are kept; `rows` ascend."""

    rows: list[int]

    def compact(self, ids: list[int]) -> list[int]:
        index = self.index
        return [index.get(i, -1) for i in ids]

    @property
    def index(self) -> dict[int, int]:
        cached = self.__dict__.get("_index")
        if cached is None:
            cached = {row: i for i, row in enumerate(self.rows)}
            object.__setattr__(self, "_index", cached)
        return cached


def collect(encoding: Encoding, seed: int, count: int) -> Vocabulary:
    """The tokens of `count` conversations and of every word and number, but no unknown word's."""
    found: Counter[int] = Counter()
    rng = Random(f"{seed} vocabulary")
    for _ in range(count):
        prompt, reply = encode(encoding, make(rng, False))
        found.update(prompt + reply)
    lists = (words.NOUNS, words.NAMES, words.CITIES, words.COLOURS, words.FOODS, words.PETS)
    for word in [word for part in lists for word in part]:
        found.update(encoding.encode(word) + encoding.encode(" " + word))
    for number in range(1000):  # large ones begin with one to three digits, and go on with three
        found.update(encoding.encode(str(number)) + encoding.encode(f"{number:03d}"))
    unknown = encoding.encode(words.UNKNOWN) + encoding.encode(" " + words.UNKNOWN)
    return Vocabulary(sorted(set(found) - set(unknown)))


@dataclass(frozen=True)
class Batch:
    """ids and targets, int64 [batch, length]; a target is the next id or IGNORE."""

    ids: Tensor
    targets: Tensor
    real: Tensor  # bool: no padding


def collate(pairs: list[tuple[list[int], list[int]]], length: int) -> Batch:
    ids = torch.full((len(pairs), length), -1)
    targets = torch.full((len(pairs), length), IGNORE)
    real = torch.zeros(len(pairs), length, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(pairs):
        whole, start = prompt + reply, len(prompt) - 1
        ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
        targets[row, start : len(whole) - 1] = torch.tensor(reply)
        real[row, : len(whole) - 1] = True
    return Batch(ids, targets, real)


def batches(encoding: Encoding, vocabulary: Vocabulary, seed: int, tokens: int) -> Iterator[Batch]:
    """Endless batches of about `tokens` tokens, conversations of similar length together."""
    rng = Random(f"{seed} train")
    waiting: dict[int, list[tuple[list[int], list[int]]]] = {length: [] for length in LENGTHS}
    while True:
        prompt, reply = (vocabulary.compact(x) for x in encode(encoding, make(rng, False)))
        length = next((n for n in LENGTHS if n >= len(prompt) + len(reply) - 1), None)
        if length is None or -1 in reply:
            continue
        waiting[length].append((prompt, reply))
        if len(waiting[length]) == tokens // length:
            yield collate(waiting[length], length)
            waiting[length] = []
