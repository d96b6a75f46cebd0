"""What the sections of benchmarks.cuda share: what is to be measured, the model, the yardsticks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda.bytes import Sizes
from benchmarks.cuda.random import fill, random_model
from gptoss_mlx.backends.torch.blocks import Block
from gptoss_mlx.backends.torch.cache import Cache, State
from gptoss_mlx.backends.torch.choice import Kernels
from gptoss_mlx.backends.torch.graph import Graphs
from gptoss_mlx.backends.torch.model import Transformer
from gptoss_mlx.backends.torch.operands import Groups
from gptoss_mlx.spec.config import ModelConfig
from tests.support.checkpoints import SHAPES, Shape, config_json

Row = dict[str, Any]
Section = Iterator[Row]

GIB = 1 << 30
SPARE = 3 * GIB  # of the card's memory: activations of a prompt, graphs, libraries
TINY = Shape(
    layers=4,
    hidden=64,
    intermediate=96,
    experts=4,
    active=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=512,
    window=16,
)


@dataclass(frozen=True)
class Amounts:
    """How much is measured; all in tokens, sequences or steps.

    layers_apart: of every so many layers one is compared with the references. runs: of which a
    median is taken.
    """

    prefill: tuple[int, ...] = (512, 2048, 8192, 32768)
    contexts: tuple[int, ...] = (1024, 8192, 32768)
    batches: tuple[int, ...] = (1, 4, 16, 32)
    steps: int = 64
    buffer: int = 4 * GIB
    matmul: int = 8192
    piece_batches: tuple[int, ...] = (1, 32)
    piece_prefill: int = 2048
    compared_chunk: int = 64
    compared_offsets: tuple[int, ...] = (1000, 517, 64, 0)
    layers_apart: int = 1
    runs: int = 5
    streams: tuple[int, ...] = (1, 8, 32)
    stream_prompt: int = 64
    stream_tokens: int = 256

    @property
    def slack(self) -> int:
        """Tokens that a sequence may grow by while it is measured."""
        return self.steps + self.stream_tokens


QUICK = replace(
    Amounts(), prefill=(512, 8192), contexts=(1024,), batches=(1, 32), steps=32, layers_apart=6
)
LITTLE = Amounts(
    prefill=(16, 40),
    contexts=(24, 40),
    batches=(1, 4),
    steps=3,
    buffer=1 << 20,
    matmul=64,
    piece_batches=(1, 4),
    piece_prefill=24,
    compared_chunk=8,
    compared_offsets=(20, 17, 5, 0),
    streams=(1, 3),
    stream_prompt=6,
    stream_tokens=4,
    runs=2,
)


class NoRoom(RuntimeError):
    """The card has no memory for what is asked."""


@dataclass
class Yardsticks:
    """Measured on this device, per second; 0 until they are. copy counts read and written bytes."""

    copy: float = 0.0
    read: float = 0.0
    flops: float = 0.0

    def read_at(self, rate: float) -> Row:
        """Bytes read a second, beside what can be."""
        row: Row = {"gb_s": rate / 1e9}
        if self.read and self.copy:
            row |= {"share_of_read": rate / self.read, "share_of_copy": rate / self.copy}
        return row

    def multiplied_at(self, rate: float) -> Row:
        """Operations a second, beside what can be."""
        row: Row = {"tflop_s": rate / 1e12}
        return {**row, "share_of_matmul": rate / self.flops} if self.flops else row


@dataclass
class Bench:
    """The state of one run. model: None until it is built, and once it is given up."""

    config: ModelConfig
    amounts: Amounts
    device: torch.device
    dtype: torch.dtype
    kernels: Kernels
    chunk: int
    bits: int | None = None
    folder: Path | None = None
    model: Transformer | None = None
    yard: Yardsticks = field(default_factory=Yardsticks)

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.config, self.dtype.itemsize, self.bits)

    def build(self) -> None:
        """The model, with memory for as many sequences as can be. Raises NoRoom."""
        cache = Cache(self.config, *self._first_room(), self.dtype, self.device)
        self.model = random_model(self.config, self.kernels, cache, self.chunk, self.bits)
        fill(cache)

    def _first_room(self) -> tuple[int, int]:
        context = min(self.amounts.contexts) + self.amounts.slack
        *more, least = sorted(self.amounts.batches, reverse=True)
        for rows in more:
            with suppress(NoRoom):
                return self.room(rows, context, 0)
        return self.room(least, context, 0)

    def opened(self, rows: int, context: int) -> Transformer:
        """The model with memory for so many sequences of so many tokens, and then some.

        Raises NoRoom, or RuntimeError without a model.
        """
        model = self.model
        if model is None:
            raise RuntimeError("the model was not built")
        context += self.amounts.slack
        if model.cache.rows >= rows and model.cache.context >= context:
            return model
        # The old cache goes before the new one comes.
        held = self.sizes.cache(model.cache.rows, model.cache.context)
        found = self.room(rows, context, held)
        model.cache = Cache(self.config, 1, 1, self.dtype, self.device)
        self.release()
        self.model = twin(model, cache=Cache(self.config, *found, self.dtype, self.device))
        fill(self.model.cache)
        return self.model

    def room(self, rows: int, context: int, held: int) -> tuple[int, int]:
        """(rows, context) of a cache: of all that is measured if there is room, or as asked.

        held: bytes in use that will be free. Raises NoRoom.
        """
        amounts = self.amounts
        most = max(*amounts.contexts, *amounts.prefill) + amounts.slack
        if not self.on_card:
            return max(amounts.batches), most
        free = torch.cuda.mem_get_info(self.device)[0] + held - SPARE
        if self.model is None:
            free -= self.sizes.weights
        for choice in ((max(amounts.batches), most), (rows, context)):
            if self.sizes.cache(*choice) <= free:
                return choice
        need = self.sizes.cache(rows, context)
        raise NoRoom(
            f"keys and values of {rows} x {context} tokens take"
            f" {need / GIB:.1f} GiB, but {max(free, 0) / GIB:.1f} GiB are free"
        )

    def release(self) -> None:
        """Give memory that nothing uses back to the card."""
        if self.on_card:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def ids(self, *shape: int) -> torch.Tensor:
        """Random tokens on the device, the same every time."""
        random = torch.Generator(self.device).manual_seed(7)
        vocab = self.config.vocab_size
        return torch.randint(vocab, shape, device=self.device, generator=random)


def tried(what: Row, work: Callable[[], Row]) -> Row:
    """What a measurement finds; where it fails, why."""
    try:
        return {**what, **work()}
    except NoRoom as error:
        return {**what, "left_out": line(error)}
    except Exception as error:  # whatever it is, the rest can still be measured
        return {**what, "error": line(error)}


def line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, NoRoom):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def config_of(name: str, layers: int | None) -> ModelConfig:
    """The config of "120b", "20b" or "tiny", with other layers if so many are given."""
    shape = TINY if name == "tiny" else SHAPES[name]
    if layers is not None:
        shape = replace(shape, layers=layers)
    return ModelConfig.from_values(config_json(shape), Path("config.json"))


def at(model: Transformer, count: int, offset: int) -> list[State]:
    """Sequences that have `offset` tokens, of what the cache happens to hold."""
    states = [model.new_state() for _ in range(count)]
    for state in states:
        state.offset = offset
    return states


def twin(
    model: Transformer,
    cache: Cache | None = None,
    kernels: Kernels | None = None,
    eager: bool = False,
) -> Transformer:
    """The same weights with another cache, with other kernels, or without CUDA graphs."""
    other = copy.copy(model)
    other.cache = cache or model.cache
    if kernels is not None:
        other.kernels, other.norm = kernels, copy.copy(model.norm)
        other.norm.kernels = kernels
        other.blocks = [with_kernels(block, kernels) for block in model.blocks]
    captured = isinstance(model._step, Graphs) and not eager
    other._step = Graphs(other._one_each, other.device) if captured else other._one_each
    return other


def watched(kernels: Kernels) -> tuple[Kernels, list[torch.Tensor]]:
    """The same kernels, and a list that gets the experts [tokens, k] of every layer's choice."""
    chosen: list[torch.Tensor] = []

    def route(logits: torch.Tensor, k: int, tile: int) -> tuple[torch.Tensor, torch.Tensor, Groups]:
        found = kernels.route(logits, k, tile)
        chosen.append(found[0])
        return found

    return replace(kernels, route=route), chosen


def with_kernels(block: Block, kernels: Kernels) -> Block:
    """The same weights with other kernels."""
    other = copy.copy(block)
    for name in ("before", "attention", "between", "moe"):
        part = copy.copy(getattr(block, name))
        part.kernels = kernels
        setattr(other, name, part)
    other.moe.experts = copy.copy(block.moe.experts)
    other.moe.experts.kernels = kernels
    return other
