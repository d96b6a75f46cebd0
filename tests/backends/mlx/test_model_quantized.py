"""Converted folders, in every quantization and in mixtures, against dequantization by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.backends import open_on
from tests.support.checkpoints import Shape
from tests.support.comparison import argmax_agreement, fresh, opened, relative_l2
from tests.support.numpy_gpt_oss import NumpyGptOss
from tests.support.quantized import write_quantized
from tests.support.shapes import tokens

LIMIT = 1e-5
"""Relative L2 to float64; quantization itself is in both."""

SHAPE = Shape(2, 128, 96, 6, 2, 4, 2, 32, vocab=256, window=16)


def _of(bits: int, group_size: int, mode: str = "affine") -> dict[str, Any]:
    return {"bits": bits, "group_size": group_size, "mode": mode}


_ATTENTION, _ROUTER = "model.layers.0.self_attn", "model.layers.1.mlp.router"
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "affine 8": {"bits": 8, "group_size": 64},
    "affine 4, group 64": _of(4, 64),
    "affine 4, group 32": _of(4, 32),
    "affine 6": _of(6, 128),
    "mxfp4": _of(4, 32, "mxfp4"),
    "mxfp8": _of(8, 32, "mxfp8"),
    "each its own": {
        **_of(4, 64),
        f"{_ATTENTION}.v_proj": _of(8, 32),
        f"{_ATTENTION}.o_proj": _of(8, 32, "mxfp8"),
        _ROUTER: _of(8, 64),
        "model.layers.0.mlp.router": False,
        "model.layers.1.self_attn.k_proj": False,
        "lm_head": _of(6, 64),
        "model.embed_tokens": _of(4, 32, "mxfp4"),
    },
    "rest in bf16": {**_of(8, 64), "lm_head": False, "model.embed_tokens": False},
}


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_converted_folders_against_dequantization_by_hand(
    name: str, checkpoint_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_quantized(checkpoint_of(SHAPE), tmp_path / "made", QUANTIZATIONS[name])
    ids = tokens(SHAPE.vocab, 40)
    exact = NumpyGptOss(folder).logits(ids)
    for embedding in ("file", "resident"):
        _assert_close(opened(folder, embedding=embedding), ids, exact)
    released = NumpyGptOss(checkpoint_of(SHAPE)).logits(ids)
    assert relative_l2(exact, released) > 1e-3, "nothing was quantized"


def _assert_close(model: Any, ids: list[int], exact: NDArray[np.float64]) -> None:
    ours = fresh(model, ids)
    assert relative_l2(ours, exact) < LIMIT
    assert argmax_agreement(ours, exact) == 1


@pytest.mark.parametrize("backend", ["cpu", pytest.param("torch", marks=pytest.mark.torch)])
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_the_same_on_other_backends(
    backend: str, name: str, checkpoint_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_quantized(checkpoint_of(SHAPE), tmp_path / "made", QUANTIZATIONS[name])
    ids = tokens(SHAPE.vocab, 40)
    exact = NumpyGptOss(folder).logits(ids)
    _assert_close(open_on(backend, folder), ids, exact)
    if backend == "cpu":
        _assert_close(open_on(backend, folder, embedding="resident"), ids, exact)


@pytest.mark.torch
def test_pytorch_keeps_eight_bits_and_widens_others(
    checkpoint_of: Callable[..., Path], tmp_path: Path
) -> None:
    made = write_quantized(checkpoint_of(SHAPE), tmp_path / "made", QUANTIZATIONS["rest in bf16"])
    model = open_on("torch", made)
    assert str(model.blocks[0].attention.qkv.weight.dtype) == "torch.uint8"
    assert model.blocks[0].attention.qkv.group == 64
    assert str(model.lm_head.weight.dtype) == "torch.float32"


def test_different_specs_split_the_joint_projection(
    checkpoint_of: Callable[..., Path], tmp_path: Path
) -> None:
    made = write_quantized(checkpoint_of(SHAPE), tmp_path / "made", QUANTIZATIONS["each its own"])
    model = opened(made)
    assert [len(block.attend.qkv) for block in model.blocks] == [3, 3]
    assert [len(b.attend.qkv) for b in opened(checkpoint_of(SHAPE)).blocks] == [1, 1]
    assert model.blocks[1].attend.qkv[1][0].spec is None
    v = model.blocks[0].attend.qkv[2][0].spec
    assert v is not None
    assert (v.bits, v.group_size) == (8, 32)
