"""An engine opened for one sequence at a time: what is kept, or still open, gives way."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import numpy as np
import pytest

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import FinishEvent, PrefillEvent, TokenEvent
from gptoss_mlx.models.tiny import materialise
from tests.support.backends import ENGINES, engine_on

OPTIONS: dict[str, Any] = {"seed": 3, "temperature": 1.0, "max_tokens": 3, "raw": True}
PROMPTS = [list(range(1000 * i, 1000 * i + 9)) for i in (1, 2, 3)]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return engine_on(request.param, materialise(), context=2048, parallel=1)


def test_logits_after_generate_and_the_conversation_goes_on(engine: Engine) -> None:
    """README's example."""
    engine.generate(PROMPTS[0], **OPTIONS)
    ids = list(range(300, 309))
    first = engine.logits(ids)
    again = [e for e in engine.stream(PROMPTS[0], **OPTIONS) if isinstance(e, PrefillEvent)]
    assert again[-1].reused > 0
    np.testing.assert_array_equal(engine.logits(ids), first)


def test_streams_in_turn_are_as_if_alone(engine: Engine) -> None:
    alone = [_ids(list(engine.stream(prompt, **OPTIONS))) for prompt in PROMPTS]
    streams = [engine.stream(prompt, **OPTIONS) for prompt in PROMPTS]
    rounds = list(zip_longest(*streams))
    assert [_ids([r[i] for r in rounds]) for i in range(3)] == alone


def test_a_stream_left_open_does_not_stand_in_the_way(engine: Engine) -> None:
    waiting = engine.stream(PROMPTS[0], **OPTIONS)
    begun = [next(event for event in waiting if isinstance(event, TokenEvent))]
    other = engine.generate(PROMPTS[1], **OPTIONS)
    rest = list(waiting)
    assert isinstance(rest[-1], FinishEvent)
    assert _ids([*begun, *rest]) == _ids(list(engine.stream(PROMPTS[0], **OPTIONS)))
    assert other.text == engine.generate(PROMPTS[1], **OPTIONS).text


def _ids(events: list[Any]) -> list[int | None]:
    return [event.id for event in events if isinstance(event, TokenEvent)]
