"""What a person may choose of how a model is opened: one frozen record, made once and passed on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.paths import expanded
from gptoss_mlx.system.cores import MOST_THREADS
from gptoss_mlx.system.units import parse_budget, parse_bytes, parse_tokens

DTYPES = ("bfloat16", "float32")
EMBEDDINGS = ("file", "resident")
KV_BITS = (8,)
CACHE_DISK = 20 << 30
"""Bytes of the prefix store's files, unless asked otherwise."""


@dataclass(frozen=True)
class Settings:
    """How a model is opened; None leaves a choice to the machine and the plan.

    backend, device: as `backends.backend.choose_backend` takes them. dtype: the compute dtype.
    context: the most tokens of a sequence. memory: the most bytes to use. embedding: "file" or
    "resident". kv_bits: bits of a quantized KV cache. parallel: sequences decoded at a time. cache:
    bytes of the prefix store, 0 for none. cache_dir: the folder of its files, None for none.
    cache_disk: bytes of these files. threads: of the kernels for CPUs.
    """

    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    context: int | None = None
    memory: int | None = None
    embedding: str | None = None
    kv_bits: int | None = None
    parallel: int | None = None
    cache: int | None = None
    cache_dir: Path | None = None
    cache_disk: int = CACHE_DISK
    threads: int | None = None

    @classmethod
    def of(
        cls,
        *,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        context: int | str | None = None,
        memory: int | str | None = None,
        embedding: str | None = None,
        kv_bits: int | None = None,
        parallel: int | None = None,
        cache: int | str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_disk: int | str | None = None,
        threads: int | None = None,
    ) -> Settings:
        """Validated settings; sizes may be texts such as "10GiB" and "32k".

        Raises OptionError. The range of `context` is checked by the plan.
        """
        _one_of("dtype", dtype, DTYPES)
        _one_of("embedding", embedding, EMBEDDINGS)
        _one_of("kv_bits", kv_bits, KV_BITS)
        return cls(
            backend=backend,
            device=device,
            dtype=dtype,
            context=_whole("context", context, parse_tokens, "tokens, such as 8192 or 32k", None),
            memory=_whole("memory", memory, parse_bytes, "bytes, or a size such as 10GiB"),
            embedding=embedding,
            kv_bits=kv_bits,
            parallel=_whole("parallel", parallel, int, "a number of sequences from 1 to 32"),
            cache=_whole("cache", cache, parse_budget, "bytes, or a size such as 2GiB", 0),
            cache_dir=None if cache_dir is None else _folder("cache_dir", cache_dir),
            cache_disk=_whole("cache_disk", cache_disk, parse_bytes, "a size such as 20GiB")
            or CACHE_DISK,
            threads=_threads(threads),
        )


def _threads(value: object) -> int | None:
    """Raises OptionError."""
    count = _whole("threads", value, int, f"a number of threads from 1 to {MOST_THREADS}")
    if count is not None and count > MOST_THREADS:
        raise OptionError(f"threads is {shown(value)}, but must be at most {MOST_THREADS}")
    return count


def _folder(name: str, value: object) -> Path:
    """A path, ~ expanded; relative to the folder of now. Raises OptionError."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"{name} is {shown(value)}, but must be a folder")
    return expanded(path).absolute()


def _one_of(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises OptionError unless the value is None (not given) or one of the choices."""
    if value is not None and value not in choices:
        known = " or ".join(str(choice) for choice in choices)
        raise OptionError(f"{name} is {shown(value)}, but must be {known}")


def _whole(
    name: str, value: object, parse: Callable[[str], int], says: str, low: int | None = 1
) -> int | None:
    """An integer of at least `low`, or a text that `parse` reads as one; None stays None.

    Raises OptionError.
    """
    if value is None:
        return None
    number: float = math.nan
    with suppress(ValueError, OverflowError):  # anything else is refused below
        if isinstance(value, str):
            number = parse(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            number = int(value)
    if not number >= (-math.inf if low is None else low):
        raise OptionError(f"{name} is {shown(value)}, but must be {says}")
    return int(number)
