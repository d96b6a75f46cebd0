"""What does HTTP cost, and how soon does a server answer? Ours beside mlx-lm's and
llama.cpp's, on the same weights.

Tokens a second through the server over the engine alone, in turns in one process, so that the
machine's drift cancels. Then for each server, in a process of its own: from connecting to the
headers while others are answered, many clients at once, and the first token of each turn of a
conversation with tools.

    python -m benchmarks.serve.servers --peer mlx-lm --llama llama-server model.gguf
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import click
import httpx
from rich.console import Console
from rich.table import Table

import gptoss_mlx
from gptoss_mlx.engine.events import FinishEvent
from gptoss_mlx.models.hub import locate
from gptoss_mlx.server.app import App
from gptoss_mlx.server.listener import Listener, bind
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.registry import Registry, ServedModel
from gptoss_mlx.server.service import Service
from gptoss_mlx.settings import Settings
from tests.support.agent import tools

PATIENCE = 600.0  # seconds
SAID = ("content", "reasoning", "reasoning_content", "tool_calls")
QUESTION = "Tell me a long story about a river."


class Timing(NamedTuple):
    """Seconds from connecting to the headers, the first token and the end; tokens."""

    headers: float
    first: float
    end: float
    tokens: int


@click.command()
@click.option("--model", default="tiny", show_default=True, help="A folder, an id, or tiny.")
@click.option("--peer", type=click.Choice(["mlx-lm"]), help="Measure this one too.")
@click.option("--llama", nargs=2, metavar="SERVER GGUF", help="llama-server, and its file.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2))
@click.option("--clients", default=64, show_default=True, type=click.IntRange(1))
@click.option("--turns", default=6, show_default=True, type=click.IntRange(1))
def main(
    model: str,
    peer: str | None,
    llama: tuple[str, str] | None,
    rounds: int,
    tokens: int,
    clients: int,
    turns: int,
) -> None:
    """Measure servers; one JSON line last."""
    folder = locate(model)
    report: dict[str, Any] = {
        "benchmark": "servers",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "date": date.today().isoformat(),
        "model": folder.name,
        "over_the_engine_alone": _over_the_engine(folder, rounds, tokens),
        "servers": {},
    }
    for name, command in _commands(folder, peer, llama).items():
        with running(command) as url:
            report["servers"][name] = {
                **_loaded(url, tokens),
                **_many(url, clients),
                "turns": _conversation(url, turns),
            }
    _show(report)
    print(json.dumps(report))


def _commands(
    folder: Path, peer: str | None, llama: tuple[str, str] | None
) -> dict[str, list[str]]:
    python = [sys.executable, "-W", "ignore", "-m"]
    ours = [*python, "gptoss_mlx", "serve", str(folder), "--context", "16k", "--no-cache-dir"]
    commands = {"ours": [*ours, "--parallel", "4"]}
    if peer is not None:
        commands[peer] = [*python, "mlx_lm", "server", "--model", str(folder)]
    if llama is not None:
        server, file = llama
        commands["llama.cpp"] = [server, "-m", file, "--jinja", "-np", "4", "-c", "65536"]
    return commands


@contextmanager
def running(command: list[str]) -> Iterator[str]:
    """A server's process on a free port; gives its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and process.poll() is None:
            try:
                _ask(url, "Hi", 1)
            except (httpx.HTTPError, AssertionError):
                time.sleep(0.2)
            else:
                break
        yield url
    finally:
        process.terminate()
        process.wait()


def _ask(url: str, prompt: str | list[dict[str, Any]], tokens: int, **body: Any) -> Timing:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    asked = {"messages": messages, "max_tokens": tokens, "stream": True, "temperature": 0, **body}
    first, count = 0.0, 0
    client = httpx.Client(timeout=PATIENCE, trust_env=False)  # which takes longer than the headers
    begun = time.perf_counter()
    with client, client.stream("POST", f"{url}/v1/chat/completions", json=asked) as answer:
        headers = time.perf_counter() - begun
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            delta = (json.loads(line[6:]).get("choices") or [{}])[0].get("delta") or {}
            if any(delta.get(key) for key in SAID):
                count += 1
                first = first or time.perf_counter() - begun
    return Timing(headers, first, time.perf_counter() - begun, count)


def _over_the_engine(folder: Path, rounds: int, tokens: int) -> dict[str, Any]:
    """The same engine asked directly and through HTTP, in turns; the client is another process."""
    with gptoss_mlx.load(folder, context=4096, cache=0) as engine:
        registry = Registry([ServedModel("model", Settings())], opener=lambda *_: engine)
        listener = Listener(App(Service(registry, Policy())), Policy())
        with bind("127.0.0.1", 0) as listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            thread = threading.Thread(target=lambda: asyncio.run(listener.serve([listening])))
            thread.start()
            client = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"import benchmarks.serve.servers as b; b.answer_lines({url!r}, {tokens})",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert client.stdin is not None
            assert client.stdout is not None
            ratios = []
            for i in range(rounds + 1):
                print(file=client.stdin, flush=True)
                through = float(client.stdout.readline())
                alone = _alone(engine, tokens)
                if i:  # the first one warms up
                    ratios.append(alone / through)
            client.stdin.close()
            client.wait()
            listener.should_exit = True
            thread.join()
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {"median": round(quarters[1], 4), "quartiles": [round(q, 4) for q in quarters[::2]]}


def answer_lines(url: str, tokens: int) -> None:
    """The client's process: for each line read, ask once and write the seconds of a token."""
    for _ in sys.stdin:
        timing = _ask(url, QUESTION, tokens)
        print((timing.end - timing.first) / (timing.tokens - 1), flush=True)


def _alone(engine: gptoss_mlx.Engine, tokens: int) -> float:
    """Seconds of a token after the first."""
    times = []
    for event in engine.stream(QUESTION, max_tokens=tokens, temperature=0):
        if isinstance(event, FinishEvent):
            break
        if getattr(event, "text", ""):
            times.append(time.perf_counter())
    return (time.perf_counter() - times[0]) / (len(times) - 1)


def _loaded(url: str, tokens: int, others: int = 3, asked: int = 20) -> dict[str, float]:
    """Milliseconds to the headers while other answers are written and prompts are read."""
    over = threading.Event()

    def busy(number: int) -> None:
        while not over.is_set():
            _ask(url, f"{number} " + "word " * 300, tokens)

    with ThreadPoolExecutor(others) as pool:
        working = [pool.submit(busy, i) for i in range(others)]
        times = [_ask(url, f"Question {i}", 1).headers * 1e3 for i in range(asked)]
        over.set()
        for work in working:
            work.result()
    return {
        "headers_ms_median": round(statistics.median(times), 2),
        "headers_ms_most": round(max(times), 2),
    }


def _many(url: str, clients: int) -> dict[str, float]:
    """Seconds of many at once: to the first token, and until all are answered."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda i: _ask(url, f"What is {i} + 5?", 8), range(clients)))
    return {
        "clients": clients,
        "all_seconds": round(time.perf_counter() - begun, 2),
        "first_seconds_median": round(statistics.median(timing.first for timing in found), 2),
    }


def _conversation(url: str, turns: int) -> list[float]:
    """Seconds to the first token of each turn, with some thousand tokens at the head. They are the
    system's text: mlx-lm renders no tools with the template of the small model."""
    head = "Be careful. These are the tools:\n" + json.dumps(tools(8))
    messages: list[dict[str, Any]] = [{"role": "system", "content": head}]
    times = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"What is {turn} + {turn + 7}?"})
        times.append(round(_ask(url, messages, 4).first, 3))
        messages.append({"role": "assistant", "content": f"It is {2 * turn + 7}."})
    return times


def _show(report: dict[str, Any]) -> None:
    table = Table(title="servers")
    for column in ("", "headers, ms", "at most", "first, s", "all, s", "turns, s"):
        table.add_column(column, justify="right")
    for name, row in report["servers"].items():
        turns = " ".join(str(seconds) for seconds in row["turns"])
        values = (row["headers_ms_median"], row["headers_ms_most"])
        many = (row["first_seconds_median"], row["all_seconds"])
        table.add_row(name, *map(str, (*values, *many)), turns)
    console = Console(stderr=True)
    console.print(table)
    console.print("tokens a second over the engine alone:", report["over_the_engine_alone"])


if __name__ == "__main__":
    main()
