"""Sections of benchmarks.cuda that go through the engine, or load a folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda.setup import GIB, Bench, Row, Section
from benchmarks.cuda.timing import wait
from gptoss_mlx.backends.protocol import sealed
from gptoss_mlx.backends.torch.model import open_model
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, TokenEvent
from gptoss_mlx.harmony.tokenizer import Decoder
from gptoss_mlx.models.checkpoint import Checkpoint


class Numbers:
    """A tokenizer of no text: nothing stops, and a token's text is its number."""

    harmony = None
    stop_ids: frozenset[int] = frozenset()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, most: float = 0.0) -> list[int]:
        return [int(word) for word in text.split()]

    def decoder(self) -> Decoder:
        return Decoder(lambda id: b"%d " % id)


def engine(bench: Bench) -> Section:
    """Greedy answers as events: what sampling and Python add to the steps themselves."""
    amounts = bench.amounts
    for count in amounts.streams:
        model = bench.opened(count, amounts.stream_prompt)
        made = Engine(
            sealed(model),
            Numbers(bench.config.vocab_size),
            bench.config,
            model.cache.context,
            {},
        )
        prompts = [prompt.tolist() for prompt in bench.ids(count, amounts.stream_prompt)]
        for temperature in (0.0, 1.0):
            _answered(made, prompts, 2, temperature)  # graphs and kernels are there after it
            times = _answered(made, prompts, amounts.stream_tokens, temperature)
            # From the moment that every stream has its first token.
            begun = max(of[0] for of in times)
            after = [at for of in times for at in of if at > begun]
            taken = max(after) - begun
            rate = len(after) / taken
            row: Row = {"streams": count, "temperature": temperature, "tok_s": rate}
            yield {**row, "ms": 1000 * count / rate, "tokens": len(after)}
        del made, model


def _answered(
    engine: Engine, prompts: list[list[int]], tokens: int, temperature: float
) -> list[list[float]]:
    """When each token of each prompt's answer came."""
    options: dict[str, Any] = {
        "raw": True,
        "temperature": temperature,
        "seed": 0,
        "max_tokens": tokens,
    }
    times: list[list[float]] = [[] for _ in prompts]
    for i, event in _events(engine, prompts, options):
        if isinstance(event, TokenEvent):
            times[i].append(time.perf_counter())
    return times


def _events(
    engine: Engine, prompts: list[list[int]], options: dict[str, Any]
) -> Iterator[tuple[int, Event]]:
    if len(prompts) == 1:
        return ((0, event) for event in engine.stream(prompts[0], **options))
    return engine.stream_many(prompts, **options)


def folder(bench: Bench) -> Section:
    """A real checkpoint: load, then the first token. Its files may be in the system's memory."""
    if bench.folder is None:
        yield {"left_out": "load-to-ready needs a checkpoint: --folder DIR"}
        return
    bench.model = None
    bench.release()
    yield _loaded(bench, bench.folder)


def _loaded(bench: Bench, path: Path) -> Row:
    begun = time.perf_counter()
    checkpoint = Checkpoint.open(path)
    model = open_model(
        checkpoint,
        device=str(bench.device),
        context=bench.chunk,
        chunk=bench.chunk,
        kernels=bench.kernels,
    )
    wait(bench.device)
    ready = time.perf_counter() - begun
    state = model.new_state()
    ids = torch.arange(1, 33) % model.config.vocab_size
    model.prefill(ids[:-1].tolist(), state)
    model.decode([ids[-1:].tolist()], [state])[0].argmax().item()
    nbytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    return {
        "folder": path.name,
        "bytes": nbytes,
        "gib": nbytes / GIB,
        "ready_s": ready,
        "gb_s": nbytes / ready / 1e9,
        "first_token_s": time.perf_counter() - begun,
    }
