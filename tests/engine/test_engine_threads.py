"""An engine is opened on one thread and stepped on others, as a server does: every step may come
from another one. MLX computes a lazy array only on the thread that made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event
from tests.engine.test_engine import PROMPT
from tests.engine.test_engine import SHAPE as NARROW
from tests.support.backends import engine_on
from tests.support.scripted_model import ids_of

T = TypeVar("T")

SHAPE = replace(NARROW, head_dim=32)  # 8 bits need it

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "fake": ("fake", {}),
    "mlx": ("mlx", {}),
    "mlx in bfloat16": ("mlx", {"dtype": "bfloat16"}),
    "mlx with 8 bits": ("mlx", {"kv_bits": 8, "embedding": "resident"}),
    "mlx streamed": ("mlx", {"memory": "490MiB"}),
    "torch": ("torch", {}),
}


def elsewhere(call: Callable[[], T]) -> T:
    """What a call gives on a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.fixture(params=[pytest.param(k, marks=[pytest.mark.torch] * (k == "torch")) for k in KINDS])
def opened(
    request: pytest.FixtureRequest, checkpoint_of: Callable[..., Path]
) -> Iterator[Callable[[], Engine]]:
    backend, options = KINDS[request.param]
    engines: list[Engine] = []

    def open_one() -> Engine:
        engines.append(engine_on(backend, checkpoint_of(SHAPE), context=100, **options))
        return engines[-1]

    yield open_one
    for engine in engines:
        elsewhere(engine.close)


def test_every_step_may_be_on_another_thread(opened: Callable[[], Engine]) -> None:
    asked: dict[str, Any] = {"max_tokens": 12, "seed": 3, "constrain_headers": False}
    expected = [ids_of(list(opened().stream(PROMPT[:n], **asked))) for n in (30, 40)]

    engine = elsewhere(opened)
    found = []
    for n in (30, 40):  # the second goes on from the first
        stream, events = engine.stream(PROMPT[:n], **asked), list[Event]()
        while (event := elsewhere(lambda: next(stream, None))) is not None:  # noqa: B023
            events.append(event)
        found.append(ids_of(events))
    assert found == expected
