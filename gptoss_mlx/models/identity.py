"""What tells one checkpoint from another without reading all of it."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.regular import open_regular
from gptoss_mlx.models.checkpoint import Checkpoint

_SAMPLES, _SAMPLE_BYTES = 64, 4096


def identity_of(checkpoint: Checkpoint) -> str:
    """A hash of the configuration, and of each weight file's size, time and 64 pieces, the header's
    beginning among them. A file that was written anew counts as another. Raises CheckpointError.
    """
    digest, path = blake2b(digest_size=20), checkpoint.folder / "config.json"
    try:
        digest.update(path.read_bytes())
        for path in sorted({tensor.path for tensor in checkpoint.tensors.values()}):
            digest.update(_sampled(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _sampled(path: Path) -> bytes:
    descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        digest = blake2b(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
        last = max(0, status.st_size - _SAMPLE_BYTES)
        for i in range(_SAMPLES):
            digest.update(os.pread(descriptor, _SAMPLE_BYTES, last * i // (_SAMPLES - 1)))
    finally:
        os.close(descriptor)
    return digest.digest()
