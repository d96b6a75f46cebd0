"""What does a turn cost? Tokens read again and time to the first token, turn by turn.

Two agents with one system prompt and the same tools talk in turns: questions, calls, results,
answers, reasoning that is dropped afterwards; in the middle the engine is closed and opened again.
What the model would say is replaced by what was recorded, so that every engine reads the same. The
peers are mlx-lm's prompt cache with the steps of its server (segments, the ten latest prompts), on
the same weights in the same process, and llama.cpp's server with its defaults, on a GGUF file of
them. Their restart is left out: they keep nothing on the disk. They read an answer as a prompt,
which leaves the same cache.

    python -m benchmarks.serve.prefix --peer mlx-lm --llama llama-server model.gguf
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import click
import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

import gptoss_mlx
from benchmarks.serve.servers import running
from gptoss_mlx import Engine, FinishEvent
from gptoss_mlx.backends.protocol import SampledToken
from gptoss_mlx.engine.marks import marks_of
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony import render
from gptoss_mlx.models.hub import locate
from tests.support.agent import Agent, tools

SYSTEM = "You are a careful assistant. Use the tools where they help."
KEPT = 10  # prompts that mlx-lm's server keeps by default
LLAMA_CONTEXT = 65536  # tokens, of all its slots
PATIENCE = 600  # seconds


class Asked(NamedTuple):
    """One request. new: tokens that no sequence before had at this place."""

    ids: list[int]
    reply: list[int]
    options: dict[str, Any]
    messages: list[dict[str, Any]]
    new: int


class Cost(NamedTuple):
    """Tokens read before the answer, and seconds to its first token."""

    read: int
    seconds: float


Answer: TypeAlias = Callable[[Asked], Cost]


@click.command()
@click.option("--model", default="tiny", show_default=True, help="A folder, an id, or tiny.")
@click.option("--backend", type=click.Choice(["mlx", "torch", "cpu"]), help="What computes.")
@click.option("--peer", type=click.Choice(["mlx-lm"]), help="Measure this one too.")
@click.option("--llama", nargs=2, metavar="SERVER GGUF", help="llama-server, and its file.")
@click.option("--turns", default=20, show_default=True, type=click.IntRange(1))
@click.option("--tools", "count", default=40, show_default=True, type=click.IntRange(0))
@click.option("--words", default=40, show_default=True, type=click.IntRange(1), help="A message's.")
@click.option("--cache", default="1GiB", show_default=True, help="Of the prefix store.")
def main(
    model: str,
    backend: str | None,
    peer: str | None,
    llama: tuple[str, str] | None,
    turns: int,
    count: int,
    words: int,
    cache: str,
) -> None:
    """Measure what each turn costs; one JSON line last."""
    try:
        folder = locate(model)
        with tempfile.TemporaryDirectory() as kept:
            ours = Ours(folder, backend, cache, Path(kept))
            requests = list(recorded(ours.engine, turns, count, words))
            costs = {"gptoss_mlx": measure(ours.answer, requests, ours.restart)}
            backend = ours.backend
            ours.engine.close()
    except GptOssError as error:
        raise click.ClickException(str(error)) from None
    if peer is not None:
        costs[peer] = measure(mlx_lm(folder), requests, lambda: None)
    if llama is not None:
        server, file = llama
        with running([server, "-m", file, "--jinja", "-c", str(LLAMA_CONTEXT)]) as url:
            costs["llama.cpp"] = measure(llama_cpp(url), requests, lambda: None)
    report = {
        "benchmark": "serve.prefix",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "date": date.today().isoformat(),
        "model": model,
        "backend": backend,
        "turns": turns,
        "requests": len(requests),
        "tools_tokens": marks_of(requests[0].ids, harmony=True).head,
        "longest_prompt": max(len(asked.ids) for asked in requests),
        "new": [asked.new for asked in requests],
        "costs": {name: summary(requests, costs[name]) for name in costs},
    }
    _show(report)
    print(json.dumps(report))


def recorded(engine: Engine, turns: int, count: int, words: int) -> Iterator[Asked]:
    """The requests of two agents, one after the other, each with the reply that is known."""
    encoding = engine.tokenizer.harmony
    assert encoding is not None, "the checkpoint is not one of Harmony's"
    agents = [Agent(name, tools(count), words) for name in ("one", "two")]
    seen: list[np.ndarray[Any, Any]] = []
    i = 0
    while any(agent.turns < turns for agent in agents):
        agent = agents[i % 2]
        i += 1
        if agent.turns >= turns:
            continue
        options: dict[str, Any] = {"tools": agent.tools, "system": SYSTEM}
        ids = render(encoding, agent.messages, **options)
        reply = encoding.encode_special(agent.reply)
        asked = np.array(ids[:-1])
        new = len(asked) - max((_common(asked, before) for before in seen), default=0)
        yield Asked(ids, reply, options, list(agent.messages), new)
        seen.append(np.array([*ids, *reply]))
        agent.heard()


def _common(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int:
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length


def measure(answer: Answer, requests: Sequence[Asked], restart: Callable[[], None]) -> list[Cost]:
    """The cost of each request; a restart comes in the middle."""
    costs = []
    for i, asked in enumerate(requests):
        if i == len(requests) // 2:
            restart()
        costs.append(answer(asked))
    return costs


class Ours:
    """Our engine, with a store in memory and on the disk, and a model that says what it is told."""

    def __init__(self, folder: Path, backend: str | None, cache: str, kept: Path) -> None:
        self._open = lambda: gptoss_mlx.load(folder, backend=backend, cache=cache, cache_dir=kept)
        self.engine = self._open()
        self.backend = None if self.engine.plan is None else self.engine.plan.backend
        self._reply: list[int] = []

    def restart(self) -> None:
        self.engine.close()
        self.engine = self._open()

    def answer(self, asked: Asked) -> Cost:
        model: Any = self.engine.model
        model.sampler = lambda *_: Told(asked.reply)
        model.choose = lambda logits, draws: [
            d.sampler.choose(logits[d.row], d.step) for d in draws
        ]
        events = self.engine.stream(asked.messages, constrain_headers=False, **asked.options)
        (finish,) = (event for event in events if isinstance(event, FinishEvent))
        assert finish.completion_tokens == len(asked.reply)
        return Cost(finish.timings.prefill_tokens, finish.timings.first_token)


class Told:
    """A sampler of known tokens."""

    def __init__(self, reply: Sequence[int]) -> None:
        self._reply = reply

    def choose(self, logits: Any, step: int) -> Any:
        return Known(self._reply[min(step, len(self._reply) - 1)], logits)

    def accept(self, choice: Any) -> None:
        pass


class Known:
    """A token known before its logits are, which are waited for when it is read."""

    def __init__(self, id: int, logits: Any) -> None:
        self._id, self._logits, self.token = id, logits, [id]

    def read(self) -> SampledToken:
        assert float(self._logits[0]) < float("inf")
        return SampledToken(self._id)


def mlx_lm(folder: Path) -> Answer:
    """mlx-lm's prompt cache, used as its server does for one request at a time."""
    import mlx.core as mx
    from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)
    kept = LRUPromptCache(KEPT)

    def read(ids: Sequence[int], cache: Any) -> Any:
        for i in range(0, len(ids), 512):
            logits = model(mx.array([ids[i : i + 512]]), cache=cache)
            mx.eval([c.state for c in cache])
        return logits

    def answer(asked: Asked) -> Cost:
        begun = time.perf_counter()
        cache, rest = kept.fetch_nearest_cache("model", asked.ids)
        cache = cache or make_prompt_cache(model)
        at = len(asked.ids) - len(rest)
        # Where the prompt ends with a question, a copy is kept of its system message.
        end = marks_of(asked.ids, harmony=True).head + 2
        if asked.messages[-1]["role"] == "user" and at < end:
            read(asked.ids[at:end], cache)
            kept.insert_cache("model", asked.ids[:end], deepcopy(cache), cache_type="system")
            at = end
        mx.eval(read(asked.ids[at:], cache)[0, -1])
        seconds = time.perf_counter() - begun
        read(asked.reply[:-1], cache)
        kept.insert_cache("model", asked.ids + asked.reply[:-1], cache)
        return Cost(len(rest) - 1, seconds)

    return answer


def llama_cpp(url: str) -> Answer:
    """llama.cpp's server, asked in tokens."""

    def ask(ids: Sequence[int]) -> int:
        """Tokens that it read."""
        body = {"prompt": list(ids), "n_predict": 1, "cache_prompt": True, "temperature": 0}
        answer = httpx.post(f"{url}/completion", json=body, timeout=PATIENCE, trust_env=False)
        return int(answer.raise_for_status().json()["timings"]["prompt_n"])

    def answer(asked: Asked) -> Cost:
        begun = time.perf_counter()
        read = ask(asked.ids)
        seconds = time.perf_counter() - begun
        ask(asked.ids + asked.reply[:-1])
        return Cost(read - 1, seconds)

    return answer


def summary(requests: Sequence[Asked], costs: Sequence[Cost]) -> dict[str, Any]:
    """Of the first request of each agent apart: it has nothing to go on from."""
    later = range(2, len(requests))
    again = [costs[i].read - requests[i].new for i in range(len(requests))]
    return {
        "read": [cost.read for cost in costs],
        "read_again_at_most": max(again),
        "read_again_in_all": sum(again),
        "first_token_s": [round(cost.seconds, 4) for cost in costs],
        "first_token_over_first": round(
            statistics.median(costs[i].seconds for i in later) / costs[0].seconds, 4
        )
        if later
        else None,
    }


def _show(report: dict[str, Any]) -> None:
    table = Table(
        title=f"{report['requests']} requests, {report['tools_tokens']} tokens of instructions and"
        f" tools, prompts of up to {report['longest_prompt']}; {sum(report['new'])} tokens are new"
    )
    titles = ("read", "of them again", "at most", "first token of turn n over turn 1, median")
    for title in ("", *titles):
        table.add_column(title, justify="left" if not title else "right")
    for name, found in report["costs"].items():
        figures = (sum(found["read"]), found["read_again_in_all"], found["read_again_at_most"])
        table.add_row(name, *map(str, figures), str(found["first_token_over_first"]))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
