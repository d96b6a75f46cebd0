"""Conversions that cannot begin, or break off: a line, an untouched source, and nothing lost."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.conversion import Conversion
from gptoss_mlx.errors import CheckpointError, ConversionError
from gptoss_mlx.models.checkpoint import Checkpoint
from tests.convert.layouts import write_gguf, write_mlx_lm, write_original
from tests.convert.results import contents, convert, refusal, run, unfinished

DISK = ("pwrite", "ftruncate", "fsync", "rename", "unlink")

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def whole(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed conversion to 8 bits leaves."""
    return contents(convert(release, tmp_path_factory.mktemp("whole") / "made", "8"))


@pytest.fixture(params=["released", "original", "mlx-lm", "gguf"])
def own(request: pytest.FixtureRequest, release: Path, tmp_path: Path) -> Path:
    """A folder of each kind, for a test to convert onto."""
    folder: Path = tmp_path / "models" / "model"
    if request.param == "released":
        shutil.copytree(release, folder)
    elif request.param == "original":
        write_original(release, folder)
    elif request.param == "mlx-lm":
        write_mlx_lm(release, folder)
    else:
        write_gguf(release, folder / "model.gguf")
    return folder


class _Disk:
    """Makes the n-th call that changes the disk fail, and every one after it."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        error: int,
        n: int | None,
        names: tuple[str, ...] = DISK,
    ) -> None:
        self.count = 0
        for name in names:
            patch.setattr(os, name, self._watched(getattr(os, name), error, n))

    def _watched(self, call: Callable[..., Any], error: int, n: int | None) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if n is not None and self.count >= n:
                raise OSError(error, os.strerror(error))
            return call(*arguments, **options)

        return watched


def test_the_result_is_never_the_source_nor_in_it_nor_around_it(own: Path) -> None:
    before = contents(own.parent)
    link = own.parent / "link"
    link.symlink_to(own)
    for folder in (own, own / "made", own / "a" / "b", own.parent, link, link / "made"):
        for target in ("mlx", "release"):
            line = refusal(own, folder, "--to", target)
            assert line == f"{folder}: is the source, or in it or around it; choose another"
    link.unlink()
    assert contents(own.parent) == before


def test_the_result_may_lie_beside_a_gguf_but_not_around_it(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_gguf(release, tmp_path / "models" / "model.gguf")
    before = model.read_bytes()
    for folder in (model.parent, tmp_path):
        assert "is the source, or in it or around it" in refusal(model, folder)
    assert "is a file; the result is a folder" in refusal(model, model)
    monkeypatch.chdir(model.parent)
    assert run("model.gguf", "made").exit_code == 0
    Checkpoint.open(model.parent / "made").close()
    assert model.read_bytes() == before


def test_what_is_there_already_is_kept(release: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine", encoding="utf-8")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    assert refusal(release, file) == f"{file}: is a file; the result is a folder"
    for target in ("mlx", "release"):
        line = refusal(release, folder, "--to", target)
        assert line.startswith(f"{folder}: exists and is not an unfinished conversion")
    assert refusal(release, file / "made").endswith(f"cannot be written: {file} is not a folder")
    assert contents(tmp_path) == before


def test_an_empty_folder_and_missing_parents_will_do(
    release: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        assert contents(convert(release, folder, "8")) == whole


@pytest.mark.parametrize("options", [("--bits", "8"), ("--bits", "bf16"), ("--to", "release")])
def test_what_is_complete_is_left_alone(
    options: tuple[str, str], release: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    assert run(release, made, *options).exit_code == 0
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in made.iterdir()}
    again = run(release, made, *options)
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == f"{made}: is complete already\n"
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in made.iterdir()}
    assert after == before


def test_another_recipe_is_not_taken_for_complete(release: Path, tmp_path: Path) -> None:
    made = convert(release, tmp_path / "made", "8")
    before = contents(made)
    for more in ((), ("--verify",), ("--dry-run",)):
        line = refusal(release, made, "--bits", "4", *more)
        assert line == f"{made}: holds a conversion to --bits '8', not 4; choose another folder"
    assert "holds a conversion, not a release" in refusal(release, made, "--to", "release")
    assert contents(made) == before


@pytest.mark.parametrize("name", ["8", "bf16", "release"])
def test_what_lacks_or_has_cut_any_file_is_not_taken_for_complete(
    name: str, release: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(release, tmp_path / "source"))
    (source / "LICENSE").write_text("mine", encoding="utf-8")
    options = ("--to", "release") if name == "release" else ("--bits", name)
    whole = tmp_path / "whole"
    assert run(source, whole, *options).exit_code == 0
    for file in sorted(whole.iterdir()):
        for damage in ("missing", "cut short", "changed"):
            made = Path(shutil.copytree(whole, tmp_path / f"{file.name} {damage}"))
            data = file.read_bytes()
            if damage == "missing":
                (made / file.name).unlink()
            elif damage == "cut short":
                (made / file.name).write_bytes(data[:-1])
            else:
                (made / file.name).write_bytes(data[:2] + bytes([data[2] ^ 1]) + data[3:])
            for more in ((), ("--verify",), ("--dry-run",)):
                line = refusal(source, made, *options, *more)
                if (file.name, damage) == ("conversion.json", "missing"):
                    assert line.startswith(f"{made}: exists and is not an unfinished conversion")
                else:
                    assert line.startswith(f"{made / file.name}: ")
            shutil.rmtree(made)


def test_too_little_disk_is_noticed_before_anything_is_written(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    source = Path(shutil.copytree(release, tmp_path / "source"))
    (source / "tokenizer.json").write_bytes(b"x" * 1_000_000)
    whole = convert(source, tmp_path / "whole", "8")
    needed = sum(path.stat().st_size for path in whole.iterdir()) + (64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, needed - 1))
    for more in ((), ("--dry-run",)):
        line = refusal(source, made, "--bits", "8", *more)
        assert line == f"{made}: takes {needed:,} more bytes, but its disk has {needed - 1:,} free"
    assert not made.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, needed))
    assert run(source, made, "--bits", "8").exit_code == 0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_in_a_line_and_the_same_command_goes_on(
    error: int, release: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """`test_faults` does it at every call."""
    before, made = contents(release), tmp_path / "made"
    with pytest.MonkeyPatch.context() as patch:
        _Disk(patch, error, 66)
        line = refusal(release, made, "--bits", "8")
    assert line == (
        f"{made}: the disk is full; what is written stays, and the same command goes on when there"
        " is room"
    )
    with pytest.raises(CheckpointError):
        Checkpoint.open(made)
    assert run(release, made, "--bits", "8").exit_code == 0
    assert contents(made) == whole
    assert contents(release) == before


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_target_that_cannot_be_written_is_told_in_a_line(
    error: int, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Disk(monkeypatch, error, 1)
    line = refusal(release, tmp_path / "made")
    assert line.startswith(str(tmp_path / "made"))
    assert line.endswith(f": cannot be written: {os.strerror(error)}")


@pytest.mark.parametrize("target", ["mlx", "release"])
def test_an_unfinished_folder_tells_the_command_that_finishes_it(
    target: str, release: Path, tmp_path: Path
) -> None:
    """From a folder whose name a shell would take apart."""
    made = unfinished(release, tmp_path / "made of $IT", "5", target)
    with pytest.raises(CheckpointError, match="is an unfinished conversion; `") as caught:
        Checkpoint.open(made)
    assert str(caught.value).endswith("` goes on, with the SOURCE it was begun with")
    program, source, *arguments = shlex.split(str(caught.value).split("`")[1])
    assert (program, source) == ("gptoss-convert", "SOURCE")
    assert run(release, *arguments).exit_code == 0
    Checkpoint.open(made).close()


@pytest.mark.parametrize("change", ["later", "longer", "gone"])
def test_a_source_that_changes_meanwhile_is_not_believed(
    change: str, release: Path, tmp_path: Path
) -> None:
    source, made = Path(shutil.copytree(release, tmp_path / "source")), tmp_path / "made"
    shard = sorted(source.glob("*.safetensors"))[-1]

    def meanwhile(done: int, total: int) -> None:
        if done < total:
            return
        if change == "later":
            os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
        elif change == "longer":
            with shard.open("ab") as file:
                file.write(b"x")
        else:
            shard.unlink()

    conversion = Conversion.prepare(source, made, target="mlx", recipe="8")
    with pytest.raises((ConversionError, CheckpointError)) as caught:
        conversion.run(meanwhile)
    if change != "gone":
        assert str(caught.value) == (
            "source: changed while it was converted; run the same command once more"
        )
    assert not (made / "conversion.json").exists()
    with pytest.raises(CheckpointError, match="is an unfinished conversion"):
        Checkpoint.open(made)
    if change == "later":
        assert run(source, made, "--bits", "8").exit_code == 0
        assert contents(made) == contents(convert(source, tmp_path / "whole", "8"))


def test_a_disk_that_takes_little_at_a_time(
    release: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:1000], at))
    assert contents(convert(release, tmp_path / "made", "8")) == whole


def test_progress_goes_up_to_the_total_over_what_is_there_and_what_is_not(
    release: Path, tmp_path: Path
) -> None:
    made = unfinished(release, tmp_path / "made")
    conversion = Conversion.prepare(release, made, target="mlx", recipe="8")
    steps: list[tuple[int, int]] = []
    written = conversion.run(lambda done, total: steps.append((done, total)))
    total = sum(task.nbytes for task in conversion.plan.tasks)
    assert steps == sorted(steps)
    assert steps[-1] == (total, total)
    assert written < total


def test_a_callback_that_raises_ends_it_and_it_goes_on(
    release: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    made, count = tmp_path / "made", 0

    def progress(done: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == 10:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Conversion.prepare(release, made, target="mlx", recipe="8").run(progress)
    with pytest.raises(CheckpointError):
        Checkpoint.open(made)
    assert contents(convert(release, made, "8")) == whole


def test_it_needs_no_stderr(
    release: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("sys.stdout", None)
    assert contents(convert(release, tmp_path / "made", "8")) == whole
