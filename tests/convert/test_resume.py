"""A conversion that goes on: killed for real, and over what was changed while nobody was there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import pytest

from convert import plan, weights
from convert.conversion import Conversion
from gptoss_mlx.errors import CheckpointError, ConversionError
from gptoss_mlx.models.checkpoint import UNFINISHED, Checkpoint
from tests.convert.results import SHAPE, contents, refusal, unfinished
from tests.convert.results import convert as converted
from tests.support.broken import header_of
from tests.support.checkpoints import write_checkpoint

MOMENTS = 6
RECIPE = "8"
FILE = "model.safetensors.partial"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "model", SHAPE)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted conversion."""
    return convert(source, tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def begun(source: Path, tmp_path: Path) -> Path:
    """An unfinished conversion, for a test to change."""
    return unfinished(source, tmp_path / "begun", RECIPE)


def convert(source: Path, folder: Path) -> Path:
    return converted(source, folder, RECIPE)


def killed(source: Path, folder: Path, n: int) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "tests.convert.killed", str(source), str(folder), RECIPE]
    return subprocess.run([*arguments, str(n)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_killed_at_random_moments(source: Path, whole: Path, tmp_path: Path) -> None:
    """By the system, with all threads at work; `test_faults` stops it at every call."""
    count = int(killed(source, tmp_path / "alive", 0).stdout)
    assert contents(tmp_path / "alive") == contents(whole)
    for n in Random(20).sample(range(1, count + 1), MOMENTS):
        folder = tmp_path / f"killed-{n}"
        assert killed(source, folder, n).returncode == -signal.SIGKILL
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder)
        convert(source, folder)
        assert contents(folder) == contents(whole), f"killed at {n} of {count}"


def test_what_the_journal_names_is_not_made_again(
    source: Path, whole: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (begun / UNFINISHED).read_text().splitlines()[1:]
    named = {name for line in lines for name in json.loads(line)["done"]}
    assert len(named) >= 20
    resumed = made_by(monkeypatch)
    convert(source, begun)
    tasks = Conversion.prepare(source, whole, target="mlx", recipe=RECIPE).plan.tasks
    left = {task.outputs[0].name for task in tasks} - named
    assert sorted(resumed) == sorted(left)
    assert contents(begun) == contents(whole)


def _edit(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / FILE
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return edit


def _noise(data: bytearray) -> None:
    data[1000:] = np.random.default_rng(1).bytes(len(data) - 1000)


def _zeros(data: bytearray) -> None:
    data[:] = bytes(len(data))


def _flip(data: bytearray) -> None:
    """A bit of a tensor that is done."""
    data[int.from_bytes(data[:8], "little") + 8 + 40] ^= 1


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / UNFINISHED
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return edit


def _claimed(folder: Path) -> None:
    """A line for a tensor that was not written, with the hash of the zeros there."""
    name = "model.layers.1.post_attention_layernorm.weight"
    data = (folder / FILE).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    begin, end = (start + at for at in header_of(folder / FILE)[name]["data_offsets"])
    assert not any(data[begin:end])
    line = {"done": {name: sha256(data[begin:end]).hexdigest()}, "check": "0" * 64}
    with (folder / UNFINISHED).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _claimed_well(lines: list[bytes]) -> list[bytes]:
    """With the check that belongs to it, but not the hash."""
    body = {"done": {f"lm_head.{part}": "0" * 64 for part in ("weight", "scales", "biases")}}
    before = json.loads(lines[-1])["check"]
    check = sha256(f"{before} {json.dumps(body)}".encode()).hexdigest()
    return [*lines, json.dumps({**body, "check": check}).encode() + b"\n"]


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights gone": lambda folder: (folder / FILE).unlink(),
    "weights empty": _edit(bytearray.clear),
    "weights cut short": _edit(lambda data: data.__delitem__(slice(len(data) // 2, None))),
    "weights longer": _edit(lambda data: data.extend(b"more")),
    "weights zeroed": _edit(_zeros),
    "weights overwritten": _edit(_noise),
    "a bit of them": _edit(_flip),
    "already under their name, and damaged": lambda folder: (
        _edit(_noise)(folder),
        (folder / FILE).rename(folder / "model.safetensors"),
    )[-1],
    "under both names": lambda folder: (folder / "model.safetensors").write_bytes(b"old") and None,
    "a line cut off": _lines(lambda lines: [*lines[:-1], lines[-1][:40]]),
    "a line more": _claimed,
    "a line more, well made": _lines(_claimed_well),
    "a line of no JSON": _lines(lambda lines: [*lines[:5], b"\xff\n", *lines[5:]]),
    "a line gone": _lines(lambda lines: [*lines[:5], *lines[6:]]),
    "lines exchanged": _lines(lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]]),
    "a digit of a hash": _lines(
        lambda lines: [*lines[:3], lines[3].replace(b"0", b"1"), *lines[4:]]
    ),
    "zeros at the end": _lines(lambda lines: [*lines, bytes(200)]),
    "small files of an earlier try": lambda folder: (
        (folder / "config.json.partial").write_bytes(b"{") and None
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_damaged_meanwhile_is_made_again(
    damage: str, source: Path, whole: Path, begun: Path
) -> None:
    DAMAGES[damage](begun)
    convert(source, begun)
    assert contents(begun) == contents(whole)


@pytest.mark.parametrize("during", [False, True])
def test_a_source_changed_under_the_same_size_and_time_is_noticed(
    during: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two runs, and in one: a byte no sample shows. What was made before is made again."""
    monkeypatch.setattr("convert.source._SAMPLE_BYTES", 16)
    own = Path(shutil.copytree(source, tmp_path / "source"))
    folder = tmp_path / "made"
    path = next(own.glob("*.safetensors"))

    def change(done: int = 1, total: int = 1) -> None:
        if done < total:
            return
        status = path.stat()
        with path.open("r+b") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            file.write(b"\x01")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (
            status.st_size,
            status.st_mtime_ns,
        )

    conversion = Conversion.prepare(own, folder, target="mlx", recipe=RECIPE)
    if during:
        with pytest.raises(ConversionError, match="changed while it was converted"):
            conversion.run(change)
    else:
        unfinished(own, folder, RECIPE)
        change()
    with pytest.raises(CheckpointError, match="is an unfinished conversion"):
        Checkpoint.open(folder)
    resumed = made_by(monkeypatch)
    convert(own, folder)
    assert set(resumed) == {task.outputs[0].name for task in conversion.plan.tasks}
    assert contents(folder) == contents(convert(own, tmp_path / "whole"))
    assert contents(folder) != contents(convert(source, tmp_path / "before"))


def test_another_recipe_or_source_does_not_go_on_there(
    source: Path, begun: Path, checkpoint_of: Callable[..., Path]
) -> None:
    before, other = contents(begun), checkpoint_of(SHAPE, seed=9)
    line = f"{begun}: holds an unfinished conversion of another source or recipe;"
    for more in ((), ("--verify",), ("--dry-run",)):
        for model, bits in ((source, "bf16"), (other, RECIPE)):
            assert refusal(model, begun, "--bits", bits, *more).startswith(line)
        assert refusal(source, begun, "--to", "release", *more).startswith(line)
    assert contents(begun) == before


def test_the_same_source_by_another_path_goes_on(
    source: Path, whole: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    (tmp_path / "link").symlink_to(source)
    paths = (Path(source.name), Path("..") / source.parent.name / source.name, tmp_path / "link")
    for i, path in enumerate(paths):
        folder = Path(shutil.copytree(begun, tmp_path / str(i)))
        assert contents(convert(path, folder)) == contents(whole)
        assert Conversion.prepare(source, folder, target="mlx", recipe=RECIPE).run() == 0


def made_by(patch: pytest.MonkeyPatch) -> list[str]:
    """Collects the first output of every span that is made."""
    seen: list[str] = []
    real = weights.made

    def made(task: plan.Task, start: int, stop: int) -> object:
        seen.append(task.outputs[0].name)
        return real(task, start, stop)

    patch.setattr(weights, "made", made)
    return seen
