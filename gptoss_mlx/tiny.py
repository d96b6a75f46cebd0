"""The tiny model that ships with the package, written out once as a released checkpoint.

`data/tiny.safetensors` holds what was trained: the rows of the vocabulary that occur, experts in
MXFP4, the rest in bfloat16.  `materialise` gives it the released layout: full-size embedding and
head with zeros for all other rows, shards and their index, config and tokenizer files.
The folder appears under its name only when it is whole, whoever else is writing it too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.disk import sync
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.harmony.export import write_tokenizer
from gptoss_mlx.paths import cache_folder
from gptoss_mlx.shard import header_bytes

Progress = Callable[[int, int], None]

STORE = Path(str(resources.files("gptoss_mlx"))) / "data" / "tiny.safetensors"
LAYOUT = 2
"""Raised when the same stored model is to be written out differently."""

SHARDS = 2
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_INDEX = "model.safetensors.index.json"
_STALE_SECONDS = 3600


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
        """Raises CheckpointError if the file is missing or broken."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                config = json.loads(file.metadata()["config"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: not the stored tiny model: {error}") from error
        return cls(config, tensors.pop("rows"), tensors)

    def full(self, name: str) -> NDArray[Any]:
        """A tensor in the released shape."""
        tensor = self.tensors[name]
        if name not in TABLES:
            return tensor
        table = np.zeros((self.config["vocab_size"], tensor.shape[1]), tensor.dtype)
        table[self.rows] = tensor
        return table

    def shape(self, name: str) -> tuple[int, ...]:
        tensor = self.tensors[name]
        rows = self.config["vocab_size"] if name in TABLES else tensor.shape[0]
        return (rows, *tensor.shape[1:])

    def dtype(self, name: str) -> str:
        return "BF16" if self.tensors[name].dtype == np.uint16 else "U8"

    def nbytes(self, name: str) -> int:
        return int(np.prod(self.shape(name))) * self.tensors[name].itemsize


def materialise(cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The folder with the tiny model in the released layout, written first if it is not there.

    cache: where to keep it, the package's cache folder if None.  progress: called with
    (bytes done, bytes in all).  Raises CheckpointError if the package's file is broken, and
    OSError if the cache cannot be written.
    """
    cache = cache_folder() if cache is None else Path(cache)
    folder = cache / f"tiny-{_version()}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    made = Path(tempfile.mkdtemp(prefix=".tiny-", suffix=".part", dir=cache))
    try:
        _write(made, Store.open(STORE), progress)
        made.chmod(0o755)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same bytes
                raise
        sync(cache)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _version() -> str:
    """Names the stored model and the layout, so that another model never meets this folder."""
    try:
        digest = hashlib.sha256(STORE.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{STORE}: cannot be read: {error.strerror}") from error
    return f"{LAYOUT}-{digest[:12]}"


def _sweep(cache: Path) -> None:
    """Remove what a process that was killed half-way left long ago."""
    for part in cache.glob(".tiny-*.part"):
        try:
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(part, ignore_errors=True)
        except OSError:
            continue


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
                np.ascontiguousarray(store.full(name)).tofile(file)
                done += store.nbytes(name)
                if progress is not None:
                    progress(done, total)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _write_json(folder / _INDEX, index)
    for path in folder.iterdir():
        sync(path)
    sync(folder)


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
