"""Fixtures of the converter's tests: a release to convert, and MLX's memory as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from tests.convert.results import SHAPE


@pytest.fixture(scope="session")
def release(checkpoint_of: Callable[..., Path]) -> Path:
    """A random checkpoint of shape SHAPE in several files; read-only."""
    return checkpoint_of(SHAPE, shard_bytes=100_000)


@pytest.fixture(autouse=True, scope="package")
def memory_cache() -> Iterator[None]:
    """The converter tells MLX to keep no freed memory, which other tests are faster with."""
    limit = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(limit)
