"""The shipped tiny model: what is stored, and how it becomes a released checkpoint."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.models import tiny
from gptoss_mlx.models.checkpoint import Checkpoint

INDEX = "model.safetensors.index.json"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.materialise(tmp_path_factory.mktemp("cache"))


def bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_the_package_file_is_at_most_5_mb() -> None:
    assert tiny.STORE.stat().st_size <= 5_000_000


def test_the_folder_is_a_released_checkpoint(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.check_scales()
        config = checkpoint.config
        assert config.layer_types[:2] == ("sliding_attention", "full_attention")
        assert config.vocab_size == 201088
        assert config.num_local_experts >= 8
        assert config.num_experts_per_tok == 4
        assert config.rope_scaling is not None
        assert not config.rope_scaling.truncate
        assert len({tensor.path for tensor in checkpoint.tensors.values()}) >= 2
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [200002, 199999, 200012]
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"):
        assert (folder / name).is_file()


def test_tables_hold_the_stored_rows_and_zeros(folder: Path) -> None:
    store = tiny.Store.open()
    with Checkpoint.open(folder) as checkpoint:
        for name in tiny.TABLES:
            table = checkpoint.map(checkpoint.tensors[name])
            assert np.array_equal(table[store.rows], store.tensors[name])
            used = np.zeros(len(table), bool)
            used[store.rows] = True
            assert not table[~used].any()
            assert table[used].any(axis=1).all()


def test_every_number_is_finite_and_experts_decode_to_moderate_weights(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            values = checkpoint.map(tensor)
            if tensor.dtype == "BF16":
                assert np.isfinite(bfloat16(values)).all(), name
            if not name.endswith("_blocks"):
                continue
            scales = checkpoint.map(checkpoint.tensors[name.replace("_blocks", "_scales")])
            codes = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:-1], 32)
            weights = E2M1[codes] * np.exp2(scales.astype(float) - 127)[..., None]
            rows = weights.reshape(weights.shape[0], -1)
            assert 1e-3 < weights.std() < 10, name
            assert (rows.std(axis=1) > 1e-3).all(), name


def test_every_expert_of_every_layer_is_used() -> None:
    from safetensors import safe_open

    with safe_open(tiny.STORE, framework="numpy") as file:
        use = json.loads(file.metadata()["expert_use"])
    store = tiny.Store.open()
    assert len(use) == store.config["num_hidden_layers"]
    for shares in use:
        assert len(shares) == store.config["num_local_experts"]
        assert abs(sum(shares) - 1) < 0.01
        assert min(shares) > 0.01


def test_a_second_call_writes_nothing_and_reports_no_progress(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    calls: list[tuple[int, int]] = []
    assert (
        tiny.materialise(folder.parent, lambda done, total: calls.append((done, total))) == folder
    )
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not calls
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_progress_ascends_to_all_bytes(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    made = tiny.materialise(tmp_path, lambda done, total: calls.append((done, total)))
    done = [d for d, _ in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1]
    with Checkpoint.open(made) as checkpoint:
        assert calls[-1][1] == sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def start(cache: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys, pathlib; from gptoss_mlx.models import tiny;"
        "print(tiny.materialise(pathlib.Path(sys.argv[1])), flush=True)"
    )
    return subprocess.Popen([sys.executable, "-c", code, cache], stdout=subprocess.PIPE)


@pytest.mark.slow
def test_two_processes_at_once_agree_on_one_whole_folder(tmp_path: Path) -> None:
    racers = [start(tmp_path), start(tmp_path)]
    printed = [racer.communicate(timeout=120)[0].decode().strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert printed[0] == printed[1]
    assert [str(path) for path in tmp_path.iterdir()] == printed[:1]
    Checkpoint.open(Path(printed[0])).close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process by signal")
def test_a_process_killed_half_way_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    racer = start(tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".tiny-*.part/model-*")):
        assert time.monotonic() < deadline
        assert racer.poll() is None
    racer.send_signal(signal.SIGKILL)
    racer.communicate(timeout=60)
    left = list(tmp_path.iterdir())
    assert left
    assert all(path.name.startswith(".tiny-") for path in left)
    folder = tiny.materialise(tmp_path)
    Checkpoint.open(folder).close()
    assert list(tmp_path.iterdir()) == [folder]


def test_what_dead_processes_left_is_removed_at_once(folder: Path) -> None:
    """Even where nothing has to be written; what a living process writes stays."""
    dead, alive = folder.parent / ".tiny-dead.part", folder.parent / ".tiny-alive.part"
    for part in (dead, alive):
        part.mkdir()
        (part / "config.json").write_text("{}")
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert tiny.materialise(folder.parent) == folder
        assert not dead.exists()
        assert alive.exists()
    finally:
        os.close(descriptor)
    tiny.materialise(folder.parent)
    assert not alive.exists()


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.materialise(tmp_path, fail)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A cache of its own, with the holes and the times of the one that was written."""
    for path in folder.iterdir():
        made = tmp_path / folder.name / path.name
        made.parent.mkdir(exist_ok=True)
        with path.open("rb") as source, made.open("wb") as target:
            while piece := source.read(1 << 16):
                target.seek(len(piece), os.SEEK_CUR) if not any(piece) else target.write(piece)
            target.truncate(path.stat().st_size)
        os.utime(made, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    return tmp_path / folder.name


def contents(folder: Path) -> dict[str, str]:
    return {path.name: tiny._sha256(path) for path in folder.iterdir() if path.name[0] != "."}


SHARD = "model-00001-of-00002.safetensors"


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"other")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights overwritten": lambda f: overwrite(f / SHARD),
    "weights cut": lambda f: os.truncate(f / SHARD, 1000),
    "weights gone": lambda f: (f / SHARD).unlink(),
    "config changed": lambda f: (f / "config.json").write_text("{}"),
    "tokenizer empty": lambda f: (f / "tokenizer.json").write_bytes(b""),
    "index a folder": lambda f: ((f / INDEX).unlink(), (f / INDEX).mkdir()),
    "config a pipe": lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")),
    "record gone": lambda f: (f / ".written.json").unlink(),
    "record broken": lambda f: (f / ".written.json").write_text('{"config.json": 3}'),
    "no folder": lambda f: shutil.rmtree(f),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_heals_itself(
    copied: Path, folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tokenizer's file takes seconds to make; any bytes do where nobody opens the model.
    data = (folder / "tokenizer.json").read_bytes()
    monkeypatch.setattr(
        tiny,
        "write_tokenizer",
        lambda made: [
            (made / "tokenizer.json").write_bytes(data),
            *(
                shutil.copy(folder / name, made)
                for name in ("tokenizer_config.json", "chat_template.jinja")
            ),
        ],
    )
    DAMAGE[damage](copied)
    assert tiny.materialise(copied.parent) == copied
    assert contents(copied) == contents(folder)
    assert [path.name for path in copied.parent.iterdir()] == [folder.name]
    before = copied.stat().st_ino
    tiny.materialise(copied.parent)
    assert copied.stat().st_ino == before


def test_a_folder_that_was_only_touched_is_hashed_once(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(copied / SHARD)
    tiny.materialise(copied.parent)

    def never(path: Path) -> str:
        raise AssertionError(f"{path} is hashed again")

    monkeypatch.setattr(tiny, "_sha256", never)
    tiny.materialise(copied.parent)


def test_a_file_of_someone_else_is_kept(copied: Path) -> None:
    overwrite(copied / SHARD)
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds 'notes\.txt', which is not the tiny model's"):
        tiny.materialise(copied.parent)
    assert (copied / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="how small a hole may be is the system's")
def test_the_zeros_of_the_tables_take_no_room_on_the_disk(folder: Path) -> None:
    sizes = [path.stat() for path in folder.iterdir()]
    if sum(status.st_blocks for status in sizes) * 512 > sum(s.st_size for s in sizes) * 0.9:
        pytest.skip("this file system keeps no holes")
    assert sum(status.st_blocks for status in sizes) * 512 < 40_000_000


def test_a_cache_that_cannot_be_written_names_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError) as caught:
        tiny.materialise(tmp_path / "file" / "cache")
    assert str(caught.value) == (
        f"{tmp_path / 'file' / 'cache'}: the tiny model cannot be written: Not a directory;"
        " set GPTOSS_CACHE to another folder"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTOSS_CACHE", "~no-such-user/cache")
        with pytest.raises(CheckpointError, match="there is no home folder; set GPTOSS_CACHE"):
            tiny.materialise()


def test_a_broken_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "tiny.safetensors"
    broken.write_bytes(tiny.STORE.read_bytes()[:1000])
    monkeypatch.setattr(tiny, "STORE", broken)
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors"):
        tiny.Store.open(broken)
    broken.unlink()
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors: cannot be read"):
        tiny.materialise(tmp_path / "cache")


def test_another_stored_model_gets_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny._version()
    changed = tmp_path / "tiny.safetensors"
    changed.write_bytes(tiny.STORE.read_bytes() + b"\0")
    monkeypatch.setattr(tiny, "STORE", changed)
    assert tiny._version() != first


def test_neither_torch_nor_mlx_is_imported() -> None:
    code = "import sys, gptoss_mlx.models.tiny; sys.exit(bool({'torch', 'mlx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
