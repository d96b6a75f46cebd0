"""Rows from the file and resident embeddings, plain and quantized, against numbers read by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.embedding import FileEmbedding, ResidentEmbedding, Rows
from gptoss_mlx.backends.mlx.weights import Loader
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.models.checkpoint import Checkpoint
from tests.support.checkpoints import Shape
from tests.support.quantized import write_quantized
from tests.support.released_tensors import read_tensors

SHAPE = Shape(1, 128, 32, 2, 1, 4, 1, 32, vocab=300)
IDS = [0, 299, 7, 7, 128, 1]

SPECS: dict[str, dict[str, Any] | None] = {
    "bf16": None,
    **{f"affine{b}_{g}": {"bits": b, "group_size": g} for b, g in ((8, 64), (4, 32), (6, 128))},
    "mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    "mxfp8": {"bits": 8, "group_size": 32, "mode": "mxfp8"},
    "nvfp4": {"bits": 4, "group_size": 16, "mode": "nvfp4"},
}


@pytest.fixture(params=SPECS)
def folder(
    request: pytest.FixtureRequest, checkpoint_of: Callable[..., Path], tmp_path: Path
) -> Path:
    source, spec = checkpoint_of(SHAPE), SPECS[request.param]
    return source if spec is None else write_quantized(source, tmp_path / "converted", spec)


def read_now(rows: Rows) -> mx.array:
    rows.read()
    return rows.x


def _both(folder: Path, dtype: mx.Dtype) -> tuple[FileEmbedding, ResidentEmbedding]:
    checkpoint = Checkpoint.open(folder)
    with Loader(checkpoint, dtype) as loader:
        read, resident = (
            FileEmbedding(
                checkpoint, loader, FileReader({t.path for t in checkpoint.tensors.values()})
            ),
            ResidentEmbedding(checkpoint, loader),
        )
        loader.finish()
    return read, resident


def test_rows_are_the_files_to_the_last_bit_of_float32(folder: Path) -> None:
    exact = read_tensors(folder)["model.embed_tokens.weight"][IDS]
    for table in _both(folder, mx.float32):
        rows = read_now(table(IDS))
        assert rows.dtype == mx.float32
        np.testing.assert_allclose(np.array(rows), exact, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_file_and_resident_are_equal_bit_for_bit(folder: Path, dtype: mx.Dtype) -> None:
    read, resident = _both(folder, dtype)
    for ids in (IDS, IDS[:1], mx.array(IDS), mx.array(IDS[1:2], dtype=mx.uint32)):
        a, b = read_now(read(ids)), read_now(resident(ids))
        assert a.dtype == b.dtype == dtype
        assert a.shape == b.shape == (len(ids), 128)
        np.testing.assert_array_equal(np.array(a.view(mx.uint8)), np.array(b.view(mx.uint8)))
