"""What tests of several commands need."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.md"
    path.write_text("R1: say nothing of cats.\n")
    return path
