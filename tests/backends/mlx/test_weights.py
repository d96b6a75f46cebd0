"""Loading: every bit where it belongs, bounded memory, honest progress, and clean failures."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.backends import loading
from gptoss_mlx.backends.mlx.model import open_model
from gptoss_mlx.backends.mlx.weights import Loader
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.models.checkpoint import Checkpoint, Tensor
from gptoss_mlx.spec.config import ModelConfig
from tests.support.checkpoints import Shape
from tests.support.quantized import write_quantized
from tests.support.released_tensors import raw_tensors

SHAPE = Shape(2, 128, 96, 4, 2, 4, 2, 32, vocab=512)
QKV = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]


@pytest.fixture
def folder(checkpoint_of: Callable[..., Path]) -> Path:
    return checkpoint_of(SHAPE)


@pytest.fixture(params=[64, 1002, 4096, 8 << 20])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes read at a time: far below a tensor, no multiple of a word, above any tensor."""
    monkeypatch.setattr(loading, "PIECE", request.param)
    return int(request.param)


def _bits(array: mx.array) -> NDArray[np.uint8]:
    """The array's bytes; a view of bfloat16 is none numpy knows."""
    return np.array(array.view(mx.uint8)).reshape(-1)


def _file(name: str, values: NDArray[Any], dtype: str, folder: Path) -> Tensor:
    path = folder / f"{name}.bin"
    path.write_bytes(b"\x00" * 3 + values.tobytes())  # at an odd place, as in some files
    return Tensor(name, dtype, values.shape, path, 3, values.nbytes)


def _checkpoint(config: ModelConfig, *tensors: Tensor) -> Checkpoint:
    return Checkpoint(Path(), config, {tensor.name: tensor for tensor in tensors})


@pytest.fixture
def config(folder: Path) -> ModelConfig:
    return ModelConfig.from_file(folder / "config.json")


def test_all_finite_bfloat16_bits_widen_to_the_same_float32(
    tmp_path: Path, config: ModelConfig, piece: int
) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    words = every[every & 0x7F80 != 0x7F80]
    first, second = words[: 1 << 15].reshape(-1, 128), words[1 << 15 :].reshape(-1, 128)
    tensors = [_file("a", first, "BF16", tmp_path), _file("b", second, "BF16", tmp_path)]
    with _checkpoint(config, *tensors) as checkpoint:
        with Loader(checkpoint, mx.float32) as loader:
            out = loader.dense("a", "b")
            loader.finish()
        assert out.dtype == mx.float32
        assert out.shape == (510, 128)
        np.testing.assert_array_equal(_bits(out).view(np.uint32), words.astype(np.uint32) << 16)
        with Loader(checkpoint, mx.bfloat16) as loader:
            kept = loader.dense("a", "b")
            loader.finish()
        assert kept.dtype == mx.bfloat16
        np.testing.assert_array_equal(_bits(kept).view(np.uint16), words)


def test_float16_and_float32_tensors_are_read_by_value(
    tmp_path: Path, config: ModelConfig, piece: int
) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = every[np.isfinite(every)].reshape(-1, 32)
    singles = np.random.default_rng(0).standard_normal((33, 7), np.float32)
    tensors = [_file("h", halves, "F16", tmp_path), _file("s", singles, "F32", tmp_path)]
    with _checkpoint(config, *tensors) as checkpoint:
        for dtype in (mx.float32, mx.bfloat16):
            with Loader(checkpoint, dtype) as loader:
                h, s = loader.dense("h"), loader.dense("s")
                loader.finish()
            for out, exact in ((h, halves), (s, singles)):
                assert out.dtype == dtype
                rounded = mx.array(exact.astype(np.float32)).astype(dtype)
                np.testing.assert_array_equal(_bits(out), _bits(rounded))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_experts_are_the_files_bytes(folder: Path, dtype: str, piece: int) -> None:
    raw = raw_tensors(folder)
    model = open_model(Checkpoint.open(folder), dtype=dtype)
    for layer, block in enumerate(model.blocks):
        bank, prefix = block.moe.experts, f"model.layers.{layer}.mlp.experts"
        pairs = {
            "gate_up_proj_blocks": (bank.gate_up_proj.blocks, mx.uint32, (4, 192, 16)),
            "gate_up_proj_scales": (bank.gate_up_proj.scales, mx.uint8, (4, 192, 4)),
            "down_proj_blocks": (bank.down_proj.blocks, mx.uint32, (4, 128, 12)),
            "down_proj_scales": (bank.down_proj.scales, mx.uint8, (4, 128, 3)),
        }
        for name, (array, kind, shape) in pairs.items():
            assert (array.dtype, array.shape) == (kind, shape)
            np.testing.assert_array_equal(_bits(array), raw[f"{prefix}.{name}"][1].reshape(-1))


def test_q_k_and_v_become_one_projection_in_that_order(folder: Path, piece: int) -> None:
    raw = raw_tensors(folder)
    with Checkpoint.open(folder) as checkpoint, Loader(checkpoint, mx.bfloat16) as loader:
        assert loader.alike(*QKV)
        joined = loader.linear(*QKV)
        loader.finish()
    for part, array in (("weight", joined.matrix.weight), ("bias", joined.bias)):
        assert array is not None
        exact = np.concatenate([raw[f"{module}.{part}"][1].reshape(-1) for module in QKV])
        np.testing.assert_array_equal(_bits(array).view(np.uint16), exact)


def test_quantized_modules_are_the_files_words(folder: Path, tmp_path: Path, piece: int) -> None:
    converted = write_quantized(
        folder,
        tmp_path / "converted",
        {"bits": 4, "group_size": 32, QKV[2]: {"bits": 8, "group_size": 32, "mode": "mxfp8"}},
    )
    raw = raw_tensors(converted)
    with Checkpoint.open(converted) as checkpoint, Loader(checkpoint, mx.bfloat16) as loader:
        assert not loader.alike(*QKV)
        assert loader.alike(*QKV[:2])
        qk, v = loader.matrix(*QKV[:2]), loader.matrix(QKV[2])
        loader.finish()
    assert v.biases is None
    for matrix, modules in ((qk, QKV[:2]), (v, QKV[2:])):
        for part in ("weight", "scales", "biases"):
            array = getattr(matrix, part)
            if array is not None:
                exact = [np.ravel(raw[f"{m}.{part}"][1]).view(np.uint8) for m in modules]
                np.testing.assert_array_equal(_bits(array), np.concatenate(exact))


@pytest.mark.parametrize("embedding", ["file", "resident"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_progress_grows_and_ends_at_the_total(
    folder: Path, embedding: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PIECE", 4096)
    calls: list[tuple[int, int]] = []
    checkpoint = Checkpoint.open(folder)
    open_model(
        checkpoint,
        dtype=dtype,
        embedding=embedding,
        progress=lambda done, total: calls.append((done, total)),
    )
    table = checkpoint.tensors["model.embed_tokens.weight"].nbytes
    whole = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    expected = whole if embedding == "resident" else whole - table
    done = [d for d, _ in calls]
    assert {total for _, total in calls} == {expected}
    assert done == sorted(set(done))
    assert done[-1] == expected
    assert len(calls) > 50


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("gptoss-load")]


def _shorten(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


@pytest.mark.parametrize("harm", [_shorten, Path.unlink], ids=["shorter", "gone"])
def test_a_file_harmed_after_opening_gives_one_error_and_stops_the_pool(
    harm: Callable[[Path], None], breakable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PIECE", 4096)
    checkpoint = Checkpoint.open(breakable)
    paths = {t.path for name, t in checkpoint.tensors.items() if "embed" not in name}
    harm(victim := max(paths, key=lambda path: path.stat().st_size))

    def load() -> None:
        # Not open_model: it reads the scales first and would find out there.
        with Loader(checkpoint, mx.float32) as loader:
            for name, tensor in checkpoint.tensors.items():
                if tensor.dtype == "BF16" and "embed" not in name:
                    loader.dense(name)
            loader.finish()

    with pytest.raises(CheckpointError, match=r"cut short while|cannot be") as caught:
        load()
    assert str(caught.value).startswith(f"{victim}: ")
    assert "\n" not in str(caught.value)
    assert _threads() == []


def test_a_failing_body_cancels_what_is_still_queued(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PIECE", 64)
    cancelled, done = threading.Event(), list[int]()

    def progress(at: int, _: int) -> None:
        cancelled.wait(timeout=5)  # no thread gets past its first piece before
        cancelled.set()
        done.append(at)

    def load() -> None:
        with Loader(checkpoint, mx.float32, 0, progress) as loader:
            loader.dense("lm_head.weight")
            raise RuntimeError("body")

    with Checkpoint.open(folder) as checkpoint, pytest.raises(RuntimeError, match="body"):
        load()
    assert len(done) <= loading.THREADS
    assert checkpoint.tensors["lm_head.weight"].nbytes // 64 > 100 * loading.THREADS
    assert _threads() == []


def test_memory_while_loading_is_the_arrays_and_a_piece_a_thread(
    checkpoint_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_of(Shape(2, 256, 256, 16, 2, 8, 2, 32, vocab=4096))
    piece = 64 << 10
    monkeypatch.setattr(loading, "PIECE", piece)
    checkpoint = Checkpoint.open(folder)
    held = sum(
        t.nbytes * (2 if t.dtype == "BF16" else 1)
        for name, t in checkpoint.tensors.items()
        if not name.startswith("model.embed_tokens.")
    )
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    try:
        model = open_model(checkpoint, dtype="float32")
        _, python_peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # MLX rounds every array up to whole pages.
    slack = 16384 * len(checkpoint.tensors)
    assert held <= model.stats()["active_bytes"] - before + slack
    assert model.stats()["peak_bytes"] - before <= held + slack
    # numpy's buffers, one a thread, and the queue of reads with their tensors.
    reads = held // piece + len(checkpoint.tensors)
    assert python_peak < loading.THREADS * piece + reads * 4096 + (1 << 20)
    assert python_peak < held // 4


def test_a_released_config_has_no_specs(folder: Path) -> None:
    assert "quantization" not in json.loads((folder / "config.json").read_text())
    with Checkpoint.open(folder) as checkpoint, Loader(checkpoint, mx.float32) as loader:
        assert all(loader.spec(module) is None for module in [*QKV, "lm_head"])
