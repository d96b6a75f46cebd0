"""Crashes at every call that changes the disk: nothing looks whole before it is, and what goes on
ends in the same bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from convert import journal, weights
from convert.conversion import Conversion
from convert.plan import to_mlx
from convert.sources import open_source
from gptoss_mlx.errors import CheckpointError, ConversionError, GptOssError
from gptoss_mlx.models.checkpoint import UNFINISHED, Checkpoint
from gptoss_mlx.spec.recipe import RECIPES
from tests.convert.faults import CRASHES, Call, Memory, Recorder, Tree, lay_out
from tests.convert.results import contents
from tests.support.checkpoints import Shape, write_checkpoint

SHAPE = Shape(1, 64, 32, 2, 1, 2, 1, 32, vocab=64)
SHARD_BYTES = 12_000
FLUSH_BYTES = 8_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("source") / "model", SHAPE)
    (folder / "LICENSE").write_text("mine", encoding="utf-8")
    return folder


@pytest.fixture
def conversion(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conversion:
    """To several files, its tensors made one after another and flushed a few at a time."""
    monkeypatch.setattr(weights, "_WORKERS", 1)
    monkeypatch.setattr(journal, "_FLUSH_BYTES", FLUSH_BYTES)
    opened = open_source(source)
    root = tmp_path / "disk"
    root.mkdir()
    return Conversion(opened, to_mlx(opened, RECIPES["8"], SHARD_BYTES), root / "made")


@pytest.fixture
def whole(conversion: Conversion, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed conversion leaves."""
    folder = tmp_path / "whole"
    replace(conversion, folder=folder).run()
    return contents(folder)


def recorded(conversion: Conversion, fail: Callable[[int, str], None] | None = None) -> list[Call]:
    """The calls of a run that changed the disk."""
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(conversion.folder.parent, fail).watch(patch)
        conversion.run()
    return recorder.calls


def looks_whole(conversion: Conversion) -> bool:
    """To the runtime or to the converter."""
    try:
        Checkpoint.open(conversion.folder).close()
    except CheckpointError:
        pass
    else:
        return True
    try:
        return conversion.check() == "complete"
    except GptOssError:
        return False


def check_goes_on(conversion: Conversion, tree: Tree, whole: dict[str, bytes], case: str) -> None:
    """From what a crash left."""
    lay_out(tree, conversion.folder.parent)
    if looks_whole(conversion):
        assert contents(conversion.folder) == whole, case
    try:
        recorded(conversion)
    except GptOssError as error:
        pytest.fail(f"{case}: {error}")
    assert contents(conversion.folder) == whole, case


def crashes(memory: Memory, calls: list[Call]) -> Iterator[tuple[str, Tree]]:
    """What each kind of crash before, between and in the calls leaves, every state once."""
    seen: set[object] = set()
    for i in range(len(calls) + 1):
        for crash in CRASHES:
            tree = memory.after(crash, i)
            if (key := tuple(tree.items())) not in seen:
                seen.add(key)
                yield f"{crash} before call {i}", tree
        if i == len(calls):
            return
        if calls[i].name == "pwrite":
            torn = deepcopy(memory)
            torn.make(replace(calls[i], data=calls[i].data[: len(calls[i].data) // 2]))
            yield f"torn in call {i}", torn.after("killed")
        memory.make(calls[i])


@pytest.mark.slow
def test_a_crash_at_any_call_loses_nothing(conversion: Conversion, whole: dict[str, bytes]) -> None:
    calls = recorded(conversion)
    assert {call.name for call in calls} == {
        "mkdir", "create", "pwrite", "ftruncate", "fsync", "rename", "unlink",
    }  # fmt: skip
    memory = Memory(conversion.folder.parent)
    count = 0
    for case, tree in crashes(memory, calls):
        check_goes_on(conversion, tree, whole, case)
        count += 1
    assert count > 2 * len(calls)
    assert memory.after("killed") == memory.after("lost")
    print(len(calls), count)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["killed", "mixed"])
def test_a_loss_of_power_in_the_run_after_a_crash_loses_nothing(
    first: str, conversion: Conversion, whole: dict[str, bytes]
) -> None:
    """After a kill, what the first run did not flush is still only in memory."""
    calls, root = recorded(conversion), conversion.folder.parent
    for n in (len(calls) // 2, len(calls) - 3):
        memory = Memory(root)
        for call in calls[:n]:
            memory.make(call)
        tree = memory.after(first)
        if first != "killed":
            memory = Memory.holding(root, tree)
        lay_out(tree, root)
        resumed = recorded(conversion)
        for i, (case, left) in enumerate(crashes(memory, resumed)):
            if i % 5 == 0 or case.startswith("lost"):
                check_goes_on(conversion, left, whole, f"{first} at {n}, then {case}")
        assert memory.after("lost") == memory.after("killed")


def test_what_was_mended_is_flushed_where_every_tensor_was_kept(
    conversion: Conversion, whole: dict[str, bytes]
) -> None:
    root, memory = conversion.folder.parent, Memory(conversion.folder.parent)
    for call in recorded(conversion)[:-20]:
        memory.make(call)
    tree = dict(memory.after("killed"))
    for path, data in tree.items():
        if data is not None and ".safetensors" in path.name:
            tree[path] = bytes(8) + data[8:]
    memory = Memory.holding(root, tree)
    lay_out(tree, root)
    for call in recorded(conversion):
        memory.make(call)
    lay_out(memory.after("lost"), root)
    assert contents(conversion.folder) == whole


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_ctrl_c_or_a_full_disk_at_any_call_loses_nothing(
    error: type[BaseException], conversion: Conversion, whole: dict[str, bytes]
) -> None:
    """Ctrl-C comes once; a disk that is full stays so."""
    calls, told = recorded(conversion), set()
    count = len(calls)
    kept = [i for i, call in enumerate(calls) if call.path.name == UNFINISHED][4]
    assert calls[kept].name == "pwrite"
    for n in range(count):
        lay_out({}, conversion.folder.parent)

        def fail(i: int, name: str, n: int = n) -> None:
            if error is KeyboardInterrupt and i == n:
                raise KeyboardInterrupt
            if error is OSError and i >= n and name not in ("rename", "unlink", "rmdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        try:
            recorded(conversion, fail)
        except KeyboardInterrupt:
            pass
        except ConversionError as refused:
            told.add(str(refused))
        else:
            assert contents(conversion.folder) == whole
        assert not looks_whole(conversion) or contents(conversion.folder) == whole
        assert n >= kept or error is KeyboardInterrupt or not conversion.folder.exists()
        recorded(conversion)
        assert contents(conversion.folder) == whole, f"at call {n} of {count}"
    full = f"{conversion.folder}: the disk is full; what is written stays, and the same command"
    assert told == ({f"{full} goes on when there is room"} if error is OSError else set())
