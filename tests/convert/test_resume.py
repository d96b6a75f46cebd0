"""A conversion killed at any moment: never taken for complete, and finished to the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from benchmarks.make_checkpoint import Shape, write_checkpoint
from convert import journal, plan, weights
from convert.conversion import Conversion
from gptoss_mlx.checkpoint import UNFINISHED, Checkpoint
from gptoss_mlx.errors import CheckpointError, ConversionError

MOMENTS = 6
RECIPE = "8"
SHAPE = Shape(2, 128, 64, 4, 2, 4, 2, 32, 256)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "model", SHAPE)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted conversion."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    convert(source, folder)
    return folder


def convert(source: Path, folder: Path) -> None:
    Conversion.prepare(source, folder, target="mlx", recipe=RECIPE).run()


def killed(source: Path, folder: Path, n: int) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "tests.convert.killed", str(source), str(folder), RECIPE]
    return subprocess.run([*arguments, str(n)], capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_random_moments(source: Path, whole: Path, tmp_path: Path) -> None:
    count = int(killed(source, tmp_path / "alive", 0).stdout)
    assert contents(tmp_path / "alive") == contents(whole)
    moments = Random(20).sample(range(1, count + 1), MOMENTS)
    for n in moments:
        folder = tmp_path / f"killed-{n}"
        assert killed(source, folder, n).returncode == -signal.SIGKILL
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder)
        convert(source, folder)
        assert contents(folder) == contents(whole), f"killed at {n} of {count}"


def test_killed_while_it_resumes(source: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for n in (40, 20, 30, 10):
        assert killed(source, folder, n).returncode == -signal.SIGKILL
    convert(source, folder)
    assert contents(folder) == contents(whole)


def test_what_the_journal_names_is_not_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_FLUSH_BYTES", 1)
    folder, _ = interrupted(source, tmp_path, monkeypatch, after=10)
    lines = (folder / UNFINISHED).read_text().splitlines()[1:]
    named = {name for line in lines for name in json.loads(line)["done"]}
    assert len(named) >= 10
    resumed: list[str] = []
    count_tasks(monkeypatch, resumed)
    convert(source, folder)
    left = {task.outputs[0].name for task in tasks(source, folder)} - named
    assert sorted(resumed) == sorted(left)


def torn_line(folder: Path) -> None:
    path = folder / UNFINISHED
    path.write_bytes(path.read_bytes() + b'{"model.norm.weight": "12')


def deleted_file(folder: Path) -> None:
    for path in folder.glob("*.partial"):
        path.unlink()


@pytest.mark.parametrize("damage", [torn_line, deleted_file])
def test_what_is_damaged_in_between_is_made_again(
    damage: Callable[[Path], None],
    source: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal, "_FLUSH_BYTES", 1)
        folder, _ = interrupted(source, tmp_path, patch, after=10)
    damage(folder)
    convert(source, folder)
    assert contents(folder) == contents(whole)


def test_another_recipe_does_not_go_on_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = interrupted(source, tmp_path, monkeypatch, after=5)
    before = contents(folder)
    other = Conversion.prepare(source, folder, target="mlx", recipe="bf16")
    with pytest.raises(ConversionError, match="unfinished conversion of another source or recipe"):
        other.run()
    assert contents(folder) == before


def tasks(source: Path, folder: Path) -> tuple[plan.Task, ...]:
    return Conversion.prepare(source, folder, target="mlx", recipe=RECIPE).plan.tasks


def count_tasks(
    monkeypatch: pytest.MonkeyPatch, seen: list[str], stop_after: int | None = None
) -> None:
    """Notes the first output of every span that is made; ends the conversion after some."""
    real = weights.made

    def made(task: plan.Task, start: int, stop: int) -> object:
        if stop_after is not None and len(seen) >= stop_after:
            raise KeyboardInterrupt
        seen.append(task.outputs[0].name)
        return real(task, start, stop)

    monkeypatch.setattr(weights, "made", made)


def interrupted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> tuple[Path, list[str]]:
    """The folder of a conversion that Ctrl-C ended, and what it had made."""
    folder, seen = tmp_path / "model", []
    with monkeypatch.context() as patch:
        patch.setattr(weights, "_WORKERS", 1)
        count_tasks(patch, seen, stop_after=after)
        with pytest.raises(KeyboardInterrupt):
            convert(source, folder)
    return folder, seen
