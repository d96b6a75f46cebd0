"""A sealed file: a safetensors file that is read as it was written, or not at all.

Its header carries a BLAKE2b digest of all other bytes. The reader knows what the header must be, so
nothing in the file is parsed before the whole of it has proved right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.files.atomic import write_and_rename
from gptoss_mlx.files.regular import open_itself

SEAL = "0" * 64
"""What a header has in the place of the digest until it is sealed; once, and nothing like it."""


def write_sealed(
    path: Path, temporary: Path, header: bytes, parts: Sequence[NDArray[np.uint8]]
) -> None:
    """Write a file under a temporary name, flush it and give it its name. Raises OSError."""
    data = [memoryview(_sealed(header, parts)), *(part.data for part in parts)]
    write_and_rename(path, temporary, data)


def read_sealed(path: Path, header: bytes, nbytes: int) -> NDArray[np.uint8] | None:
    """The `nbytes` bytes behind the header of a file; None if it is not as it was written.

    header: as `write_sealed` was given it. Raises OSError, also where there is no regular file.
    """
    descriptor = open_itself(path)
    try:
        if os.fstat(descriptor).st_size != len(header) + nbytes:
            return None
        data = np.empty(len(header) + nbytes, np.uint8)
        if not _read_all(descriptor, data.data):
            return None
    finally:
        os.close(descriptor)
    body = data[len(header) :]
    return body if data[: len(header)].tobytes() == _sealed(header, [body]) else None


def _sealed(header: bytes, parts: Sequence[NDArray[np.uint8]]) -> bytes:
    digest = blake2b(header, digest_size=len(SEAL) // 2)
    for part in parts:
        digest.update(part.data)
    return header.replace(SEAL.encode(), digest.hexdigest().encode(), 1)


def _read_all(descriptor: int, out: memoryview) -> bool:
    """Fill the buffer; False if the file ends before."""
    while out:
        count = os.readv(descriptor, [out])
        if not count:
            return False
        out = out[count:]
    return True
