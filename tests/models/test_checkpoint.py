"""Checkpoints: what is read agrees with safetensors' own library."""

from __future__ import annotations

import math
import shutil
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.models.checkpoint import Checkpoint, read_into
from tests.support.broken import edit_json, write_shard

NORM = "model.norm.weight"
BLOCKS = "model.layers.1.mlp.experts.down_proj_blocks"
SCALES = "model.layers.1.mlp.experts.down_proj_scales"
ROUTER = "model.layers.0.mlp.router.weight"
BYTES_LIMIT = 512 * 1024
"""Bytes a refused checkpoint may take; its embedding alone has a million."""


def test_every_byte_agrees_with_the_safetensors_library(small_checkpoint: Path) -> None:
    seen = 0
    with Checkpoint.open(small_checkpoint) as checkpoint:
        for shard in sorted(small_checkpoint.glob("*.safetensors")):
            for name, entry in safetensors.deserialize(shard.read_bytes()):
                tensor = checkpoint.tensors[name]
                assert (tensor.dtype, list(tensor.shape)) == (entry["dtype"], entry["shape"])
                out = bytearray(tensor.nbytes)
                read_into(tensor, memoryview(out))
                assert out == entry["data"]
                assert checkpoint.map(tensor).tobytes() == entry["data"]
                seen += 1
        assert seen == len(checkpoint.tensors) == 2 * 19 + 3


def test_slices_are_the_rows_and_experts_of_the_whole(small_checkpoint: Path) -> None:
    with Checkpoint.open(small_checkpoint) as checkpoint:
        for name in (BLOCKS, SCALES, "model.embed_tokens.weight"):
            tensor = checkpoint.tensors[name]
            whole = checkpoint.map(tensor)
            for i in (0, 1, tensor.shape[0] - 1):
                out = np.empty(tensor[i].nbytes, np.uint8)
                read_into(tensor[i], out.data)
                assert out.tobytes() == whole[i].tobytes()
                np.testing.assert_array_equal(checkpoint.map(tensor[i]), whole[i])
            assert tensor[1][2].shape == tensor.shape[2:]
            for i in (-1, tensor.shape[0]):
                with pytest.raises(IndexError, match=f"no slice {i} "):
                    tensor[i]


def test_a_map_is_read_only_and_outlives_close(small_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    view = checkpoint.map(checkpoint.tensors[NORM])
    assert view.dtype == np.uint16
    assert not view.flags.writeable
    before = view.tobytes()
    checkpoint.close()
    assert view.tobytes() == before


def test_a_single_file_without_an_index_opens(small_checkpoint: Path, tmp_path: Path) -> None:
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for shard in small_checkpoint.glob("*.safetensors"):
        for name, entry in safetensors.deserialize(shard.read_bytes()):
            tensors[name] = (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
    shutil.copy(small_checkpoint / "config.json", tmp_path)
    write_shard(tmp_path / "model.safetensors", tensors)
    with Checkpoint.open(tmp_path) as single, Checkpoint.open(small_checkpoint) as sharded:
        assert single.tensors.keys() == sharded.tensors.keys()
        for name, tensor in single.tensors.items():
            other = sharded.map(sharded.tensors[name])
            np.testing.assert_array_equal(single.map(tensor), other)


def test_links_as_in_a_download_cache_open(small_checkpoint: Path, tmp_path: Path) -> None:
    for i, path in enumerate(sorted(small_checkpoint.iterdir())):
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "blobs" / str(i))
        (tmp_path / "snapshot" / path.name).symlink_to(Path("..") / "blobs" / str(i))
    Checkpoint.open(tmp_path / "snapshot").close()


def test_threads_may_read_at_once(small_checkpoint: Path) -> None:
    with Checkpoint.open(small_checkpoint) as checkpoint:
        tensor = checkpoint.tensors[BLOCKS]
        whole = checkpoint.map(tensor)
        out = np.zeros(tensor.shape, np.uint8)

        def read(expert: int) -> None:
            for _ in range(20):
                read_into(tensor[expert], out[expert].data)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(tensor.shape[0])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(out, whole)


def test_a_read_into_the_wrong_size_is_a_value_error(small_checkpoint: Path) -> None:
    with (
        Checkpoint.open(small_checkpoint) as checkpoint,
        pytest.raises(ValueError, match="128 bytes do not fit 100"),
    ):
        read_into(checkpoint.tensors[NORM], memoryview(bytearray(100)))


def test_a_file_cut_after_opening_is_found_by_the_read(breakable: Path) -> None:
    with Checkpoint.open(breakable) as checkpoint:
        tensor = checkpoint.tensors[BLOCKS]
        with tensor.path.open("r+b") as file:
            file.truncate(tensor.offset + 5)
        with pytest.raises(CheckpointError, match=r"ends within tensor .*: 5 of"):
            read_into(tensor, memoryview(bytearray(tensor.nbytes)))


@pytest.mark.parametrize("value", [254, 255])
def test_only_the_scale_255_is_refused_with_its_place(breakable: Path, value: int) -> None:
    with Checkpoint.open(breakable) as checkpoint:
        expert = checkpoint.tensors[SCALES][2]
    with expert.path.open("r+b") as file:
        file.seek(expert.offset + 7)
        file.write(bytes([value]))
    with Checkpoint.open(breakable) as checkpoint:
        if value == 254:
            checkpoint.check_scales()
            return
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError) as caught:
                checkpoint.check_scales()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    place = expert.offset + 7
    assert str(caught.value) == (
        f"{expert.path}: tensor {SCALES} of expert 2 has the scale 255 (NaN) at byte {place};"
        " the highest is 254"
    )
    assert peak < BYTES_LIMIT


def test_checking_scales_reports_every_byte_once(small_checkpoint: Path) -> None:
    steps: list[tuple[int, int]] = []
    with Checkpoint.open(small_checkpoint) as checkpoint:
        checkpoint.check_scales(lambda done, total: steps.append((done, total)))
        scales = sum(t.nbytes for n, t in checkpoint.tensors.items() if n.endswith("_scales"))
    assert steps[-1] == (scales, scales)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})


@pytest.mark.parametrize(
    ("bits", "group", "mode"),
    [(8, 64, "affine"), (4, 32, "affine"), (6, 64, "affine"), (4, 32, "mxfp4"), (8, 32, "mxfp8")],
)
def test_a_converted_folder_opens(
    small_checkpoint: Path, tmp_path: Path, bits: int, group: int, mode: str
) -> None:
    spec = {"bits": bits, "group_size": group, "mode": mode}
    shapes = _convert(small_checkpoint, tmp_path, spec)
    with Checkpoint.open(tmp_path) as checkpoint:
        checkpoint.check_scales()
        assert {name: (t.dtype, t.shape) for name, t in checkpoint.tensors.items()} == shapes
        assert checkpoint.map(checkpoint.tensors["lm_head.weight"]).dtype == np.uint32
        assert checkpoint.tensors[ROUTER].dtype == "BF16"


def test_a_nan_scale_of_a_quantized_module_is_refused(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    _convert(small_checkpoint, tmp_path, {"bits": 4, "group_size": 32, "mode": "mxfp4"}, fill=255)
    with (
        Checkpoint.open(tmp_path) as checkpoint,
        pytest.raises(CheckpointError, match=r"_proj\.scales has the scale 255"),
    ):
        checkpoint.check_scales()


def _convert(
    source: Path, folder: Path, spec: dict[str, Any], fill: int = 0
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A folder as a converter leaves it, all matrices but the routers quantized (to zeros)."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}

    def add(name: str, dtype: str, *shape: int, data: bytes | None = None) -> None:
        item = {"BF16": 2, "U8": 1, "U32": 4}[dtype]
        data = bytes([fill]) * (math.prod(shape) * item) if data is None else data
        tensors[name] = (dtype, shape, data)

    modules: dict[str, Any] = {}
    with Checkpoint.open(source) as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            module = name.removesuffix(".weight")
            if tensor.dtype == "BF16" and len(tensor.shape) == 2 and name.endswith(".weight"):
                rows, columns = tensor.shape
                if not module.endswith("router"):
                    add(name, "U32", rows, columns * spec["bits"] // 32)
                    scale = "BF16" if spec["mode"] == "affine" else "U8"
                    add(f"{module}.scales", scale, rows, columns // spec["group_size"])
                    if spec["mode"] == "affine":
                        add(f"{module}.biases", scale, rows, columns // spec["group_size"])
                    continue
                modules[module] = False
            add(name, tensor.dtype, *tensor.shape, data=checkpoint.map(tensor).tobytes())
    write_shard(folder / "model.safetensors", tensors)
    shutil.copy(source / "config.json", folder)
    edit_json(folder / "config.json", lambda config: config.update(quantization=spec | modules))
    return {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}
