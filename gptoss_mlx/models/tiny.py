"""The tiny model that ships with the package, written out once as a released checkpoint.

`data/tiny.safetensors` holds what was trained: the rows of the vocabulary that occur, experts in
MXFP4, the rest in bfloat16. `materialise` gives it the released layout: full-size embedding and
head with zeros for all other rows, shards and their index, config and tokenizer files. The zeros
are holes: the files are 170 MB long and take a tenth of that on the disk.
The folder gets its name only when it is complete, even if several processes write it at once; a
folder that was changed since is detected and written anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.disk import sync
from gptoss_mlx.files.jsonfile import read_json, shown
from gptoss_mlx.files.paths import cache_folder
from gptoss_mlx.files.regular import open_regular, read_regular
from gptoss_mlx.files.shard import header_bytes
from gptoss_mlx.harmony.export import write_tokenizer

Progress = Callable[[int, int], None]

STORE = Path(str(resources.files("gptoss_mlx"))) / "data" / "tiny.safetensors"
LAYOUT = 3
"""Version of the written layout, to be raised when the same stored model is written differently."""

SHARDS = 2
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_INDEX = "model.safetensors.index.json"
_RECORD = ".written.json"
"""Size, time and SHA-256 of every file, as it was written; hidden, since no checkpoint has it."""
_STORE_LIMIT = 16 << 20  # bytes; it has 3.7 million
_PIECE = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class Store:
    """What `tiny.safetensors` holds: bfloat16 tensors as their bits (uint16), experts as uint8.

    rows: the token ids that the tables' rows belong to, ascending.
    """

    config: Mapping[str, Any]
    rows: NDArray[np.uint32]
    tensors: Mapping[str, NDArray[Any]]

    @classmethod
    def open(cls, path: Path = STORE) -> Store:
        """Read the file. Raises CheckpointError if it is missing or broken."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                config = json.loads(file.metadata()["config"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: not the stored tiny model: {error}") from error
        return cls(config, tensors.pop("rows"), tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        tensor = self.tensors[name]
        rows = self.config["vocab_size"] if name in TABLES else tensor.shape[0]
        return (rows, *tensor.shape[1:])

    def dtype(self, name: str) -> str:
        return "BF16" if self.tensors[name].dtype == np.uint16 else "U8"

    def nbytes(self, name: str) -> int:
        return int(np.prod(self.shape(name))) * self.tensors[name].itemsize


def materialise(cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The folder with the tiny model in the released layout, which is written first if it is
    missing or was changed.

    cache: where to keep it, the package's cache folder if None. progress: called with
    (bytes done, bytes in all). Raises CheckpointError if the package's file is broken, the cache
    cannot be written, or the folder holds a file that is not ours.
    """
    cache = _own_cache() if cache is None else Path(cache)
    try:
        folder = cache / f"tiny-{_version()}"
        _sweep(cache)
        if not _is_sound(folder):
            cache.mkdir(parents=True, exist_ok=True)
            with _part(cache) as made:
                _write(made, Store.open(STORE), progress)
                _put(made, folder)
            sync(cache)
        return folder
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CheckpointError(
            f"{where}the tiny model cannot be written: {error.strerror};"
            " set GPTOSS_CACHE to another folder"
        ) from error


def _own_cache() -> Path:
    try:
        return cache_folder()
    except OSError as error:
        raise CheckpointError(str(error.strerror)) from error


def _version() -> str:
    """A name for this stored model in this layout: another model gets another folder."""
    try:
        digest = hashlib.sha256(read_regular(STORE, _STORE_LIMIT)).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{STORE}: cannot be read: {error.strerror}") from error
    return f"{LAYOUT}-{digest[:12]}"


def _is_sound(folder: Path) -> bool:
    """Whether the folder's files are as they were written: by size and time, else by their hash.

    Raises CheckpointError for a file that is not the model's: someone may want it back.
    """
    if not folder.is_dir():
        return False
    try:
        record = read_json(folder / _RECORD)
        written = {name: (size, time, digest) for name, (size, time, digest) in record.items()}
        names = sorted(os.listdir(folder))
    except (OSError, CheckpointError, TypeError, ValueError):
        return False
    for name in names:
        if name not in written and not name.startswith("."):
            raise CheckpointError(
                f"{folder}: holds {shown(name)}, which is not the tiny model's; move it elsewhere"
            )
    touched = False
    for name, (size, time, digest) in written.items():
        try:
            status = os.lstat(folder / name)
            if (status.st_size, status.st_mtime_ns) == (size, time):
                continue
            if status.st_size != size or _sha256(folder / name) != digest:
                return False
        except OSError:
            return False
        touched = True
    if touched:  # perhaps copied; if that cannot be noted, it is hashed again next time
        with contextlib.suppress(OSError):
            _write_record(folder, {name: digest for name, (_, _, digest) in written.items()})
    return True


def _put(made: Path, folder: Path) -> None:
    """Give a complete folder its name; an unsound folder of that name is removed."""
    if _is_sound(folder):  # another process was faster, with the same bytes
        return
    with _part(folder.parent) as gone:
        with contextlib.suppress(FileNotFoundError):
            folder.rename(gone / folder.name)
        try:
            made.rename(folder)
        except OSError:
            if not _is_sound(folder):
                raise


@contextmanager
def _part(cache: Path) -> Iterator[Path]:
    """A temporary folder in the cache, locked while it is in use and removed afterwards."""
    while True:
        part = Path(tempfile.mkdtemp(prefix=".tiny-", suffix=".part", dir=cache))
        descriptor = os.open(part, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if part.exists():  # else it was swept before it was locked
            break
        os.close(descriptor)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(descriptor)


def _sweep(cache: Path) -> None:
    """Remove temporary folders that killed processes left: those that nobody locks."""
    for part in cache.glob(".tiny-*.part"):
        with contextlib.suppress(OSError):
            descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part, ignore_errors=True)
            finally:
                os.close(descriptor)


def _write(folder: Path, store: Store, progress: Progress | None) -> None:
    _write_json(folder / "config.json", store.config)
    _write_json(folder / "generation_config.json", _generation(store.config))
    write_tokenizer(folder)
    total = sum(store.nbytes(name) for name in store.tensors)
    done, places = 0, {}
    for number, names in enumerate(_shards(store), 1):
        path = folder / f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        places.update(dict.fromkeys(names, path.name))
        shapes = {name: (store.dtype(name), store.shape(name)) for name in names}
        with path.open("wb") as file:
            file.write(header_bytes(shapes, {"format": "pt"}))
            for name in names:
                _write_tensor(file, store, name)
                done += store.nbytes(name)
                if progress is not None:
                    progress(done, total)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _write_json(folder / _INDEX, index)
    _write_record(folder, {path.name: _sha256(path) for path in folder.iterdir()})
    folder.chmod(0o755)
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def _write_tensor(file: BinaryIO, store: Store, name: str) -> None:
    """Write a tensor at the file's position; the rows that a table lacks become holes."""
    values = np.ascontiguousarray(store.tensors[name])
    if name not in TABLES:
        file.write(values.data)
        return
    begin, row = file.tell(), values[:1].nbytes
    for place, row_values in zip(store.rows.tolist(), values, strict=True):
        file.seek(begin + place * row)
        file.write(row_values.data)
    end = begin + store.nbytes(name)
    file.truncate(end)
    file.seek(end)


def _write_record(folder: Path, digests: Mapping[str, str]) -> None:
    record = {}
    for name, digest in sorted(digests.items()):
        status = (folder / name).stat()
        record[name] = [status.st_size, status.st_mtime_ns, digest]
    _write_json(folder / _RECORD, record)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(open_regular(path), "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _shards(store: Store) -> list[list[str]]:
    """The tensors' names by shard, in the model's order, cut where half the layers are done."""
    names = sorted(name for name in store.tensors if name not in TABLES)
    half = store.config["num_hidden_layers"] // 2
    first = [n for n in names if n.startswith("model.layers.") and int(n.split(".")[2]) < half]
    rest = [n for n in names if n not in first]
    return [[TABLES[0], *first], [*rest, TABLES[1]]]


def _generation(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "bos_token_id": 199998,
        "do_sample": False,
        "eos_token_id": [200002, 199999, 200012],
        "pad_token_id": config["pad_token_id"],
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
