"""What is no regular file is refused at once, by every function that opens one."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.conversion import Conversion
from convert.sources import open_source
from gptoss_mlx.engine.engine import _generation_defaults
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.files.disk import read_speed
from gptoss_mlx.files.regular import open_regular, read_regular
from gptoss_mlx.harmony.tokenizer import load_tokenizer
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.spec.config import ModelConfig
from tests.convert.layouts import write_gguf, write_mlx_lm, write_original
from tests.support.broken import INDEX

pytestmark = pytest.mark.timeout(60)


def _socket(path: Path) -> None:
    """Its name is made from inside the folder: a socket's takes 108 characters at most."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "a named pipe, not a regular file"),
    "socket": (_socket, "a socket, not a regular file"),
    "endless device": (lambda p: p.symlink_to("/dev/zero"), "a device, not a regular file"),
    "empty device": (lambda p: p.symlink_to("/dev/null"), "a device, not a regular file"),
    "folder": (Path.mkdir, "a folder, not a file"),
    "link to a pipe": (
        lambda p: (os.mkfifo(p.with_name("pipe")), p.symlink_to("pipe")),
        "a named pipe, not a regular file",
    ),
    "link to itself": (lambda p: p.symlink_to(p.name), "Too many levels of symbolic links"),
    "link to nothing": (lambda p: p.symlink_to("nothing"), "No such file or directory"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_regular_file_is_opened(kind: str, tmp_path: Path) -> None:
    make, reason = KINDS[kind]
    make(tmp_path / "file")
    for read in (open_regular, lambda path: read_regular(path, 1 << 20)):
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the reason is compared below)
            read(tmp_path / "file")
        assert caught.value.strerror == reason


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 7) == b"content"
    with pytest.raises(OSError, match="larger than 6 bytes, the limit for it"):
        read_regular(tmp_path / "link", 6)


def _opened(folder: Path) -> None:
    Checkpoint.open(folder).close()


def _planned(folder: Path) -> None:
    ModelConfig.from_file(folder / "config.json")


def _with_tokenizer(folder: Path) -> None:
    load_tokenizer(folder, ModelConfig.from_file(folder / "config.json"))


def _converted(folder: Path) -> None:
    conversion = Conversion.prepare(
        folder, folder.parent / "made", target="mlx", recipe="bf16", name=None
    )
    assert not conversion.is_complete


SHARD = "model-00001-of-00002.safetensors"
READERS: list[tuple[str, str, Callable[[Path], object]]] = [
    ("release", "config.json", _opened),
    ("release", "config.json", _planned),
    ("release", "config.json", _converted),
    ("release", INDEX, _opened),
    ("release", INDEX, _converted),
    ("release", "a shard", _opened),
    ("release", "a shard", lambda folder: read_speed(_shard(folder))),
    ("release", "generation_config.json", _generation_defaults),
    ("release", "tokenizer.json", _with_tokenizer),
    ("release", "tokenizer.model", _with_tokenizer),
    ("release", "conversion.json", open_source),
    ("mlx-lm", "config.json", open_source),
    ("mlx-lm", INDEX, open_source),
    ("mlx-lm", SHARD, open_source),
    ("mlx-lm", "more.safetensors", open_source),
    ("original", "config.json", open_source),
    ("original", "more.safetensors", open_source),
    ("gguf", "model.gguf", open_source),
    ("gguf", "model.gguf", lambda folder: open_source(folder / "model.gguf")),
    ("parts", "model-00002-of-00002.gguf", open_source),
]


@pytest.fixture(scope="module")
def folders(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in every layout; read-only."""
    home = tmp_path_factory.mktemp("folders")
    shutil.copytree(small_checkpoint, home / "release")
    write_mlx_lm(small_checkpoint, home / "mlx-lm", rest=8, files=2)
    write_original(small_checkpoint, home / "original", files=2)
    write_gguf(small_checkpoint, home / "gguf" / "model.gguf")
    write_gguf(small_checkpoint, home / "parts" / "model.gguf", parts=2)
    return home


@pytest.mark.parametrize("kind", ["pipe", "endless device", "link to itself"])
@pytest.mark.parametrize(
    ("layout", "name", "read"), READERS, ids=lambda value: value if type(value) is str else ""
)
def test_no_reader_waits_for_a_pipe_or_reads_a_device(
    folders: Path, tmp_path: Path, layout: str, name: str, read: Callable[[Path], object], kind: str
) -> None:
    folder = tmp_path / layout
    folder.mkdir()
    for path in (folders / layout).iterdir():
        (folder / path.name).symlink_to(path)
    special = _shard(folder) if name == "a shard" else folder / name
    special.unlink(missing_ok=True)
    make, reason = KINDS[kind]
    make(special)
    with pytest.raises((GptOssError, OSError)) as caught:
        read(folder)
    assert reason in str(caught.value)
    assert special.name in str(caught.value)


def _shard(folder: Path) -> Path:
    return folder / sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))[0]
