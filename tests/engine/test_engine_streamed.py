"""The engine on streamed experts: the same answers, and a disk that fails ends one request only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.backends.mlx.model import open_model
from gptoss_mlx.backends.protocol import sealed
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import FinishEvent, TokenEvent
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.harmony.tokenizer import load_tokenizer
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.models.tiny import materialise

QUESTION = "What is 27 + 58?"


def _engine(folder: Path, slots: int | None) -> Engine:
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    model = open_model(checkpoint, slots=slots)
    return Engine(sealed(model), load_tokenizer(folder, config), config, 4096, {})


def _ask(engine: Engine, prompt: Any = QUESTION, **options: Any) -> list[tuple[int | None, Any]]:
    """(id, log-probability) of every token; sampled, so that a last bit's difference would tell."""
    events = list(engine.stream(prompt, seed=7, logprobs=True, temperature=1.5, **options))
    assert isinstance(events[-1], FinishEvent)
    return [(e.id, e.logprob) for e in events if isinstance(e, TokenEvent)]


@pytest.mark.slow
def test_the_same_answers_to_the_last_bit() -> None:
    whole, few = _engine(materialise(), None), _engine(materialise(), 4)
    for prompt in (QUESTION, "Reverse: " + "apple river stone cloud " * 40):
        assert _ask(few, prompt, max_tokens=12) == _ask(whole, prompt, max_tokens=12)
    assert few.generate(QUESTION, temperature=0).text == "27 + 58 = 85"
    assert few.stats()["slots"] == 4
    assert few.stats()["misses"] > 0
    assert "misses" not in whole.stats()


@pytest.mark.slow
def test_two_streams_in_turn_share_the_banks() -> None:
    whole, few = (_engine(materialise(), slots) for slots in (None, 4))
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    prompts = [QUESTION, "Reverse: apple river stone"]
    streams = [few.stream(prompt, **options) for prompt in prompts]
    found: list[list[int | None]] = [[], []]
    for events in zip_longest(*streams):
        for event, ids in zip(events, found, strict=True):
            if isinstance(event, TokenEvent):
                ids.append(event.id)
    for prompt, ids in zip(prompts, found, strict=True):
        events = whole.stream(prompt, **options)
        assert ids == [e.id for e in events if isinstance(e, TokenEvent)]


@pytest.mark.parametrize("after", [0, 50, 400])
def test_a_read_error_ends_the_request_and_the_next_one_runs(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(materialise(), 4)
    wanted = _ask(_engine(materialise(), None), max_tokens=12)
    reads, preadv = 0, os.preadv

    def failing(*arguments: Any) -> int:
        nonlocal reads
        reads += 1
        if reads > after:
            raise OSError(5, "Input/output error")
        return preadv(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
            _ask(engine, max_tokens=12)
    assert reads > after
    assert _ask(engine, max_tokens=12) == wanted


@pytest.mark.parametrize(
    "damage", [lambda path: os.truncate(path, 1000), lambda path: os.utime(path, ns=(1, 1))]
)
def test_a_file_changed_under_us_is_one_line(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(materialise(), tmp_path / "model"))
    engine = _engine(folder, 4)
    damage(next(folder.glob("*.safetensors")))
    for _ in range(2):  # and again: nothing crashes later
        with pytest.raises(CheckpointError, match="while in use; load it again"):
            _ask(engine)
