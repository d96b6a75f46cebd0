"""Loading onto a card, by threads that each have to be told which."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from gptoss_mlx.backends.torch import weights  # noqa: E402
from gptoss_mlx.backends.torch.weights import Loader  # noqa: E402
from gptoss_mlx.models.checkpoint import Checkpoint  # noqa: E402


def test_every_buffer_is_pinned_and_copied_from_on_the_model_s_card(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, copies = threading.local(), list[Any]()
    copy = Loader._copy

    @contextmanager
    def launching_on(device: torch.device) -> Iterator[None]:
        on.card = device
        yield
        on.card = None

    def watched(loader: Loader, *arguments: Any) -> None:
        copies.append(on.card)
        copy(loader, *arguments)

    monkeypatch.setattr(weights, "launching_on", launching_on)
    monkeypatch.setattr(weights, "PIECE", 1 << 16)
    monkeypatch.setattr(Loader, "_copy", watched)
    device = torch.device("cpu")
    checkpoint = Checkpoint.open(small_checkpoint)
    with checkpoint, Loader(checkpoint, torch.float32, device) as loader:
        loader.dense("lm_head.weight")
        loader.finish()
    assert len(copies) > 10
    assert set(copies) == {device}
