"""What the CPU's model alone has to keep: limits of its memory, files that are mapped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from gptoss_mlx.backends.cpu import library, weights
from gptoss_mlx.backends.cpu.model import Transformer, open_model
from gptoss_mlx.errors import CapacityError, CheckpointError
from gptoss_mlx.models.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(
    library.why_missing() is not None, reason="the kernels were not built"
)


@pytest.fixture
def model(breakable: Path) -> Iterator[Transformer]:
    with Checkpoint.open(breakable) as checkpoint:
        yield open_model(checkpoint, context=60, chunk=8, rows=3, embedding="resident")


def test_a_prompt_longer_than_a_chunk_is_read_in_parts(model: Transformer) -> None:
    ids = np.random.default_rng(0).integers(0, 8192, 41).tolist()
    whole, parts = model.new_state(), model.new_state()
    logits = model.evaluate(ids, whole)
    for id in ids[:40]:
        model.prefill([id], parts)
    np.testing.assert_allclose(model.decode([ids[40:]], [parts])[0], logits[40], atol=1e-4)


def test_no_sequence_is_longer_than_the_context(model: Transformer) -> None:
    state = model.new_state()
    model.prefill([1] * 60, state)
    for append in (
        lambda: model.decode([[1]], [state]),
        lambda: model.prefill([1], state),
        lambda: model.evaluate([1], state),
    ):
        with pytest.raises(CapacityError, match="61 tokens is longer than the context of 60"):
            append()
    assert state.offset == 60


def test_a_token_that_the_embedding_lacks(model: Transformer) -> None:
    for id in (-1, 8192):
        with pytest.raises(IndexError, match="not within 0 to 8191"):
            model.decode([[id]], [model.new_state()])


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that maps files in small pages, and has memory."""
    monkeypatch.setattr(weights, "LEAST_COPIED", 0)
    monkeypatch.setattr(weights, "large_pages", lambda: True)
    monkeypatch.setattr(weights, "mapped_large", lambda memory: False)
    monkeypatch.setattr(weights, "free_bytes", lambda: 1 << 60)


def test_copied_weights_answer_as_mapped_ones(
    model: Transformer,
    breakable: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request.getfixturevalue("copied")
    monkeypatch.setattr(weights.Loader, "map", None)  # nothing may be mapped now
    with Checkpoint.open(breakable) as checkpoint:
        copy = open_model(checkpoint, context=60, chunk=8, embedding="resident")
    ids = [3, 1, 4, 1, 5]
    np.testing.assert_array_equal(
        copy.evaluate(ids, copy.new_state()), model.evaluate(ids, model.new_state())
    )


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("why", ["small", "no memory", "no large pages", "mapped in them"])
def test_weights_are_copied_only_where_it_helps(
    breakable: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    with Checkpoint.open(breakable) as checkpoint:
        assert weights.worth_copying(checkpoint, 1000)
        if why == "small":
            monkeypatch.setattr(weights, "LEAST_COPIED", 1001)
        elif why == "no memory":
            left = psutil.virtual_memory().total // 4
            monkeypatch.setattr(weights, "free_bytes", lambda: left + 999)
        elif why == "no large pages":
            monkeypatch.setattr(weights, "large_pages", lambda: False)
        else:
            monkeypatch.setattr(weights, "mapped_large", lambda memory: True)
        assert not weights.worth_copying(checkpoint, 1000)


@pytest.mark.parametrize("change", ["written to", "cut short"])
def test_a_mapped_file_that_changes_is_an_error_at_the_next_step(
    model: Transformer, breakable: Path, change: str
) -> None:
    state = model.new_state()
    model.decode([[1]], [state])
    path = next(breakable.glob("*.safetensors"))
    if change == "cut short":
        os.truncate(path, 100)
    else:
        os.utime(path, ns=(1, 1))
    for append in (lambda: model.decode([[1]], [state]), lambda: model.prefill([1, 2], state)):
        with pytest.raises(CheckpointError, match=f"{path}: was changed while in use; load it"):
            append()
    assert state.offset == 1
