"""A real server for tests: uvicorn on a free port of this machine, before engines that are scripted
or small."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.server.app import App
from gptoss_mlx.server.containers import Containers
from gptoss_mlx.server.listener import Listener, bind
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.registry import Alias, Registry, ServedModel
from gptoss_mlx.server.service import Service
from gptoss_mlx.server.text_guard import TextGuard
from gptoss_mlx.settings import Settings
from tests.support.scripted_model import Scripted

LONG = 60.0  # seconds that nothing here takes


@dataclass(frozen=True)
class Served:
    """A running server. client: of its root, without a time limit of its own below LONG."""

    url: str
    client: httpx.Client
    registry: Registry
    service: Service
    listener: Listener

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def stream(self, path: str, body: object, **options: Any) -> list[str]:
        """The lines of a streamed answer."""
        with self.client.stream("POST", path, json=body, **options) as response:
            assert response.status_code == 200, response.read()
            return [line for line in response.iter_lines() if line]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for what another thread does."""
        deadline = threading.Event()
        for _ in range(int(LONG / 0.01)):
            if condition():
                return
            deadline.wait(0.01)
        raise AssertionError("it did not come about")


def data_of(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The values of server-sent events, without the mark of their end."""
    texts = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(text) for text in texts if text != "[DONE]"]


@contextmanager
def serving(
    *models: Engine | Scripted | Callable[[Any], Engine],
    policy: Policy | None = None,
    aliases: Sequence[str] = (),
    ready: bool = True,
    settings: Settings | None = None,
    containers: Containers | None = None,
    guard: TextGuard | None = None,
    judge: Engine | Scripted | Callable[[Any], Engine] | None = None,
) -> Iterator[Served]:
    """Serve models under the names of "scripted", "scripted-1", ...

    models: engines, or what opens one (it is given the progress to tell). ready: wait until the
    first one is loaded. containers: of the server's tools. guard: of all that is asked and
    answered. judge: a model of its own for that, under the name of "judge".
    """
    names = ["scripted", *(f"scripted-{i}" for i in range(1, len(models)))]
    sources = dict(zip(names, models, strict=True))
    judging = None if judge is None else ServedModel("judge", settings or Settings())
    if judge is not None:
        sources["judge"] = judge

    def opened(name: str, settings: Settings, progress: Any) -> Engine:
        source = sources[name]
        if isinstance(source, Scripted):
            return source.engine
        return source if isinstance(source, Engine) else source(progress)

    policy = policy or Policy()
    entries = [ServedModel(name, settings or Settings()) for name in names]
    given = map(Alias, aliases)
    registry = Registry(entries, given, policy.keep_alive, opener=opened, judge=judging)
    service = Service(registry, policy, guard)
    listener = Listener(App(service, containers), policy)
    with bind("127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(listener.serve([listening])))
        thread.start()
        try:
            with httpx.Client(base_url=url, timeout=LONG, trust_env=False) as client:
                served = Served(url, client, registry, service, listener)
                served.wait_until(lambda: listener.started)
                if ready:
                    served.wait_until(lambda: bool(entries[0].rows or entries[0].error))
                yield served
        finally:
            listener.should_exit = True
            thread.join(LONG)
            assert not thread.is_alive()
