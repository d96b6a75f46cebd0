"""Thousands of requests to a server, with callers that leave, read slowly or send what is none.

Each API is asked. Memory is noted after every request, and each thousand's median reported, beside
the statuses, and the sequences, threads and files that are left at the end.

    python -m benchmarks.serve.server_soak --requests 10000
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import random
import statistics
import threading
import time
from collections import Counter
from datetime import date
from typing import Any

import click
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import gptoss_mlx
from gptoss_mlx.models.hub import locate
from gptoss_mlx.server.app import App
from gptoss_mlx.server.listener import Listener, bind
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.registry import Registry, ServedModel
from gptoss_mlx.server.service import Service
from gptoss_mlx.settings import Settings
from gptoss_mlx.system.heap import return_freed

MiB = 1 << 20
BLOCK = 1000  # requests of a row of the report
PATIENCE = 120.0  # seconds
KINDS = {"read": 60, "leave": 15, "slow": 5, "bad": 20}
"""What a caller does -> how often, of a hundred."""

BAD = (
    b"",
    b"{",
    b"[]",
    b'{"messages": []}',
    b'{"messages": "x"}',
    b'{"messages": [{"role": "user", "content": 5}]}',
    b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": 99}',
    b"[" * 10_000,
    b"\xff" * 100,
)


@click.command()
@click.option("--model", default="tiny", show_default=True, help="A folder, an id, or tiny.")
@click.option("--requests", default=10_000, show_default=True, type=click.IntRange(1))
@click.option("--callers", default=16, show_default=True, type=click.IntRange(1, 64))
def main(model: str, requests: int, callers: int) -> None:
    """Ask a server many things, some of them bad; one JSON line last."""
    report = asyncio.run(_soak(model, requests, callers))
    table = Table(title="medians of memory, MiB")
    for column in ("requests", "resident"):
        table.add_column(column, justify="right")
    for row in report["blocks"]:
        table.add_row(*map(str, row.values()))
    Console(stderr=True).print(table)
    print(json.dumps(report))


class Soak:
    """The callers of one server, and what has become of their requests."""

    def __init__(self, port: int, requests: int) -> None:
        self.port, self.left = port, requests
        self.statuses: Counter[int] = Counter()
        self.resident: list[float] = []
        self.kinds: Counter[str] = Counter()
        self._process = psutil.Process()

    async def call(self, number: int) -> None:
        """Ask one thing after the other until all have been asked."""
        rng = random.Random(number)
        while self.left > 0:
            self.left -= 1
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            path, body = _request(rng, kind)
            async with asyncio.timeout(PATIENCE):
                status = await self._ask(rng, kind, path, body)
            self.kinds[kind] += 1
            self.statuses[status] += 1
            self.resident.append(self._process.memory_info().rss / MiB)

    async def _ask(self, rng: random.Random, kind: str, path: str, body: bytes) -> int:
        """The status, 0 where the caller left before it came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        head += f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            if kind == "leave":
                await asyncio.sleep(rng.random() * 0.3)
                return 0
            status = int((await reader.readline()).split()[1])
            while data := await reader.read(64 if kind == "slow" else 65536):
                if kind == "slow" and len(data):
                    await asyncio.sleep(0.005)
            return status
        finally:
            writer.transport.abort()


def _request(rng: random.Random, kind: str) -> tuple[str, bytes]:
    """A path and a body."""
    if kind == "bad":
        path = rng.choice(("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"))
        return path, rng.choice(BAD)
    text = f"What is {rng.randrange(90)} + {rng.randrange(90)}?"
    most, stream = rng.randint(1, 5) if kind != "leave" else 200, rng.random() < 0.7
    messages = [{"role": "user", "content": text}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages, "max_tokens": most},
        "/v1/responses": {"input": text, "max_output_tokens": most},
        "/v1/messages": {"messages": messages, "max_tokens": most, "model": "claude"},
        "/api/chat": {"messages": messages, "options": {"num_predict": most}},
        "/v1/completions": {"prompt": text, "max_tokens": most},
    }
    path = rng.choice(list(bodies))
    return path, json.dumps({**bodies[path], "stream": stream}).encode()


async def _soak(model: str, requests: int, callers: int) -> dict[str, Any]:
    process, folder = psutil.Process(), locate(model)
    threads, files = threading.active_count(), process.num_fds()

    def opened(*_: object) -> gptoss_mlx.Engine:
        return gptoss_mlx.load(folder, context=1024, parallel=8, cache="32MiB")

    registry = Registry([ServedModel("model", Settings())], opener=opened)
    policy = Policy(max_queue=256)
    listener = Listener(App(Service(registry, policy)), policy)
    rows: list[dict[str, float]] = []
    with bind("127.0.0.1", 0) as listening:
        serving = asyncio.create_task(listener.serve([listening]))
        served = registry.find(None)
        while served.status != "ready":
            await asyncio.sleep(0.05)
        soak = Soak(listening.getsockname()[1], requests)
        begun = time.perf_counter()
        calling = asyncio.gather(*(soak.call(number) for number in range(callers)))
        with Progress(console=Console(stderr=True), disable=not os.isatty(2)) as bar:
            task, done = bar.add_task("requests", total=requests), 0
            while len(soak.resident) > done or not calling.done():
                if len(soak.resident) >= done + BLOCK or calling.done():
                    block = soak.resident[done : done + BLOCK]
                    done += len(block)
                    rows.append(
                        {"requests": done, "resident_mib": round(statistics.median(block), 2)}
                    )
                    return_freed()
                await asyncio.sleep(0.05)
                bar.update(task, completed=len(soak.resident))
        await calling
        seconds = time.perf_counter() - begun
        left_at = time.perf_counter()
        while served.sequences and time.perf_counter() - left_at < PATIENCE:
            await asyncio.sleep(0.01)
        sequences = served.sequences
        listener.should_exit = True
        await serving
    await asyncio.get_running_loop().shutdown_default_executor()
    gc.collect()
    return {
        "benchmark": "server_soak",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "date": date.today().isoformat(),
        "model": folder.name,
        "requests": sum(soak.kinds.values()),
        "callers": callers,
        "seconds": round(seconds, 1),
        "kinds": dict(soak.kinds),
        "statuses": {str(status): count for status, count in sorted(soak.statuses.items())},
        "blocks": rows,
        "sequences_left": sequences,
        "threads_left": threading.active_count() - threads,
        "files_left": process.num_fds() - files,
    }


if __name__ == "__main__":
    main()
