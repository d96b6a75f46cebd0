"""One encoding for all tests of Harmony: it takes a quarter of a second to load."""

from __future__ import annotations

import pytest

from gptoss_mlx.harmony import Encoding


@pytest.fixture(scope="session")
def encoding() -> Encoding:
    return Encoding()
