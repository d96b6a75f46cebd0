"""How many cores are worth computing on."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from gptoss_mlx.errors import OptionError
from gptoss_mlx.system import cores


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cores.VARIABLE, raising=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight logical processors, two to a core; `fast` in the folder lists the fast ones."""
    monkeypatch.setattr(cores.sys, "platform", "linux")
    monkeypatch.setattr(cores, "_available", lambda: set(range(8)))
    monkeypatch.setattr(cores, "_core", lambda cpu: str(cpu // 2))
    monkeypatch.setattr(cores, "_quota", lambda: None)
    monkeypatch.setattr(cores, "_FAST", tmp_path / "fast")
    return tmp_path


def test_one_thread_for_each_core(machine: Path) -> None:
    assert cores.fast_cores() == 4


def test_the_slow_cores_of_a_hybrid_processor_are_left_out(machine: Path) -> None:
    (machine / "fast").write_text("0-3,6\n")
    assert cores.fast_cores() == 3


def test_what_cannot_be_read_leaves_all(machine: Path) -> None:
    (machine / "fast").write_text("fast ones\n")
    assert cores.fast_cores() == 4


def test_a_group_may_have_less(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_quota", lambda: 2)
    assert cores.fast_cores() == 2


def test_here_there_is_one_at_least() -> None:
    assert 1 <= cores.fast_cores() <= (psutil.cpu_count() or 1)


def test_a_number_that_is_asked_for(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cores.VARIABLE, "7")
    assert cores.fast_cores() == 7
    for wrong in ("0", "-1", "all", "513"):
        monkeypatch.setenv(cores.VARIABLE, wrong)
        with pytest.raises(OptionError, match=f"GPTOSS_THREADS is '{wrong}', but must be a number"):
            cores.fast_cores()
