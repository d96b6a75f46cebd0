"""The backends that the same promises are tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptoss_mlx
from gptoss_mlx.backends.protocol import sealed
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.prefix import PrefixStore, root_name
from gptoss_mlx.files.store import OWNER_DIGITS, FileStore
from gptoss_mlx.harmony.tokenizer import load_tokenizer
from gptoss_mlx.models.checkpoint import Checkpoint
from tests.support.fake_backend import FakeModel

BACKENDS = ["mlx", "cpu", pytest.param("torch", marks=pytest.mark.torch)]
ENGINES = [*BACKENDS, "fake"]
"""What the engine is tested on: a third backend is as good, if it keeps the seam's promises."""

ROWS, CONTEXT = 4, 2048
"""Sequences at a time that a model is opened for in tests; in PyTorch, tokens of each."""


def open_on(backend: str, folder: Path, **options: Any) -> Any:
    """The model of a folder on a backend's CPU, float32 unless asked otherwise."""
    if backend == "mlx":
        from tests.support.comparison import opened

        return opened(folder, **{"rows": ROWS, **options})
    if backend == "cpu":
        from gptoss_mlx.backends.cpu.model import open_model
    else:
        pytest.importorskip("torch")
        from gptoss_mlx.backends.torch.model import open_model  # type: ignore[assignment]

    with Checkpoint.open(folder) as checkpoint:
        return open_model(checkpoint, **{"rows": ROWS, "context": CONTEXT, **options})


def engine_on(backend: str, folder: Path, **options: Any) -> Engine:
    """An engine on a backend's CPU."""
    options = {"parallel": ROWS, **options}
    if backend == "fake":
        return _faked(folder, **options)
    if backend in ("mlx", "cpu"):
        return gptoss_mlx.load(str(folder), backend=backend, **options)
    pytest.importorskip("torch")
    return gptoss_mlx.load(str(folder), backend=backend, device="cpu", **options)


def _faked(
    folder: Path,
    context: int,
    parallel: int = ROWS,
    cache: int = 0,
    cache_dir: Path | None = None,
    cache_disk: int = 1 << 30,
) -> Engine:
    with Checkpoint.open(folder) as checkpoint:
        config = checkpoint.config
    model = sealed(FakeModel(config, parallel))
    files = None
    if cache_dir is not None:
        owner = root_name("fake")[:OWNER_DIGITS]
        files = FileStore(cache_dir, cache_disk, owner, cache)
    store = PrefixStore(model, cache, "fake", files)
    return Engine(model, load_tokenizer(folder, config), config, context, {}, store=store)


def token_on(backend: str, token: int) -> Any:
    """A token's id as the [1] array that a sampler hands on."""
    if backend == "mlx":
        import mlx.core as mx

        return mx.array([token])
    if backend == "cpu":
        return np.array([token])
    import torch

    return torch.tensor([token])
